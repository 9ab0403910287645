"""Results pushed to an encoder's repository on a real server on loopback, and read back from it."""

import json

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, hf_hub_download, parse_eval_result_entries

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.cli import main
from hf_orthossl.evaluation import Result
from hf_orthossl.hub import publish_encoder, publish_results, write_encoder_folder

REPO = "tester/measured"
BEFORE = Result("knn", "uoft-cs/cifar10", "test", "top1", 0.5, {"step": "end", "k": 20})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    channels = {"channels": [8, 8, 16, 16]}
    model = SSLModel(SSLConfig("resnet10t", image_size=32, backbone_config=channels, regularizer="so"))
    return write_encoder_folder(model, tmp_path_factory.mktemp("run") / "encoder", source=None, results=[BEFORE])


def there(name):
    with open(hf_hub_download(REPO, name)) as file:
        return file.read()


def test_results_join_those_that_are_there_and_replace_the_same(folder, hub_here):
    publish_encoder(folder, REPO)
    linear = [
        Result(
            "linear", "uoft-cs/cifar10", "test", "top1", value,
            {"model": "/secret/run", "protocol": "sgd", "seed": seed, "interval": [0.1, 0.9], "notes": ["/secret/x"]},
        )
        for seed, value in enumerate((0.7, 0.8))
    ]  # fmt: skip
    local = Result("transfer", "/secret/flowers", "test", "mean_per_class", 0.3, {"set": "/secret/flowers", "run": "0"})
    first = publish_results(REPO, [*linear, local])
    assert [result.value for result in first.results] == [0.5, 0.7, 0.8, 0.3]
    again = publish_results(REPO, [Result("knn", "uoft-cs/cifar10", "test", "top1", 0.6, {"step": "end", "k": 20})])
    assert [result.value for result in again.results] == [0.7, 0.8, 0.3, 0.6]
    assert [entry["value"] for entry in json.loads(there("results.json"))] == [0.7, 0.8, 0.3, 0.6]

    entries = parse_eval_result_entries(yaml.safe_load(there(".eval_results/uoft_cs_cifar10-linear.yaml")))
    assert [(entry.dataset_id, entry.value) for entry in entries] == [("uoft-cs/cifar10", pytest.approx(0.75))]
    card = ModelCard(there("README.md"))
    found = [(r.dataset_type, r.metric_value) for r in card.data.eval_results]
    assert sorted(found) == [
        ("flowers", 0.3), ("uoft-cs/cifar10", 0.6), ("uoft-cs/cifar10", pytest.approx(0.75)),
    ]  # fmt: skip
    files = HfApi().list_repo_files(REPO)
    assert {"model.safetensors", "config.json"} <= set(files)
    for name in files:
        if name.endswith((".md", ".json", ".yaml")):
            assert "secret" not in there(name), name


def test_from_the_command_line_by_hub_id(folder, hub_here, tmp_path, capsys):
    publish_encoder(folder, REPO)
    command = ["evaluate", REPO, "--task", "knn", "--k", "5", "--train_split", "train[:100]", "--cache", "none"]
    main([*command, "--push_to_hub", "--output_dir", str(tmp_path)])
    assert "results, read back" in capsys.readouterr().out
    pushed = json.loads(there("results.json"))
    measured = json.loads((tmp_path / "results.json").read_text())
    assert len(pushed) == 1 + 2
    assert [entry["value"] for entry in pushed[1:]] == [entry["value"] for entry in measured]
    assert "digits" in there("README.md")


def test_what_cannot_be_pushed_is_told_before_anything_is_measured(folder, hub_here, tmp_path, capsys):
    for arguments, said in (
        ([str(folder)], "is not a Hub id"),
        (["tester/nowhere"], "does not exist: publish the encoder"),
        ([REPO, "--untrained"], "exclude each other"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate", *arguments, "--push_to_hub", "--output_dir", str(tmp_path)])
        assert stopped.value.code == 2
        shown = capsys.readouterr()
        assert said in shown.err
        assert "data " not in shown.out
