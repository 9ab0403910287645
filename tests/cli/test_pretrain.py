"""`orthossl pretrain` and `scripts/pretrain.py`: the whole way from images to an encoder, and every bad input."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from hf_orthossl.cli import main
from hf_orthossl.encoders import load_encoder
from hf_orthossl.methods import METHODS
from hf_orthossl.modeling import SSLModel
from hf_orthossl.training.callbacks.reporting import read_history

ROOT = Path(__file__).parents[2]
SMALL = (
    "--backbone_config channels=[8,8,16,16] --per_device_train_batch_size 32 --max_steps 2 --knn_images 100 --use_cpu"
)


def pretrain(arguments, folder):
    main(["pretrain", *SMALL.split(), *arguments.split(), "--output_dir", str(folder)])


def loop(arguments, folder, monkeypatch):
    script = ROOT / "scripts" / "pretrain.py"
    argv = [str(script), *SMALL.split(), *arguments.split(), "--output_dir", str(folder)]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(script), run_name="__main__")


def refused(arguments, capsys, folder=None):
    """The one line that a bad command prints."""
    argv = arguments.split() + (["--output_dir", str(folder)] if folder else [])
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("orthossl")
    assert "Traceback" not in "".join(lines)
    return lines[-1]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    pretrain("--logging_steps 1", folder)
    return folder


def test_what_a_run_leaves(run_folder):
    encoder = {path.name for path in (run_folder / "encoder").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "spectra.json", "spectra.png"} <= encoder
    results = json.loads((run_folder / "results.json").read_text())
    assert {(r["task"], r["dataset"], r["split"], r["metric"]) for r in results} == {
        ("knn", "digits", "test", "top1"),
        ("knn", "digits", "test", "top5"),
    }
    assert [r["step"] for r in results] == [0, 0, "end", "end"]
    assert (run_folder / "checkpoint-2" / "model.safetensors").exists()
    card = (run_folder / "encoder" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert {"orthossl", "simclr", "so"} <= set(front["tags"])
    assert f"{results[-2]['value']:.3f}" in card


def test_the_exported_encoder_is_the_trained_one(run_folder):
    trained = SSLModel.from_pretrained(run_folder / "checkpoint-2").encoder.eval()
    exported = load_encoder(str(run_folder), pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(exported(images), trained(images))


def test_the_cards_timm_snippet_runs(run_folder, tmp_path, monkeypatch):
    card = (run_folder / "encoder" / "README.md").read_text()
    snippet = card.split("```python")[1].split("```")[0]
    for name in ("first.jpg", "second.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    location = str(run_folder / "encoder")
    assert location in snippet
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(snippet, scope)
    assert scope["representations"].shape == (2, 16)
    assert scope["similarity"].item() == pytest.approx(1, abs=1e-5)


def test_the_runs_config_starts_the_same_run(tmp_path):
    options = "--logging_steps 1 --knn_images 0 --lr_scheduler_type constant --optim adamw_torch --save_strategy epoch"
    pretrain(f"{options} --method byol --gamma 1e-3 --whitening 1e-3", tmp_path / "one")
    main(["pretrain", "--config", str(tmp_path / "one" / "config.yaml"), "--output_dir", str(tmp_path / "other")])
    one, other = (read_history(tmp_path / name) for name in ("one", "other"))
    for part in ("loss", "whitening", "orthogonality", "learning_rate"):
        assert one[1][part] == other[1][part]


def test_both_commands_give_the_same_losses(run_folder, tmp_path, monkeypatch):
    loop("--logging_steps 1", tmp_path, monkeypatch)
    one, other = (read_history(folder)[:2] for folder in (run_folder, tmp_path))
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in other], rel=1e-5)
    assert (tmp_path / "encoder" / "README.md").exists()


def test_a_folder_with_a_run_is_refused_until_told(run_folder, capsys):
    line = refused("pretrain", capsys, run_folder)
    assert "holds another run: pass --resume to continue it, --overwrite_output to replace it" in line
    assert (run_folder / "checkpoint-2").exists()


def test_overwrite_deletes_nothing_if_the_new_command_is_wrong(run_folder, capsys):
    before = sorted(run_folder.rglob("*"))
    refused("pretrain --overwrite_output --dataset /no/such", capsys, run_folder)
    refused("pretrain --overwrite_output --views cifar-multicrop", capsys, run_folder)
    refused("pretrain --overwrite_output --image_size 64", capsys, run_folder)
    refused("pretrain --overwrite_output --per_device_train_batch_size 5000", capsys, run_folder)
    assert sorted(run_folder.rglob("*")) == before


def test_overwrite_brings_the_run_back_if_training_refuses_to_begin(run_folder, capsys):
    """Also when only the trainer finds out, after the new run's settings were written."""
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    arguments = f"pretrain {SMALL} --overwrite_output --lr_scheduler_type cosine_warmup_with_min_lr"
    assert "min_lr" in refused(arguments, capsys, run_folder)
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


def test_overwrite_removes_the_run_with_the_first_step(tmp_path, monkeypatch):
    pretrain("--max_steps 1 --knn_images 0", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    ends, there = SSLModel.end_step, []

    def look(self, *arguments):
        there.append({path.name for path in tmp_path.iterdir()})
        ends(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(SSLModel, "end_step", look)
    with pytest.raises(SystemExit):
        pretrain("--max_steps 2 --knn_images 0 --overwrite_output --seed 7", tmp_path)
    assert there == [{".running", "config.yaml", "history.jsonl", "notes.txt"}]
    assert "seed: 7" in (tmp_path / "config.yaml").read_text()


def test_overwrite_clears_our_runs_only(capsys, tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "config.yaml").write_text("mine: true")
    assert "no run of orthossl wrote" in refused("pretrain --overwrite_output", capsys, tmp_path)
    assert (tmp_path / "encoder").is_dir()


def test_a_run_that_never_began_does_not_block_its_folder(capsys, tmp_path):
    line = refused("pretrain --per_device_train_batch_size 5000 --knn_images 0", capsys, tmp_path)
    assert "a step needs 5000" in line
    pretrain("--max_steps 1 --knn_images 0", tmp_path)


def test_resume_cannot_change_the_run(run_folder, capsys):
    config = (run_folder / "config.yaml").read_text()
    line = refused("pretrain --resume --method byol", capsys, run_folder)
    assert "method is 'byol' and the run in" in line
    assert "was started with 'simclr'" in line
    assert (run_folder / "config.yaml").read_text() == config


def test_resume_is_compared_with_the_run_that_the_file_names(run_folder, capsys, tmp_path):
    """Not with the one in the default folder, of which it knows nothing."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: {run_folder}\nmethod: byol\nbackbone_config: {{channels: [8, 8, 16, 16]}}\n")
    assert f"method is 'byol' and the run in {run_folder}" in refused(f"pretrain --config {path} --resume", capsys)


def test_resume_needs_no_other_option(tmp_path):
    pretrain("--max_steps 1 --knn_images 0 --method byol", tmp_path)
    main(["pretrain", "--resume", "--max_steps", "2", "--output_dir", str(tmp_path)])
    assert SSLModel.from_pretrained(tmp_path / "checkpoint-2").config.method == "byol"


def test_overwrite_removes_only_what_a_run_leaves(tmp_path):
    pretrain("--max_steps 1 --knn_images 0", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    pretrain("--max_steps 2 --knn_images 0 --overwrite_output", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "checkpoint-1").exists()


def test_resume_continues(tmp_path):
    pretrain("--max_steps 1 --knn_images 0", tmp_path)
    pretrain("--max_steps 2 --knn_images 0 --resume", tmp_path)
    steps = [entry["step"] for entry in read_history(tmp_path)]
    assert steps == [1, 1, 1, 2, 2]  # each part ends with a summary of itself, and the second begins with its changes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("pretrian", "unknown command 'pretrian': did you mean 'pretrain'?"),
        ("pretrain --backbone resnet10tt", "resnet10t"),
        ("pretrain --method simlcr", "did you mean 'simclr'?"),
        ("pretrain --views digit", "did you mean 'digits'?"),
        ("pretrain --regularizer srp", "did you mean 'srip'?"),
        ("pretrain --gama 1e-4", "unknown option '--gama': did you mean '--gamma'?"),
        ("pretrain --gamma -1e-6", "gamma is -1e-06"),
        ("pretrain --gamma much", "--gamma is 'much': it must be a number"),
        ("pretrain --per_device_train_batch_size 1", "per_device_train_batch_size is 1"),
        ("pretrain --image_column picture", "picture"),
        ("pretrain --dataset /no/such/folder", "/no/such/folder"),
        ("pretrain --split tset", "'tset'"),
        ("pretrain --image_size 64", "smaller"),
        ("pretrain --method_config temperature=0", "temperature is 0.0: it must be above 0"),
        ("pretrain --method_config temprature=1", "did you mean 'temperature'?"),
        ("pretrain --method_config a=[1", "not valid YAML"),
        ("pretrain --resume_from_checkpoint /x", "pass --resume"),
        ("pretrain --method nnclr --method_config queue_size=100", "queue_size 100 is not a multiple of the 256"),
        ("pretrain --config /no/such.yaml", "/no/such.yaml: no such file"),
        ("pretrain --resume --overwrite_output", "exclude each other"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys, tmp_path):
    folder = tmp_path / "run"
    assert said in refused(arguments, capsys, None if arguments == "pretrian" else folder)
    assert not (folder / "encoder").exists()


def test_empty_folder(capsys, tmp_path):
    (tmp_path / "images").mkdir()
    assert "images" in refused(f"pretrain --dataset {tmp_path / 'images'}", capsys, tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gama: 1e-4", "unknown option 'gama': did you mean 'gamma'?"),
        ("method: {temperature: 0.5}", "no 'name'"),
        ("method: {name: simclr, temprature: 0.5}", "did you mean 'temperature'?"),
        ("- a\n- b", "must be a mapping"),
        ("gamma: 1e-4\nseed: 1\ngamma: 1e-3", "gamma is given twice, again in line 3"),
        ("method: no", "method is False: it must be text, and YAML reads words such as no"),
        ("seed: 1.5", "recipe.yaml: seed is 1.5: it must be a whole number"),
        ("gamma: null\nseed: null", "seed is None: it must be a whole number"),
        ("a: [", "not valid YAML"),
        ("per_device_train_batch_size: [32]", "must be a single value"),
        ("max_steps: {a: 1}", "must be a single value"),
        ("method: {name: [byol]}", "must be a single value"),
    ],
)
def test_bad_config_files(text, said, capsys, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert said in refused(f"pretrain --config {path}", capsys, tmp_path / "run")


def test_flags_override_the_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "method: {name: byol, hidden_dim: 32, output_dim: 16}\ngamma: 1e-3\nlearning_rate: 1e-2\nknn_images: 0\n"
    )
    folder = tmp_path / "run"
    pretrain(f"--config {path} --gamma 1e-4 --method_config output_dim=8 --knn_images 0 --max_steps 1", folder)
    config = SSLModel.from_pretrained(folder / "checkpoint-1").config
    assert (config.method, config.gamma) == ("byol", 1e-4)
    assert (config.method_config["hidden_dim"], config.method_config["output_dim"]) == (32, 8)


def test_unlabelled_flat_folder(tmp_path):
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for i in range(40):
        Image.new("L", (32, 32), color=6 * i).save(images / f"{i}.png")
    pretrain(f"--dataset {images} --views cifar-weak --max_steps 1", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == []


def test_real_cifar10_through_the_command_line(cifar10, tmp_path):
    pretrain(f"--dataset {cifar10} --split train[:200] --max_steps 1 --method byol --regularizer srip", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results[0]["split"] == "test"
    assert "cifar-asym" in (tmp_path / "config.yaml").read_text()


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--dataset", "--method_config", "--regularizer", "--gamma", "--views", "--resume", "--config"):
        assert option in text
    assert "(default: digits)" in text
    assert "(default: None)" not in text


def test_methods_table_and_json(capsys):
    main(["methods"])
    table = capsys.readouterr().out
    main(["methods", "--json"])
    everything = json.loads(capsys.readouterr().out)
    assert [entry["method"] for entry in everything["methods"]] == list(METHODS)
    for entry in everything["methods"]:
        assert entry["method"] in table
        assert entry["hyper_parameters"]
    regularizers = {entry["regularizer"]: entry for entry in everything["regularizers"]}
    assert {"so", "srip"} <= set(regularizers)
    assert (regularizers["srip"]["gamma"], regularizers["srip"]["options"]) == ("0.0001", "iterations")
    assert "resnet18_cifar" in everything["backbones"]
