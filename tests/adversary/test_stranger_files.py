"""Folders of strangers in which something else stands in the place of a file, through the API and every command.

Each attack holds if it ends in one line that names the file or folder, at a command with exit code 2.
"""

import json
import random

import pytest
from attacks import command
from stranger_folders import HTML, LFS, MEMORY, SECONDS, as_folder, cut, fifo, link, sparse, write

INSTEAD = {
    "git-lfs pointer": (write(LFS), "git lfs pull"),
    "web page": (write(HTML), "web page"),
    "nothing": (write(b""), "empty"),
    "pickle": (write(b"PK\x03\x04" + bytes(200)), "never read"),
    "gzip": (write(b"\x1f\x8b\x08" + bytes(200)), "gzip"),
    "random bytes": (write(random.Random(0).randbytes(4096)), ""),
    "zeros": (write(bytes(4096)), ""),
    "half of it": (cut(0.5), ""),
    "pipe": (fifo, "pipe"),
    "folder": (as_folder, "folder"),
    "link to another folder": (link(None), "leads out of its folder"),
    "link to nowhere": (link("/nowhere/at/all"), "does not exist"),
    "link to itself": (link("model.safetensors"), ""),
    "device": (link("/dev/zero"), ""),
}


@pytest.mark.parametrize("kind", ["timm_resnet", "hf_vit"])
def test_other_things_in_the_place_of_files(kind, honest, stranger, attacks):
    files = ["config.json", "model.safetensors", *(["preprocessor_config.json"] if kind == "hf_vit" else [])]
    for file in files:
        for what, (put, words) in INSTEAD.items():
            with attacks.attempt(f"{kind}: {what} in the place of {file}"):
                folder = stranger.folder(kind)
                put(folder / file)
                text = stranger.load(folder, True, kind)
                assert text, "was loaded"
                assert words in text, text
                assert file in text, f"{file} is not named: {text}"


COMMANDS = {
    "evaluate": lambda folder, out: ("evaluate", folder, "--dataset", "digits", "--output_dir", out),
    "spectra": lambda folder, out: ("spectra", folder, "--output_dir", out),
    "forecast": lambda folder, out: ("forecast", "--dataset", "digits", "--encoder", folder, "--output_dir", out),
    "pretrain": lambda folder, out: (
        *("pretrain", "--dataset", "digits", "--pretrained", folder, "--max_steps", "1"),
        *("--output_dir", out),
    ),
    "publish": lambda folder, out: ("publish", folder, "--repo_id", "somebody/else", "--dry_run"),
}


def to_json(change):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(change(config)))

    return apply


def on(file, put):
    return lambda folder: put(folder / file)


FOLDERS = {
    "git-lfs pointer": on("model.safetensors", write(LFS)),
    "web page": on("config.json", write(HTML)),
    "empty configuration": on("config.json", write(b"")),
    "empty weights": on("model.safetensors", write(b"")),
    "half of the weights": on("model.safetensors", cut(0.5)),
    "pipe for weights": on("model.safetensors", fifo),
    "pipe for a configuration": on("config.json", fifo),
    "link out of the folder": on("model.safetensors", link(None)),
    "a list": on("config.json", write(b"[]")),
    "deep": on("config.json", write(b"[" * 10**5 + b"]" * 10**5)),
    "a billion layers": to_json(lambda config: config | {"model_args": {"layers": [10**9] * 4}}),
    "6000 pixels": to_json(lambda config: config | {"pretrained_cfg": {"input_size": [3, 6000, 6000]}}),
    "an unknown architecture": to_json(lambda config: config | {"architecture": "../x"}),
    "a word for the mean": to_json(lambda config: config | {"pretrained_cfg": {"mean": "x"}}),
    "weights of 400 GB": sparse,
}
# What is no fault for publishing, which reads no architecture.
NOT_PUBLISHED = {
    "a billion layers",
    "6000 pixels",
    "an unknown architecture",
    "a word for the mean",
    "weights of 400 GB",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_in_one_line(name, stranger, tmp_path, attacks):
    for what, change in FOLDERS.items():
        if name == "publish" and what in NOT_PUBLISHED:
            continue
        with attacks.attempt(f"{name}: {what}"):
            folder = stranger.folder("timm_resnet")
            if name == "publish":
                record = {"backbone": "resnet10t", "num_features": 16, "image_size": 32, "mean": [0.5] * 3}
                record |= {"std": [0.5] * 3, "pooling": "pooler_output", "method": "simclr"}
                to_json(lambda config, record=record: config | {"orthossl": record})(folder)
            change(folder)
            outcome = command(*COMMANDS[name](folder, tmp_path / "out"), seconds=SECONDS, memory=MEMORY)
            outcome.refused(str(folder))
            stranger.unharmed()
