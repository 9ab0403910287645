"""`scripts/reproduce.py`: what is run, in which order, resumed and reported."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import reproduce
from reproduction import presets, runs
from reproduction.plan import Plan
from reproduction.presets import PRESETS, Arm, Experiment
from reproduction.report import agreement

from hf_orthossl.cli.parsing import parse
from hf_orthossl.comparison.statistics import paired_difference
from hf_orthossl.training.options import OPTION_CLASSES
from hf_orthossl.training.run_folder import MARK

TINY = Experiment(
    name="byol",
    title="BYOL, tiny",
    claim="a higher accuracy",
    method="byol",
    backbone="resnet10t",
    options={"image_size": 32, "method_config": ["hidden_dim=32", "output_dim=16"], "per_device_train_batch_size": 32},
    arms=[Arm("none"), Arm("so", "so", "gamma", (1e-4, 1e-3))],
    epochs=0.5,
    tuning_epochs=0.25,
    train="train[:256]",
    validation="train[256:320]",
    spectra_images=64,
)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Runs the command on the tiny experiment; its exit status."""
    monkeypatch.setitem(PRESETS, "cpu", [TINY])

    def run(*arguments):
        return reproduce.main(
            ["--dataset", "digits", "--output_dir", str(tmp_path / "runs"), "--report_dir", str(tmp_path), *arguments]
        )

    return run


def numbers(page: str, arm: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {arm} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_stopped_continued_and_reported(tiny, tmp_path, capsys):
    # Stopped at once, wherever that is; the same command goes on.
    assert tiny("--seeds", "0", "1", "--minutes", "0.0005") == 0
    assert "4 runs are left, the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "cpu").exists()
    assert tiny("--seeds", "0", "1") == 0

    root = tmp_path / "runs" / "cpu" / "byol"
    scores = {w: json.loads((root / "tuning" / f"so-{w:g}" / "tuned.json").read_text())["knn"] for w in (1e-4, 1e-3)}
    best = max(scores, key=scores.get)
    rows = json.loads((tmp_path / "cpu" / "runs.json").read_text())
    assert [(row["seed"], row["arm"]) for row in rows] == [(s, a) for s in (0, 1) for a in ("none", "so")]
    assert {row["weight"] for row in rows if row["arm"] == "so"} == {best}
    # Four steps of 32 of 256 images are half an epoch.
    assert all(row["steps"] == 4 and row["representation_dim"] == 512 for row in rows)
    assert all(row["knn_interval"][0] < row["knn"] < row["knn_interval"][1] for row in rows)

    # It is the trained weights that are measured: SO by hand of what timm loads.
    encoder = timm.create_model(f"local-dir:{root / 'so-seed1' / 'encoder'}", pretrained=True).double()
    matrices = [m.weight.detach().flatten(1) for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    grams = [W @ W.T if len(W) < W.shape[1] else W.T @ W for W in matrices]
    by_hand = sum(float((G - torch.eye(len(G))).square().sum()) for G in grams)
    assert rows[3]["so"] == pytest.approx(by_hand, rel=1e-4)

    page = (tmp_path / "cpu" / "README.md").read_text()
    knn = [100 * row["knn"] for row in rows if row["arm"] == "so"]
    assert numbers(page, "so")[1:4] == [f"{best:g}", "2", f"{np.mean(knn):.1f} ± {np.std(knn, ddof=1):.1f}"]
    for figure in ("seeds", "spectra", "filters"):
        assert f"(byol-{figure}.png)" in page
        assert min(Image.open(tmp_path / "cpu" / f"byol-{figure}.png").size) > 300

    # Nothing is run twice.
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert tiny("--seeds", "0", "1") == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == written
    assert json.loads((tmp_path / "cpu" / "runs.json").read_text()) == rows

    # A trial with other settings does not pass for it, nor the other way round.
    assert tiny("--seeds", "0", "1", "--epochs", "0.25") == 2
    assert tiny("--seeds", "0", "1", "--report", "--epochs", "0.25") == 2


def test_killed_before_its_first_checkpoint(tiny, tmp_path, capsys):
    folder = tmp_path / "runs" / "cpu" / "byol" / "none-seed0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(MARK + "dataset: digits\nseed: 0\nnum_train_epochs: 0.5\n")
    run = Plan(TINY, "digits", folder.parent, [0], None, "cpu")._run(TINY.arms[0], None, 0, 0.5, folder)
    run.train()
    assert (run.encoder / "model.safetensors").is_file()
    other = dataclasses.replace(run, epochs=2)
    with pytest.raises(ValueError, match=r"none-seed0 holds a run with num_train_epochs 0\.5, not 2"):
        other.train()


def test_nothing_to_report(tiny, capsys):
    assert tiny("--report") == 2
    assert "no run has ended yet: leave out --report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--experiments mae", "cpu has no 'mae', choose from byol"),
        ("--seeds 1 1", "each may be given once"),
        ("--epochs 0", "--epochs is 0: it must be more than 0"),
        ("--minutes -3", "--minutes is -3: it must be more than 0"),
    ],
)
def test_bad_options(tiny, capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        tiny(*arguments.split())
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_data_are_one_line(tiny, capsys):
    assert tiny("--dataset", "/nowhere/cifar10") == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("reproduce.py: error: ")


@pytest.mark.parametrize("experiment", [pytest.param(e, id=f"{p}-{e.name}") for p in PRESETS for e in PRESETS[p]])
def test_presets_are_options_of_pretrain(experiment, tmp_path, monkeypatch):
    """Every arm parses as `orthossl pretrain` would, and differs from the first by its penalty alone."""
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    plan = Plan(experiment, "digits", tmp_path, [0], None, "cpu")
    arms = []
    for arm in experiment.arms:
        run = plan._run(arm, next(iter(arm.weights), None), 0, experiment.epochs, tmp_path / arm.name)
        argv = [text for name, value in run.options().items() for text in (f"--{name}", *runs._texts(value))]
        (data, model, training), _ = parse("test", "", list(OPTION_CLASSES), argv)
        arms.append((dataclasses.asdict(model), data.split, training.num_train_epochs, training.seed))
    changed = {"regularizer", "gamma", "whitening", "regularizer_config"}
    same = [{k: v for k, v in model.items() if k not in changed} for model, *_ in arms]
    assert all(one == same[0] for one in same)
    assert len({str([model[name] for name in sorted(changed)]) for model, *_ in arms}) == len(arms)
    assert arms[0][0]["regularizer"] == "none"
    assert arms[0][0]["whitening"] == 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_paired_difference_is_the_t_test(pairs):
    ours, theirs = zip(*pairs, strict=True)
    found = paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)) | {99: 0.5})
    assert found.count == len(pairs)
    assert found.mean == pytest.approx(np.mean(np.subtract(ours, theirs)), abs=1e-12)
    if np.std(np.subtract(ours, theirs)) > 1e-9:
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_verdicts():
    up = {0: 0.50, 1: 0.51, 2: 0.52}
    down = {seed: value - 0.1 + 0.001 * seed for seed, value in up.items()}
    assert paired_difference(up, down).verdict == "higher"
    assert paired_difference(down, up).verdict == "lower"
    assert paired_difference(up, up | {0: 0.6}).verdict == "not told apart"
    single = paired_difference({0: 0.9}, {0: 0.1})
    assert single.verdict == "not told apart"
    higher, lower, open_ = paired_difference(up, down), paired_difference(down, up), single
    assert [agreement(found) for found in ([higher, open_], [open_, lower], [higher, lower], [open_, open_])] == [
        "agrees",
        "disagrees",
        "partly agrees, partly disagrees",
        "is left open",
    ]
    assert math.isinf(single.high)
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({0: 1.0}, {1: 1.0})


def test_presets_learn_from_no_validation_image():
    """γ is chosen on images that the CPU's runs, which choose it, do not learn from."""
    for experiment in (*presets.PRESETS["cpu"], *presets.PRESETS["fused"]):
        learned = int(experiment.train.removeprefix("train[:").removesuffix("]"))
        held_out = int(experiment.validation.removeprefix("train[").removesuffix(":]"))
        assert learned <= held_out
