"""`orthossl evaluate`: one table and one file, and one line for what cannot be measured."""

import json

import pytest
import torch

from hf_orthossl import export_encoder, load_encoder
from hf_orthossl.cli import main

QUICK = ["--image_size", "32", "--cache", "none", "--train_split", "train[:200]", "--epochs", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return export_encoder(
        load_encoder("resnet10t", image_size=32, channels=[8, 8, 16, 16]), tmp_path_factory.mktemp("run") / "encoder"
    )


def evaluate(tmp_path, capsys, *arguments):
    main(["evaluate", *arguments, "--output_dir", str(tmp_path), *QUICK])
    return capsys.readouterr().out, json.loads((tmp_path / "results.json").read_text())


def test_a_run_folder_an_encoder_folder_and_worse_labels(folder, tmp_path, capsys):
    shown, results = evaluate(
        tmp_path, capsys, str(folder.parent), str(folder), "--seeds", "2", "--label_noise", "0.3", "--imbalance", "5"
    )
    assert {result["model"] for result in results} == {str(folder.parent), str(folder)}
    # Per model: one vote, and two seeds of each of three linear probes, each with top-1 and top-5.
    assert len(results) == 2 * 2 * (1 + 3 * 2)
    first, second = (
        [result["value"] for result in results if result["model"] == str(name)] for name in (folder.parent, folder)
    )
    assert first == second
    assert "label noise 0.3" in shown
    assert "(2 seeds)" in shown
    assert str(tmp_path / "results.json") in shown
    assert all(len(line) < 200 for line in shown.splitlines())


def test_untrained_weights_differ_from_the_folders(folder, tmp_path, capsys):
    _, trained = evaluate(tmp_path, capsys, str(folder), "--task", "knn", "--k", "5")
    shown, untrained = evaluate(
        tmp_path, capsys, str(folder), "--task", "knn", "--k", "5", "--untrained", "--seed", "9"
    )
    assert "(untrained)" in shown
    assert [r["value"] for r in trained] != [r["value"] for r in untrained]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "MODEL"),
        (["no_such_net"], "no_such_net"),
        (["FOLDER", "--task", "kn"], "did you mean 'knn'"),
        (["FOLDER", "--protocol", "sdg"], "did you mean 'sgd'"),
        (["FOLDER", "--seeds", "0"], "seeds is 0"),
        (["FOLDER", "--test_split", "tst"], "did you mean 'test'"),
        (["FOLDER", "--label_noise", "2"], "label_noise is 2"),
        (["FOLDER", "--device", "gpu"], "device 'gpu'"),
    ],
)
def test_what_cannot_be_measured(folder, arguments, named, tmp_path, capsys):
    arguments = [str(folder) if word == "FOLDER" else word for word in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *arguments, "--output_dir", str(tmp_path), *QUICK])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("orthossl evaluate: error:")
    assert named in error
    assert not (tmp_path / "results.json").exists()
