"""Comparisons small enough for a test: digits, a narrow network, a few steps."""

import json
from pathlib import Path

TINY = [
    *("--dataset", "digits", "--split", "train[:256]", "--test_split", "test[:64]", "--backbone", "resnet18_cifar"),
    *("--backbone_config", "channels=[4,4,8,8]", "--method_config", "hidden_dim=16", "output_dim=8"),
    *("--per_device_train_batch_size", "32", "--use_cpu"),
]
# What differs from time to time.
TIMES = ("seconds_per_step", "peak_bytes", "machine")


def record(folder: Path) -> dict:
    """Return `comparison.json`."""
    return json.loads((folder / "comparison.json").read_text())


def numbers(folder: Path) -> dict:
    """Return all that a comparison found, without what differs from time to time."""
    found = record(folder)
    for row in [*found["runs"], *(row for arm in found["arms"] for row in arm["tuning"])]:
        for name in TIMES:
            row.pop(name, None)
    return found
