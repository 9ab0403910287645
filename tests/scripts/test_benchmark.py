"""`scripts/benchmark.py` at its smallest: it runs, prints a row per contender and writes its JSON."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hf_orthossl import SSLConfig, SSLModel

SCRIPTS = Path(__file__).parents[2] / "scripts"


def benchmark(arguments, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments.split()])
    runpy.run_path(str(SCRIPTS / "benchmark.py"), run_name="__main__")


def test_penalty(monkeypatch, tmp_path, capsys):
    benchmark(f"penalty --models resnet10t --repeats 1 --json {tmp_path / 'out.json'}", monkeypatch)
    rows = json.loads((tmp_path / "out.json").read_text())["penalty"]
    speed, memory, error = ([row for row in rows if row["table"] == table] for table in ("speed", "memory", "error"))
    assert [(row["penalty"], row["target"]) for row in speed if "target" in row] == [("so", 0.6), ("srip", 0.2)]
    assert all(row["met"] == (row["ratio"] <= row["target"]) for row in speed if "target" in row)
    assert {row["penalty"] for row in speed if row["way"] == "decoupled"} == {"so"}
    # The largest matrix is 4608 × 512; a small encoder keeps within twice of it in every way.
    assert {round(1e6 * row["target"]) for row in memory if "target" in row} == {4 * (2 * 4608 * 512 + 512**2)}
    assert all(row["met"] for row in memory if "target" in row)
    # A gradient of rank 2k is far from one of full rank, the less so the more probes.
    assert [row["probes"] for row in error] == [1, 4, 16]
    assert error[0]["gradient_error"] > 2 * error[2]["gradient_error"] > 1
    assert all(row["value_error"] < 0.2 for row in error)
    printed = capsys.readouterr().out
    assert sum(line.endswith((": met", ": MISSED")) for line in printed.splitlines()) == len(
        [row for row in rows if "target" in row]
    )


def test_updates(monkeypatch, tmp_path, capsys):
    """Muon keeps one buffer of a matrix where AdamW and AdaMuon keep two."""
    benchmark(f"updates --models test_vit --repeats 1 --json {tmp_path / 'out.json'}", monkeypatch)
    rows = {row["remedy"]: row for row in json.loads((tmp_path / "out.json").read_text())["updates"]}
    assert list(rows) == [
        *("AdamW", "AdamW, SO in the loss", "AdamW, SO decoupled", "AdamW, orthonormal weights", "Muon", "AdaMuon"),
    ]
    assert rows["AdamW"]["ratio"] == 1
    assert all(row["median_ms"] > 0 and row["bytes"] > 0 for row in rows.values())
    state = {name: row["state_bytes"] for name, row in rows.items()}
    assert 0.5 * state["AdamW"] < state["Muon"] < 0.8 * state["AdamW"]
    assert state["AdaMuon"] == pytest.approx(state["AdamW"], rel=1e-3)
    assert sum(line.startswith("test_vit") for line in capsys.readouterr().out.splitlines()) == len(rows)


def test_masking(monkeypatch, tmp_path, capsys):
    sizes = "--method_config decoder_dim=32 decoder_depth=1 decoder_heads=2"
    arguments = f"masking --backbone test_vit --image_size 64 --batch 32 --repeats 1 {sizes}"
    benchmark(f"{arguments} --mask_ratios 0.5 0.75 --json {tmp_path / 'out.json'}", monkeypatch)
    none, half, most = json.loads((tmp_path / "out.json").read_text())["masking"]
    assert [row["encoded"] for row in (none, half, most)] == [15, 8, 4]
    assert none["peak_bytes"] > half["peak_bytes"] > most["peak_bytes"]
    assert most["memory_ratio"] == most["peak_bytes"] / none["peak_bytes"]
    assert "4 of 16" in capsys.readouterr().out


def test_embed(monkeypatch, tmp_path, capsys):
    arguments = f"embed --backbone test_vit --images 40 80 --batch 16 --repeats 1 --json {tmp_path / 'out.json'}"
    benchmark(arguments, monkeypatch)
    timed, other = json.loads((tmp_path / "out.json").read_text())["embed"]
    assert timed["times"]["forward"]["ratio"] == 1
    assert timed["times"]["embed"]["median_ms"] > 0
    assert (timed["images"], other["images"], "times" in other) == (40, 80, False)
    assert "embed, from the data set to Parquet" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark("embed --images 5000", monkeypatch)


def test_methods(monkeypatch, tmp_path):
    arguments = f"methods --methods nnclr --images 64 --batch 16 --steps 2 --json {tmp_path / 'out.json'}"
    benchmark(arguments, monkeypatch)
    rows = json.loads((tmp_path / "out.json").read_text())["methods"]
    arms = [(row["method"], row["regularizer"]) for row in rows]
    assert arms == [("untrained", "none"), ("nnclr", "none"), ("nnclr", "so")]
    assert all(0 <= row["knn"] <= 1 and 0 <= row["linear"] <= 1 and row["effective_rank"] >= 1 for row in rows)


def test_distillation(monkeypatch, tmp_path, capsys):
    """The student is narrower than its teacher, and both students start from the same weights."""
    arguments = "distillation --images 64 --batch 16 --teacher_steps 2 --steps 2 --seeds 0 --targets pooled relational"
    student = '--student_config {"channels":[8,8,16,16]}'
    benchmark(f"{arguments} {student} --json {tmp_path / 'out.json'}", monkeypatch)
    rows = json.loads((tmp_path / "out.json").read_text())["distillation"]
    students = ["student untrained", "student alone", "student distilled, pooled", "student distilled, relational"]
    assert [row["arm"] for row in rows] == ["teacher", *students]
    assert all(0 <= row["knn"] <= 1 and 0 <= row["linear"] <= 1 for row in rows)
    assert all(row["effective_rank"] <= 16 for row in rows[1:])
    assert "| teacher | " in capsys.readouterr().out


@pytest.mark.slow
def test_approximations(monkeypatch, tmp_path):
    """From the same weights, every way of computing SO lowers it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benchmarks import approximations

    kept = ("none", "SO", "sketched, k = 1", "lazy, every 4")
    monkeypatch.setattr(approximations, "ARMS", {name: approximations.ARMS[name] for name in kept})
    arguments = f"approximations --steps 6 --batch 4 --seeds 1 --gamma 1 --json {tmp_path / 'out.json'}"
    benchmark(arguments, monkeypatch)
    rows = json.loads((tmp_path / "out.json").read_text())["approximations"]
    assert [row["arm"] for row in rows] == list(kept)
    assert len({row["so_before"] for row in rows}) == 1
    none, so, *others = (row["so"] for row in rows)
    assert so < none
    assert all(other < none for other in others)
    assert all(0 <= row["knn"] <= 1 and row["effective_rank"] >= 1 for row in rows)


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


@pytest.mark.slow
def test_scaling(monkeypatch, tmp_path):
    """Real processes: what one method sends, a step on one and on two, and what follows for two machines."""
    arguments = "scaling --backbone resnet10t --batch 4 --repeats 1 --method simclr --methods simclr dino --nodes 1 2"
    benchmark(f"{arguments} --regularizers so --json {tmp_path / 'out.json'}", monkeypatch)
    rows = json.loads((tmp_path / "out.json").read_text())["scaling"]
    steps, traffic, extrapolated = (
        [row for row in rows if row["table"] == table] for table in ("step", "traffic", "extrapolation")
    )
    assert [(row["processes"], row["sharing"]) for row in steps] == [
        (processes, sharing) for processes in (1, 2) for sharing in (None, "whole", "shared")
    ]
    simclr = next(row for row in traffic if row["method"] == "simclr")
    model = SSLModel(SSLConfig(backbone="resnet10t", image_size=32, method="simclr"))
    assert simclr["gradient_bytes"] == 4 * sum(p.numel() for p in model.parameters())
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    # Embeddings of both views and their gradients; mean, variance and count of each batch norm at each view, and of the
    # embeddings for their spread in the log; back through a batch norm, two sums.
    widths, dim = [norm.num_features for norm in norms], model.config.method_config["output_dim"]
    floats = 2 * 2 * 4 * dim + 2 * sum(2 * width + 1 for width in widths) + 2 * dim + 1
    assert simclr["gathered_bytes"] == 4 * floats
    assert simclr["reduced_bytes"] == 4 * 2 * sum(2 * width for width in widths)
    assert {row["processes"] for row in extrapolated} == {8, 16}
    assert all(row["images_per_second"] > 0 for row in extrapolated)


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (2, 1), (8, 1), (8, 4)])
def test_extrapolation_counts_what_crosses_each_link(gpus, nodes, monkeypatch):
    """Against rings and gathers that are simulated send by send, at one byte per second."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benchmarks.extrapolation import Cluster, step_time

    cluster = Cluster(gpus_per_node=gpus, link=1.0, nic=1.0, efficiency=1.0, latency=0.0, overlap=0.0)
    size, part = 1024 * gpus * nodes, 3.0
    traffic = {"gradient_bytes": size, "gathered_bytes": part, "reduced_bytes": 0, "collectives": 5}
    terms = step_time(cluster, nodes, compute=7.0, penalty=8.0, share=0.5, traffic=traffic)
    assert terms["compute"] == 7
    assert terms["penalty"] == 4
    # Reduce and spread within the machine, each GPU with 1/gpus of the bytes to the other machines in between.
    assert terms["gradients"] == pytest.approx(_ring(size, gpus) + _ring(size / gpus, nodes))
    # Every process receives the part of each other one; those of other machines have passed a network card before.
    received = sum(part for process in range(gpus * nodes) if process != 0)
    crossed = sum(part for machine in range(1, nodes) for _ in range(gpus)) / gpus
    assert terms["gathers"] == pytest.approx(received + crossed)


def _ring(size, count):
    """Bytes that one of `count` sends in a ring all-reduce: one chunk a turn, once around to sum and once to spread."""
    turns = [turn for _ in ("sum", "spread") for turn in range(count - 1)]
    return sum(size / count for _ in turns)
