"""`orthossl compare`: what it runs, measures and writes; stopped, continued, shared out and refused."""

import math
import os
import re
import threading

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from tiny_comparison import numbers, record

from hf_orthossl import compare
from hf_orthossl.comparison import comparing
from hf_orthossl.comparison import work as working
from hf_orthossl.comparison.runs import Run
from hf_orthossl.comparison.statistics import joint_verdict, paired_difference
from hf_orthossl.data import load_source
from hf_orthossl.locks import locked
from hf_orthossl.training import interruption


def cells(page, arm, column):
    """Return the cells of an arm in a column of the page's tables."""
    found, header = [], []
    for line in page.splitlines():
        if line.startswith("| arm |"):
            header = [cell.strip() for cell in line.strip("|").split("|")]
        elif line.startswith(f"| {arm} |") and column in header:
            found.append([cell.strip() for cell in line.strip("|").split("|")][header.index(column)])
    return found


def test_tuned_measured_paired_and_reported(run, tmp_path):
    folder = tmp_path / "c"
    strengths = "so=1e-3,1e-2"
    printed = run(
        "--arms", "none", "so", "--strengths", strengths, "--seeds", 2, "--max_steps", 6, "--output_dir", folder
    )
    assert "runs     2 arms (none, so) × 2 seeds, 4 left" in printed
    found = record(folder)
    assert [(row["seed"], row["arm"]) for row in found["runs"]] == [(s, a) for s in (0, 1) for a in ("none", "so")]
    so = found["arms"][1]
    scores = {row["strength"]: row["score"] for row in so["tuning"]}
    assert set(scores) == {1e-3, 1e-2}
    assert so["chosen"] == max(sorted(scores), key=scores.get)
    # What ran, of its own record: a third of the steps on four fifths of the images, from a seed that does not count.
    tuning = so["tuning"][0]["settings"]
    assert (tuning["training"]["steps"], tuning["num_images"], tuning["training"]["seed"]) == (2, 205, 100)
    final = found["runs"][1]["settings"]
    assert (final["training"]["steps"], final["num_images"], final["gamma"]) == (6, 256, so["chosen"])
    assert found["runs"][0]["settings"]["regularizer"] is None

    # It is the trained weights that are measured: SO by hand of what timm loads.
    encoder = timm.create_model(f"local-dir:{folder / 'runs' / 'so' / 'seed-1' / 'encoder'}", pretrained=True).double()
    matrices = [m.weight.detach().flatten(1) for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    grams = [W @ W.T if len(W) < W.shape[1] else W.T @ W for W in matrices]
    by_hand = sum(float((G - torch.eye(len(G))).square().sum()) for G in grams)
    row = found["runs"][3]
    assert row["weights_so"] == pytest.approx(by_hand, rel=1e-4)
    assert row["representation"]["dim"] == 8
    assert all(row["representation"][name] is not None for name in ("effective_rank", "rankme", "lidar", "alpha_req"))
    assert row["seconds_per_step"] > 0
    # Two views of 32 images, and what a network keeps of them, are more.
    assert row["peak_bytes"] > 2 * 32 * 3 * 32 * 32 * 4
    assert row["over_time"]["weights_relative_rank"][-1][0] == 6

    page = (folder / "README.md").read_text()
    knn = [100 * row["knn"] for row in found["runs"] if row["arm"] == "so"]
    assert cells(page, "so", "kNN, %") == [f"{np.mean(knn):.1f} ± {np.std(knn, ddof=1):.1f}"]
    none = [100 * row["knn"] for row in found["runs"] if row["arm"] == "none"]
    interval = stats.ttest_rel(knn, none).confidence_interval(0.95)
    assert f"kNN {np.mean(knn) - np.mean(none):+.1f} ({interval.low:+.1f} to {interval.high:+.1f})" in page
    assert "None" not in page
    assert "nan" not in page
    for figure in ("seeds", "spectra", "over_time"):
        assert f"({figure}.png)" in page
        assert min(Image.open(folder / f"{figure}.png").size) > 150

    # Nothing is run twice, and more seeds continue it.
    runs = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}
    run("--arms", "none", "so", "--strengths", strengths, "--seeds", 2, "--max_steps", 6, "--output_dir", folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()} == runs
    assert record(folder) == found


def test_stopped_in_time_and_continued_is_the_same(run, tmp_path, monkeypatch):
    options = ("--arms", "none", "so", "--strengths", "so=1e-3", "--seeds", 1, "--max_steps", 4)
    run(*options, "--output_dir", tmp_path / "whole")
    # The clock goes by looks at it: each piece makes a step or two.
    ticks = iter(range(10**6))
    monkeypatch.setattr(interruption, "_clock", lambda: next(ticks))
    stops = 0
    while "stopped  " in (printed := run(*options, "--output_dir", tmp_path / "pieces", "--max_minutes", 3.5 / 60)):
        assert re.search(r"stopped  \d of 2 runs are left: the same command goes on with them", printed)
        stops += 1
    assert stops >= 4
    assert numbers(tmp_path / "pieces") == numbers(tmp_path / "whole")


def test_a_run_in_other_hands_is_left_to_them_until_they_let_go(run, tmp_path, monkeypatch):
    folder, order, held, let_go = tmp_path / "c", [], threading.Event(), threading.Event()

    def hold():
        with locked(folder / "runs" / "none" / "seed-0"):
            held.set()
            let_go.wait(60)

    other = threading.Thread(target=hold)
    complete = Run.complete
    monkeypatch.setattr(Run, "complete", lambda self, images: order.append(self.arm.name) or complete(self, images))
    # While we wait, the other process is killed, say.
    monkeypatch.setattr(working.time, "sleep", lambda seconds: (let_go.set(), other.join()))
    begin = comparing.begin
    monkeypatch.setattr(comparing, "begin", lambda *given: (begin(*given), other.start(), held.wait(60)))
    run("--arms", "none", "so", "--strengths", "so=1e-3", "--seeds", 1, "--max_steps", 2, "--output_dir", folder)
    assert order == ["so", "none"]
    assert record(folder)["left"] == 0


def test_a_run_that_diverges_is_told_and_the_others_go_on(run, tmp_path):
    folder = tmp_path / "c"
    run("--arms", "none", "so", "--strengths", "so=1e30", "--seeds", 1, "--max_steps", 3, "--output_dir", folder)
    found = record(folder)
    assert found["left"] == 0
    assert "not finite" in found["runs"][1]["failed"]
    page = (folder / "README.md").read_text()
    assert "1 of 1 runs failed: their loss was not finite" in page


def test_without_labels_ranks_are_compared_and_chosen_by(tmp_path, capsys):
    images = load_source("digits", split="train[:200]").dataset.remove_columns("label")
    options = {"backbone": "resnet18_cifar", "backbone_config": {"channels": [4, 4, 8, 8]}, "use_cpu": True}
    options |= {"method_config": {"hidden_dim": 16, "output_dim": 8}, "per_device_train_batch_size": 32}
    options |= {"seeds": 2, "max_steps": 3, "strengths": {"so": [1e-3, 1e-1]}, "output_dir": str(tmp_path / "c")}
    found = compare(images, ["none", "so"], **options)
    assert found.record["choose_by"] == "effective_rank"
    assert not found.record["data"]["labelled"]
    assert "linear" not in found.record["runs"][0]
    page = found.report.read_text()
    assert re.search(r"\*\*so\*\* (raises|lowers|is not told apart in) the effective rank of the representation", page)
    assert "## Accuracy" not in page
    with pytest.raises(ValueError, match="choose_by is knn, but the images have no labels"):
        compare(images, ["none", "so"], **options | {"choose_by": "knn", "output_dir": str(tmp_path / "d")})


def test_other_comparisons_and_folders_are_refused(run, refused, tmp_path):
    folder = tmp_path / "c"
    options = ("--arms", "none", "so", "--seeds", 1, "--output_dir", folder)
    fixed = ("--strengths", "so=1e-3", "--max_steps", 2)
    run(*options, *fixed)
    same = "pass the same, or another --output_dir"
    line = refused(*options, "--strengths", "so=1e-3", "--max_steps", 3)
    assert f"max_steps is 3, and the comparison in {folder} was started with 2: {same}" in line
    assert "learning_rate is 0.5, and" in refused(*options, *fixed, "--learning_rate", 0.5)
    assert "started with None" in refused(*options, *fixed, "--learning_rate", 0.5)
    assert "images is 100, and" in refused(*options, *fixed, "--images", 100)
    line = refused(*options, "--strengths", "so=1e-2", "--max_steps", 2)
    assert f"arm so has strengths [0.01], and the comparison in {folder} was started with [0.001]: {same}" in line
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    line = refused("--arms", "none", "so", *fixed, "--output_dir", tmp_path / "other")
    assert "holds files that are of no comparison" in line
    assert os.listdir(tmp_path / "other") == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--arms none sripp", "arm sripp: 'sripp' is unknown: did you mean 'srip'"),
        ("--arms none whitening --method simclr", "arm whitening: whitening acts on the predictor's output"),
        ("--arms none sigreg+so --embedding_config points=0", "arm sigreg+so: "),
        ("--arms none so --embedding_config slices=16", "embedding_config is given, but no arm has a embedding"),
        ("--arms none so --gamma 1e-3", "--gamma cannot be used: an arm decides it"),
        ("--arms none so --seed 3", "--seed cannot be used: a comparison decides it"),
        ("--arms none so --max_step 3", "did you mean '--max_steps'"),
        ("--arms none so --seeds 0", "seeds is 0: it must be a number of runs from 1 to 100"),
        ("--arms none so --strengths so=abc", "strengths has so='abc': it must be numbers above 0"),
        ("--arms none so --strengths so=1,1", "pass each number once"),
        ("--arms none so --max_minutes 0", "max_minutes is 0: it must be above 0"),
        ("--arms none so --tuning_steps 2.5", "tuning_steps is 2.5: it must be a whole number of steps"),
        ("--arms none so --images 100000", "images is 100000, but split train[:256] of digits has 256"),
        ("--arms none so --images 40", "8 of the 40 training images of digits can be held out"),
        (
            "--arms none so --per_device_train_batch_size 230",
            "arm so: the data set has 205 images, but a step needs 230",
        ),
        ("--arms none muon --optim sgd --learning_rate 0.1", "arm muon: learning_rate is 0.1, which is for sgd"),
        ("--arms none so --max_steps 2 --num_train_epochs 3", "exclude each other"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(refused, tmp_path, arguments, message):
    assert message in refused(*arguments.split(), "--output_dir", tmp_path / "c")
    assert not (tmp_path / "c").exists() or not list((tmp_path / "c").rglob("*.json"))


def test_a_launcher_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(comparing, "is_multi_process", lambda: True)
    with pytest.raises(ValueError, match="start the same command several times instead of a launcher"):
        compare("digits", ["none", "so"], output_dir=str(tmp_path / "c"))


def test_verdicts():
    up = {0: 0.50, 1: 0.51, 2: 0.52}
    down = {seed: value - 0.1 + 0.001 * seed for seed, value in up.items()}
    higher, lower, open_ = (paired_difference(up, other) for other in (down, up | {0: 0.6}, up | {0: 0.6}))
    lower = paired_difference(down, up)
    single = paired_difference({0: 0.9}, {0: 0.1})
    pairs = ([higher, open_], [open_, lower], [higher, lower], [open_, open_], [single, single])
    words = ["helps", "harms", "helps and harms", "not told apart", "one seed"]
    assert [joint_verdict(found) for found in pairs] == words
    assert math.isinf(single.high)
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({0: 1.0}, {1: 1.0})


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
