"""results.json: what is written is read back, and nothing else gets in."""

import json

import pytest

from hf_orthossl.evaluation import Result, read_results, write_results

GOOD = {"task": "knn", "dataset": "digits", "split": "test", "metric": "top1", "value": 0.5}


def test_read_gives_back_what_was_written(tmp_path):
    results = [
        Result("knn", "digits", "test", "top1", 0.5, {"k": 20, "temperature": None, "step": "end"}),
        Result("linear", "a/b", "test", "top1", 1.0, {"interval": [0.9, 1.0], "per_class": {"a": 1.0, "b": 1.0}}),
    ]
    assert read_results(write_results(tmp_path / "results.json", results)) == results


def test_a_thousand_classes_are_read(tmp_path):
    results = [Result("linear", "a/b", "test", "top1", 0.5, {"per_class": {f"class {i}": 0.5 for i in range(1000)}})]
    assert read_results(write_results(tmp_path / "results.json", results)) == results


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (json.dumps(GOOD), "must contain a list"),
        (json.dumps([1]), "result 0 must be an object"),
        (json.dumps([GOOD, {**GOOD, "value": "0.5"}]), "result 1: value must be a finite number"),
        (json.dumps([{**GOOD, "value": True}]), "value must be a finite number"),
        (json.dumps([{**GOOD, "value": float("nan")}]), "value must be a finite number"),
        (json.dumps([GOOD]).replace("0.5", "1e999"), "value must be a finite number"),
        (json.dumps([GOOD]).replace("0.5", "9" * 400), "value must be a finite number"),
        (json.dumps([{**GOOD, "task": None}]), "task must be text"),
        (json.dumps([{**GOOD, "dataset": "x" * 1001}]), "dataset must be text"),
        (json.dumps([{k: v for k, v in GOOD.items() if k != "metric"}]), "has no metric"),
        (json.dumps([{**GOOD, "k": float("inf")}]), "k must hold finite numbers"),
        (json.dumps([{**GOOD, "deep": [[[[[1]]]]]}]), "deep must hold"),
        (json.dumps([{**GOOD, "x" * 1001: 1}]), "must hold finite numbers"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_results(path)
    assert len(str(caught.value)) < 400


def test_too_large_or_missing_files_are_refused(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_results(path)
    with path.open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    with pytest.raises(ValueError, match="too large"):
        read_results(path)


def test_one_key_for_one_measurement():
    first = Result("knn", "Owner/Data", "test", "top1", 0.5, {"k": 20, "temperature": None, "seed": 0, "step": "end"})
    same = Result("knn", "owner/data", "test", "top1", 0.9, {"temperature": None, "k": 20.0, "interval": [0.8, 1.0]})
    private = Result("knn", "owner/data", "test", "top1", 0.9, {"temperature": None, "k": 20, "model": "a", "run": "b"})
    assert first.key == same.key == private.key
    for changes in ({"k": 21}, {"k": 20, "temperature": 0.07}, {"k": 20, "temperature": None, "step": 100}):
        other = Result("knn", "owner/data", "test", "top1", 0.5, changes)
        assert other.key != first.key


def test_a_flat_object_keeps_an_entry_named_protocol(tmp_path):
    results = [Result("linear", "a/b", "test", "top1", 0.5, {"protocol": "sgd", "epochs": 100})]
    path = write_results(tmp_path / "results.json", results)
    assert json.loads(path.read_text())[0]["protocol"] == "sgd"
    assert read_results(path) == results
