"""Keep the decoded images of a small data set in memory that the workers of a data loader share."""

import mmap
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ..distributed.collectives import world_size

CHOICES = ("auto", "always", "never")
# "auto" caches images whose longer side has at most this many pixels, which take longer to decode than to augment,
LARGEST_SIDE = 96
# if they fill at most this share of the free memory.
SHARE = 0.25

_CGROUP = Path("/sys/fs/cgroup")


class ImageCache:
    """Decoded items of a data set, indexed by the row of the source.

    Worker processes that are forked, Linux's default until Python 3.13, read and fill the same memory. Spawned
    workers, which start with a copy of the data set, have an empty cache that stores nothing.

    Args:
        rows (`int`): The number of rows of the source.
        shape (`tuple[int, int]`): The height and width of all images, in pixels.
        channels (`int`, defaults to 3): The number of channels of all images.
    """

    def __init__(self, rows: int, shape: tuple[int, int], channels: int = 3):
        self._pixels = torch.from_numpy(_shared_zeros((rows, channels, *shape), np.uint8))
        self._labels = _shared_zeros((rows,), np.int64)
        self._filled = _shared_zeros((rows,), np.uint8)

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return the positions in `rows` of the rows that are not cached yet."""
        return [position for position, row in enumerate(rows) if self._filled is None or not self._filled[row]]

    def __getitem__(self, row: int) -> dict[str, Any]:
        pixels = self._pixels[row].clone()
        return {"labels": int(self._labels[row]), "index": row, "unreadable": [], "pixel_values": pixels}

    def add(self, item: dict[str, Any]) -> None:
        """Store an item, unless it replaces an unreadable image."""
        if self._filled is not None and not item["unreadable"]:
            row = item["index"]
            self._pixels[row], self._labels[row] = item["pixel_values"], item["labels"]
            self._filled[row] = 1  # last, because another process may read it at any time

    def __getstate__(self) -> dict[str, None]:
        return dict.fromkeys(self.__dict__)


def fits_in_memory(images: int, shape: tuple[int, int], channels: int = 3) -> bool:
    """Return whether "auto" caches this many images of this height and width in every process of the run."""
    needed = world_size() * images * channels * prod(shape)
    return max(shape) <= LARGEST_SIDE and needed <= SHARE * _free_memory()


def _free_memory() -> int:
    """Return the number of free bytes of the machine or, if it is smaller, of the container."""
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        # The page cache counts as used, although the kernel frees it on demand.
        return min(free, limit - used + int(statistics["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no limit, or the word "max"
        return free


def _shared_zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return zeros that forked processes share and that occupy no memory until they are written to."""
    memory = mmap.mmap(-1, max(prod(shape) * np.dtype(dtype).itemsize, 1))
    return np.frombuffer(memory, dtype, prod(shape)).reshape(shape)
