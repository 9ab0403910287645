"""`scripts/theory.py` at its smallest: it trains, compares, and writes its rows, table and figure."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def theory(monkeypatch, tmp_path):
    def run(arguments):
        monkeypatch.syspath_prepend(str(SCRIPTS))
        monkeypatch.setattr(sys, "argv", ["theory.py", *arguments.split(), "--output_dir", str(tmp_path)])
        runpy.run_path(str(SCRIPTS / "theory.py"), run_name="__main__")
        return tmp_path

    return run


def test_training(theory):
    folder = theory("training --losses spectral normalized --views strong --gamma 0 --images 64 --batch 32 --steps 3")
    rows = json.loads((folder / "training.json").read_text())
    assert [row["loss"] for row in rows] == ["spectral", "normalized"]
    for row in rows:
        assert len(row["predicted"]) == len(row["digits"]["measured"]) == row["rank"] <= 64
        assert all(row[kind]["r2"] <= 1 for kind in ("digits", "gaussian"))
    for kind in ("digits", "gaussian"):  # normalized features have no scale: theirs are shares
        assert sum(rows[1][kind]["measured"]) == pytest.approx(1, abs=1e-3)
    assert (folder / "training.png").stat().st_size > 10_000
    assert len((folder / "training.md").read_text().splitlines()) == 4


def test_ranking(theory):
    folder = theory("ranking --images 64 --batch 16 --steps 2")
    rows = json.loads((folder / "ranking.json").read_text())
    assert len(rows) == 6
    assert all(row["representation"] >= 1 and row["surviving"] >= 1 for row in rows)
    assert (folder / "ranking.md").read_text().count("Spearman") == 4


def test_comparison_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from landscape_checks.training import compare

    predicted, found = torch.tensor([3.0, 1.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 0.01, 7.0])
    row = compare(predicted, {"digits": found}, rank=3, loss="spectral")
    # Squares of what is left over the spread about the mean, 1.0033, of the three in which views vary.
    assert row["digits"]["r2"] == pytest.approx(1 - 1.0001 / (0.9967**2 + 0.0033**2 + 0.9933**2), abs=1e-3)
    assert (row["predicted_alive"], row["digits"]["alive"]) == (2, 2)
