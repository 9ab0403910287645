"""`orthossl evaluate`: fine-tuning and the transfer suite from the command line."""

import json

import pytest
import torch

from hf_orthossl import export_encoder, load_encoder
from hf_orthossl.cli import main
from hf_orthossl.data import load_source

QUICK = ["--image_size", "32", "--cache", "none", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    encoder = load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16])
    return str(export_encoder(encoder, tmp_path_factory.mktemp("run") / "encoder"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with two sets of the suite, the second of which has no test split yet."""
    root = tmp_path_factory.mktemp("sets")
    for name in ("cifar10", "flowers102"):
        for split in ("train", "test") if name == "cifar10" else ("train",):
            rows = load_source("digits", split=f"{split}[:120]").dataset
            (root / name).mkdir(exist_ok=True)
            rows.to_parquet(root / name / f"{split}-00000-of-00001.parquet")
    return root


def read(folder):
    return json.loads((folder / "results.json").read_text())


def test_fine_tuning_beside_a_probe(folder, tmp_path, capsys):
    options = ["--train_split", "train[:150]", "--finetune_epochs", "1", "--seeds", "2", "--mixup", "0.2"]
    main(["evaluate", folder, "--task", "finetune", "knn", "--output_dir", str(tmp_path), *QUICK, *options])
    results = read(tmp_path)
    tuned = [r for r in results if r["task"] == "finetune"]
    assert [(r["metric"], r["seed"], r["mixup"]) for r in tuned] == [
        ("top1", 0, 0.2), ("top5", 0, 0.2), ("top1", 1, 0.2), ("top5", 1, 0.2),
    ]  # fmt: skip
    assert {r["model"] for r in results} == {folder}
    assert sum(r["task"] == "knn" for r in results) == 2
    lines = capsys.readouterr().out.splitlines()
    assert sum(" finetune " in line for line in lines) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_transfer_goes_on_after_a_failure_and_is_resumed(folder, sets, tmp_path, capsys):
    command = ["evaluate", folder, "--task", "transfer", "--output_dir", str(tmp_path), *QUICK, "--transfer_knn"]
    command += ["--transfer_data", str(sets), "--transfer_sets", "flowers102", "cifar10"]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 1
    shown = capsys.readouterr()
    assert "1 transfer sets failed (flowers102)" in shown.err
    assert "--test_split" in shown.out
    assert [(r["set"], r["probe"]) for r in read(tmp_path)] == [("cifar10", "linear"), ("cifar10", "knn")]

    rows = load_source("digits", split="test[:100]").dataset
    rows.to_parquet(sets / "flowers102" / "test-00000-of-00001.parquet")
    main(command)
    shown = capsys.readouterr().out
    assert "read from" in shown
    assert "flowers102 (mean per class)" in shown
    assert "read from the folder" in shown
    results = read(tmp_path)
    assert [r["set"] for r in results] == ["flowers102"] * 2 + ["cifar10"] * 2

    # Another task in the same folder leaves them where they are.
    main(["evaluate", folder, "--task", "knn", "--output_dir", str(tmp_path), *QUICK, "--train_split", "train[:50]"])
    assert [r["task"] for r in read(tmp_path)] == ["knn"] * 2 + ["transfer"] * 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "fintune"], "did you mean 'finetune'"),
        (["--task", "finetune", "--layer_decay", "2"], "layer_decay is 2"),
        (["--task", "finetune", "--mixup", "-1"], "mixup is -1"),
        (["--task", "transfer", "--transfer_sets", "food11"], "did you mean 'food101'"),
        (["--task", "transfer", "--transfer_data", "/no/where"], "transfer_data /no/where"),
    ],
)
def test_what_cannot_be_measured(folder, arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", folder, "--output_dir", str(tmp_path), *QUICK, *arguments])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_broken_results_file_is_told_before_anything_is_measured(folder, tmp_path, capsys):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", folder, "--output_dir", str(tmp_path), *QUICK])
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert "results.json is not JSON" in shown.err
    assert "data " not in shown.out
