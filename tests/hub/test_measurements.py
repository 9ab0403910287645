"""Results as the Hub's own files: read back by huggingface_hub, and only where the Hub has the data."""

import pytest
import yaml
from card_folders import encoder_folder
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_orthossl.evaluation import Result
from hf_orthossl.hub import eval_result_files, render_card
from hf_orthossl.hub.client import hub_id, public_name

RESULTS = [
    Result("knn", "uoft-cs/cifar10", "test", "top1", 0.25, {"k": 20, "step": 0}),
    Result("knn", "uoft-cs/cifar10", "test", "top1", 0.75, {"k": 20, "step": "end"}),
    Result("knn", "uoft-cs/cifar10", "test", "top5", 0.95, {"k": 20, "step": "end"}),
    Result("knn", "uoft-cs/cifar10", "test", "top1", 0.71, {"k": 200, "temperature": None}),
    Result("linear", "uoft-cs/cifar10", "test", "top1", 0.8, {"seed": 0}),
    Result("linear", "uoft-cs/cifar10", "test", "top1", 0.9, {"seed": 1}),
    Result("knn", "digits", "test", "top1", 0.9, {}),
    Result("detection", "/data/secret/bccd", "test", "AP", 0.37, {}),
]


@pytest.fixture
def folder(tmp_path):
    return encoder_folder(tmp_path, results=RESULTS)


def test_eval_results_are_read_back(folder):
    files = eval_result_files(folder, repo_id="user/name")
    assert set(files) == {".eval_results/uoft_cs_cifar10-knn.yaml", ".eval_results/uoft_cs_cifar10-linear.yaml"}
    entries = [entry for text in files.values() for entry in parse_eval_result_entries(yaml.safe_load(text))]
    assert {entry.dataset_id for entry in entries} == {"uoft-cs/cifar10"}
    assert [entry.value for entry in entries] == [0.75, 0.95, 0.71, pytest.approx(0.85)]
    assert len({entry.task_id for entry in entries}) == 4
    assert entries[2].notes == "split = test, k = 200, plain vote"
    assert all(entry.source_url.endswith("/user/name") for entry in entries)


def test_the_model_index_is_read_back(folder):
    card = ModelCard(render_card(folder))
    found = {(r.task_type, r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found["image-classification", "digits", "accuracy"] == 0.9
    assert found["object-detection", "bccd", "AP"] == 0.37
    assert len(card.data.eval_results) == 6, "none from before training; two seeds are one"
    assert "secret" not in str(card)


def test_file_names_are_ours_whatever_a_task_is_called(tmp_path):
    hostile = [Result("../../x", "user/data", "test", "../top1", 0.5), Result("", "user/data", "a\nb: c", "é", 0.5)]
    files = eval_result_files(encoder_folder(tmp_path, results=hostile), repo_id="user/name")
    assert set(files) == {".eval_results/user_data-x.yaml", ".eval_results/user_data-unnamed.yaml"}
    for text in files.values():
        assert [set(entry) for entry in yaml.safe_load(text)] == [{"dataset", "value", "source", "notes"}]


def test_without_results_there_are_no_files(tmp_path):
    folder = encoder_folder(tmp_path)
    (folder / "results.json").unlink()
    assert eval_result_files(folder, repo_id="user/name") == {}


@pytest.mark.parametrize(
    ("name", "expected", "public"),
    [
        ("uoft-cs/cifar10", "uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("owner/name@v1", "owner/name", "owner/name"),
        ("digits", None, "digits"),
        ("/home/me/pictures/", None, "pictures"),
        ("./data/images", None, "images"),
        ("local-dir:runs/encoder", None, "encoder"),
        ("a/b/c", None, "c"),
        ("C:\\Users\\me\\images", None, "images"),
        ("../..", None, ".."),
        ("owner/na me", None, "na me"),
    ],
)
def test_what_a_name_means(name, expected, public):
    assert hub_id(name) == expected
    assert public_name(name) == public


def test_a_folder_here_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "data" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("data/images") is None
    assert public_name("data/images") == "images"
