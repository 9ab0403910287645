"""Decoded images of a small data set, kept in memory that the workers of a loader share."""

import mmap
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ..distributed.collectives import world_size

# When to keep them: where they are small and fit, whatever that takes, or not at all.
CHOICES = ("auto", "always", "never")
# "auto" keeps images of at most this side, in pixels, where decoding takes longer than making views,
LARGEST_SIDE = 96
# and this share of the free memory at most.
SHARE = 0.25

_CGROUP = Path("/sys/fs/cgroup")


class ImageCache:
    """Items that were made once, by the row they were made of.

    Workers that are forked, Linux's default until Python 3.13, fill and read the same memory. Others, which begin with
    a copy of the data set, keep nothing.

    Args:
        rows (`int`): Rows of the source.
        shape (`tuple[int, int]`): Height and width of all images.
    """

    def __init__(self, rows: int, shape: tuple[int, int]):
        self._pixels = torch.from_numpy(_shared((rows, 3, *shape), np.uint8))
        self._labels = _shared((rows,), np.int64)
        self._filled = _shared((rows,), np.uint8)

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Places in `rows` of those that are not kept yet."""
        return [place for place, row in enumerate(rows) if self._filled is None or not self._filled[row]]

    def __getitem__(self, row: int) -> dict[str, Any]:
        pixels = self._pixels[row].clone()
        return {"labels": int(self._labels[row]), "index": row, "unreadable": [], "pixel_values": pixels}

    def add(self, item: dict[str, Any]) -> None:
        """Keeps an item, unless it is a stand-in for one that could not be read."""
        if self._filled is not None and not item["unreadable"]:
            row = item["index"]
            self._pixels[row], self._labels[row] = item["pixel_values"], item["labels"]
            self._filled[row] = 1  # last: another process may be looking

    def __getstate__(self) -> dict[str, None]:
        return dict.fromkeys(self.__dict__)


def fits_in_memory(images: int, shape: tuple[int, int]) -> bool:
    """Whether "auto" keeps so many images of this height and width, in every process of the run."""
    return max(shape) <= LARGEST_SIDE and world_size() * images * 3 * prod(shape) <= SHARE * _free_memory()


def _free_memory() -> int:
    """Bytes that may still be used: by the machine, or by the container that this runs in."""
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # What was read from files, and may go again, counts as used.
        return min(free, limit - used + int(statistics["inactive_file"]))
    except (OSError, ValueError, KeyError):  # there is no limit, or it says "max"
        return free


def _shared(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros that take no memory until they are written to, and that forked processes share."""
    memory = mmap.mmap(-1, max(prod(shape) * np.dtype(dtype).itemsize, 1))
    return np.frombuffer(memory, dtype, prod(shape)).reshape(shape)
