"""A comparison that is killed again and again, by two processes that share its runs, ends as one that never was."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tiny_comparison import TINY, numbers

pytestmark = pytest.mark.slow

OPTIONS = ("--arms", "none", "so", "sigreg", "--strengths", "so=1e-3,1e-2", "sigreg=0.1", "--seeds", "2")


def start(folder):
    command = [sys.executable, "-m", "hf_orthossl", "compare", *TINY, *OPTIONS, "--max_steps", "12", "--output_dir"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, str(folder)], env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)


@pytest.mark.timeout(3600)
def test_killed_at_random_moments_ends_in_the_same_table(tmp_path):
    assert start(tmp_path / "whole").wait() == 0
    whole = numbers(tmp_path / "whole")
    rng, folder = random.Random(0), tmp_path / "killed"
    processes = [start(folder), start(folder)]
    for _ in range(8):
        # It takes some seconds until the first run begins.
        time.sleep(rng.uniform(5, 40))
        victim = processes.pop(0)
        if victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
        victim.wait()
        processes.append(start(folder))
    assert [process.wait() for process in processes] == [0, 0]
    assert numbers(folder) == whole
    assert whole["left"] == 0
