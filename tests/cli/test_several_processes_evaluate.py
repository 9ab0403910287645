"""`orthossl evaluate` and `orthossl spectra` under a launcher: the tables and files of one process, written once."""

import json
import subprocess
import sys

import numpy as np
import pytest

from hf_orthossl.spectra import SpectralReport

ALONE = [sys.executable, "-m"]
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]


def command(start: list[str], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*start, "hf_orthossl", *arguments, "--device", "cpu"], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_evaluate_in_two_processes(tmp_path):
    told, results = [], []
    for number, start in enumerate((ALONE, TOGETHER)):
        folder = tmp_path / str(number)
        cache = ["--cache", str(folder / "cache"), "--output_dir", str(folder)]
        found = command(start, "evaluate", "resnet10t", "--untrained", "--image_size", "32", "--epochs", "2", *cache)
        assert found.returncode == 0, found.stderr
        told.append(found.stdout.replace(str(folder), "there"))
        results.append(json.loads((folder / "results.json").read_text()))
    assert told[0] == told[1]
    alone, together = ([{k: v for k, v in r.items() if k != "value"} for r in part] for part in results)
    assert [r["task"] for r in alone] == [r["task"] for r in together]
    assert [r["value"] for r in results[0]] == pytest.approx([r["value"] for r in results[1]], abs=0.01)
    assert len(list((tmp_path / "1" / "cache").iterdir())) == 2


@pytest.mark.slow
def test_spectra_in_two_processes(tmp_path):
    reports = []
    for number, start in enumerate((ALONE, TOGETHER)):
        folder = tmp_path / str(number)
        settings = ["--images", "101", "--batch_size", "40", "--views", "cifar-asym", "--output_dir", str(folder)]
        found = command(
            start, "spectra", "resnet10t", "--untrained", "--image_size", "32", "--dataset", "digits", *settings
        )
        assert found.returncode == 0, found.stderr
        assert found.stdout.count("results  ") == 1
        reports.append(SpectralReport.load(folder))
        assert (folder / "representations.png").exists()
    alone, together = reports
    assert together.metadata == alone.metadata
    for layer, expected in alone.features.items():
        found = together.features[layer]
        np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=0, atol=1e-5 * expected.eigenvalues[0])
        assert found.lidar == (expected.lidar and pytest.approx(expected.lidar, rel=1e-3))


@pytest.mark.slow
def test_what_needs_one_process_says_so_once(tmp_path):
    found = command(TOGETHER, "evaluate", "resnet10t", "--task", "finetune", "--output_dir", str(tmp_path))
    assert found.returncode != 0
    assert found.stderr.count("task 'finetune' runs in one process") == 1
