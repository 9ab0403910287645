"""`scripts/benchmark.py` at its smallest: it runs, prints a row per contender and writes its JSON."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def benchmark(arguments, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments.split()])
    runpy.run_path(str(SCRIPTS / "benchmark.py"), run_name="__main__")


def test_penalty(monkeypatch, tmp_path, capsys):
    benchmark(f"penalty --models resnet10t --repeats 1 --json {tmp_path / 'out.json'}", monkeypatch)
    rows = json.loads((tmp_path / "out.json").read_text())["penalty"]
    assert [row["penalty"] for row in rows] == ["so", "srip"]
    assert all(row["times"]["ours"]["ratio"] > 0 and row["extra_bytes"]["ours"] > 0 for row in rows)
    assert "resnet10t" in capsys.readouterr().out


def test_methods(monkeypatch, tmp_path):
    arguments = f"methods --methods nnclr --images 64 --batch 16 --steps 2 --json {tmp_path / 'out.json'}"
    benchmark(arguments, monkeypatch)
    rows = json.loads((tmp_path / "out.json").read_text())["methods"]
    assert [row["regularizer"] for row in rows] == [None, "so"]
    assert rows[0]["knn_before"] == rows[1]["knn_before"]
    assert all(0 <= row["knn_after"] <= 1 and row["effective_rank"] >= 1 for row in rows)


def test_unknown_model_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark("penalty --models resnet10x", monkeypatch)
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("--models: timm has no 'resnet10x'")


def test_spectra(monkeypatch, tmp_path, capsys):
    arguments = f"spectra --backbone resnet10t --images 16 --batch 8 --repeats 1 --json {tmp_path / 'out.json'}"
    benchmark(arguments, monkeypatch)
    (row,) = json.loads((tmp_path / "out.json").read_text())["spectra"]
    assert set(row["times"]) == {"forward", "features", "eigenvalues", "weights"}
    assert row["times"]["features"]["ratio"] > 0
    assert row["peak_bytes"] > 0
    assert "the forward pass" in capsys.readouterr().out
