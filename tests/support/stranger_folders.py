"""Folders of encoders as strangers write them: honest ones, copies of them to spoil, and ways to spoil a file."""

import copy
import json
import os
import shutil
import socket
import struct
from pathlib import Path

import pytest
import timm
import torch
import transformers as hf
from attacks import limits
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from timm.models import save_for_hf

from hf_orthossl import load_encoder

SECONDS, MEMORY = 60, 6 * 2**30
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
# Saves of both libraries, from which every attack starts.
HONEST = {
    "timm_resnet": lambda: timm.create_model("resnet10t", channels=[8, 8, 16, 16], num_classes=10),
    "timm_vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_classes=10
    ),
    "hf_vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**SMALL, image_size=32, patch_size=8)),
    "hf_convnext": lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])),
}


@pytest.fixture(scope="session")
def honest(tmp_path_factory):
    """A folder of each library and architecture, as their own functions save it."""
    base = tmp_path_factory.mktemp("honest")
    for name, make in HONEST.items():
        torch.manual_seed(0)
        model = make()
        if name.startswith("timm"):
            save_for_hf(model, base / name, safe_serialization=True, data_config={"input_size": (3, 32, 32)})
        else:
            model.save_pretrained(base / name)
            hf.BitImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(base / name)
        load_encoder(base / name, pretrained=True)
    return base


def one_line(error):
    """The text of an error, which must be one line of a length that can be read."""
    text = str(error)
    assert text, f"no words: {error!r}"
    assert "\n" not in text, f"several lines: {text}"
    assert len(text) < 1000, f"{len(text)} characters"
    return text


@pytest.fixture
def stranger(honest, tmp_path, monkeypatch):
    """Makes a copy of an honest folder with code beside it; afterwards nothing was run and nobody was called."""
    ran, called = tmp_path / "ran", []

    def connect(self, address):
        called.append(address)
        raise OSError("no connections here")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    copies = iter(range(10**6))

    class Stranger:
        def folder(self, kind):
            folder = Path(shutil.copytree(honest / kind, tmp_path / f"copy{next(copies)}"))
            (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
            return folder

        def load(self, folder, pretrained=True, like=None):
            """Loads the folder; fails unless that is refused in one line or gives the weights of `like`."""
            try:
                with limits(SECONDS, MEMORY):
                    encoder = load_encoder(folder, pretrained=pretrained)
            except (ValueError, OSError, TypeError) as error:
                self.unharmed()
                return one_line(error)
            if pretrained:
                saved = load_file(honest / like / "model.safetensors")
                numbers = sorted(float(tensor.double().sum()) for tensor in saved.values())
                for key, tensor in encoder.backbone.state_dict().items():
                    total = float(tensor.double().sum())
                    close = [number for number in numbers if abs(total - number) < 1e-9 + 1e-6 * abs(total)]
                    assert close, f"{key} is not saved"
            with torch.no_grad():
                representation = encoder.eval()(torch.zeros(1, 3, encoder.image_size, encoder.image_size))
            assert representation.isfinite().all(), "not finite"
            self.unharmed()
            return None

        def unharmed(self):
            assert not ran.exists(), "code of the folder was run"
            assert not called, f"connected to {called[0]}"

    yield Stranger()
    for number in range(next(copies)):
        shutil.rmtree(tmp_path / f"copy{number}", ignore_errors=True)


# What may stand in the place of any value of a JSON file.
ODD = st.one_of(
    st.sampled_from(
        [
            *(None, True, False, 0, -1, 1, 2, 3, 7, 10**4, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**12)),
            *(0.0, -0.5, 1e-30, 1e30, 1e308, float("nan"), float("inf"), -float("inf")),
            *("", "x", "gelu", "../../etc/passwd", "/etc/passwd", "http://localhost:1/x", "somebody/else", "🙂" * 50),
            *("a" * 10**5, "evil.Evil", "hf-hub:somebody/else", "__import__('os').abort()", "\x00", "torch.nn.Linear"),
            *([], {}, [[]], [None], [1, "x"], [0], [0, 0, 0], [-1, -1], [10**9] * 3, [1] * 10**4, [1, 2], {"a": 1}),
            *({"model_type": "bert"}, {"height": 10**9, "width": 1}, {"shortest_edge": "x"}, {"height": 5}),
            json.loads("[" * 90 + "]" * 90),
        ]
    ),
    st.integers(-(10**7), 10**7),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(-2, 4096), max_size=5),
)


def places(value, path=()):
    """Paths of all values within a JSON object."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 3)):
            yield from places(value[index], (*path, index))


def replaced(value, path, new):
    """A copy of a JSON object with another value at a path."""
    changed = copy.deepcopy(value)
    target = changed
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = new
    return changed


def fuzz(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 45000000\n"
HTML = b"<!doctype html><html><head><title>404</title></head><body>Entry not found</body></html>"


def write(content):
    def apply(path):
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    return apply


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def as_folder(path):
    path.unlink()
    path.mkdir()


def link(target):
    def apply(path):
        elsewhere = path.parent.parent / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        shutil.copy(path, elsewhere / path.name)
        path.unlink()
        path.symlink_to(elsewhere / path.name if target is None else target)

    return apply


def cut(share):
    def apply(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return apply


def sparse(folder):
    """A header that promises 400 GB, in a file that claims to have them."""
    header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * 10**11)
