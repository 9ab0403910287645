"""What a run shows while it trains and when it has ended: a bar in a terminal, dated lines elsewhere, a summary."""

import contextlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_orthossl import load_encoder, load_source, pretrain
from hf_orthossl.data import ImageDataset
from hf_orthossl.evaluation.features import extract_features
from hf_orthossl.spectra import FeatureSpectrum, StreamingCovariance
from hf_orthossl.training import display
from hf_orthossl.training.display import Display, duration
from hf_orthossl.training.printing import next_command


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_dated_line_for_each_entry(clock, capsys):
    shown = Display(total=100, done=20, images_per_step=64, bar=True)
    for _ in range(10):
        clock[0] += 0.5
        shown.step()
    # A measurement of ten seconds is no part of the speed, but of the time that is left.
    clock[0] += 10
    shown.log({"loss": 3.25, "learning_rate": 0.05, "knn/top1": 0.5, "orthogonality": 0.001, "other/top1": 9.0})
    for _ in range(20):
        clock[0] += 1.0
        shown.step()
    shown.log({"loss": 2.5, "learning_rate": 0.025})
    shown.close()
    first, second = capsys.readouterr().err.splitlines()
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    # 10 steps of 64 images in 5 seconds; 15 seconds for 10 steps, and 70 are left.
    assert re.fullmatch(
        date + r"step 30/100  128 images/s  1:45 left  loss 3.25  kNN 0.5  lr 0.05  orthogonality 0.001", first
    )
    # What was measured before is still shown.
    assert re.fullmatch(date + r"step 50/100  64 images/s  0:58 left  loss 2.5  kNN 0.5  lr 0.025", second)


def test_the_bar_keeps_its_width_whatever_is_beside_it(clock, monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(display, "shows_bars", lambda: True)
    monkeypatch.setattr(sys, "stderr", text)
    shown = Display(total=4, done=0, images_per_step=32, bar=True)
    for _ in range(4):
        clock[0] += 1
        shown.step()
        shown.log({"loss": 1.0, "ssl": 1.0, "learning_rate": 1e-3, "knn/top1": 0.25, "embedding_std": 0.9})
    shown.close()
    last = text.getvalue().rstrip().rpartition("\r")[2]
    assert re.match(r"100%\|[█#]{14}\| 4/4 \[.*<.*\], 32 images/s, loss 1, kNN 0.25, lr 0.001, ssl 1", last)


def test_other_processes_are_silent(capsys):
    shown = Display(total=2, done=0, images_per_step=1, bar=True, quiet=True)
    shown.step()
    shown.log({"loss": 1.0})
    shown.close()
    assert capsys.readouterr().err == ""


def test_durations_are_read_at_a_glance():
    shown = [duration(seconds) for seconds in (0.2, 59.7, 61, 3661, 90000, float("nan"))]
    assert shown == ["0:00", "1:00", "1:01", "1:01:01", "25:00:00", "?"]


def test_a_run_ends_with_duration_speed_memory_ranks_and_the_next_command(tmp_path):
    printed = io.StringIO()
    settings = {"backbone_config": {"channels": [8, 8, 16, 16]}, "per_device_train_batch_size": 32, "use_cpu": True}
    settings |= {"max_steps": 2, "knn_images": 100, "save_strategy": "no"}
    with contextlib.redirect_stdout(printed):
        run = pretrain("digits", **settings, output_dir=tmp_path / "run")
    lines = dict(line.split(maxsplit=1) for line in printed.getvalue().splitlines())
    assert re.fullmatch(r"0:\d\d, [\d,.]+ images/s, at most [\d.,]+ \w?i?B of memory", lines["training"])
    assert lines["next"] == f"orthossl embed {tmp_path / 'run'} --dataset digits (a vector for each image)"
    found = re.fullmatch(
        r"([\d.]+) before training, ([\d.]+) after \(effective, of the representation, ≤ 16\)", lines["rank"]
    )
    # A run with a test split takes its whole bank from the training images.
    rows = np.random.default_rng(42).permutation(1437)[:100].tolist()
    encoder = load_encoder(str(run.output_dir), pretrained=True)
    bank = ImageDataset(load_source("digits"), indices=rows, image_size=32)
    covariance = StreamingCovariance(16)
    covariance.update(extract_features(encoder, bank).representations)
    assert float(found[2]) == pytest.approx(FeatureSpectrum.from_covariance(covariance).effective_rank, abs=0.06)


def test_the_next_command_can_be_typed():
    folder = Path("my runs/a")
    expected = "next     orthossl embed 'my runs/a' --dataset 'my images' ("
    assert next_command(folder, ["my images"], False).startswith(expected)
    assert next_command(folder, ["digits"], True).startswith("next     orthossl compare --dataset digits (")
    assert next_command(folder, None, True).startswith("next     orthossl spectra 'my runs/a' (")
