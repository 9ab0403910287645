"""A fingerprint of a data set, by which replaced, added and removed images are noticed."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import unformatted

# Of the images, at most this many are read in part: this many bytes at the beginning, in the middle and at the end.
SAMPLED, BLOCK = 2048, 1024
_PARTS = ("number of images", "names", "sizes", "contents")


def fingerprint_of_files(paths: Sequence[str], names: Sequence[str]) -> str:
    """Return the fingerprint of files: their number, and hashes of their names, sizes and a sample of their bytes.

    It depends neither on the folder nor on the times of the files, so that a copy has the same.

    Args:
        paths (`Sequence[str]`): The files; those that cannot be read count as empty.
        names (`Sequence[str]`): Their names in the data set.
    """
    sizes = [_status(path)[0] for path in paths]
    sample = (_blocks(paths[row], sizes[row]) for row in _spread(len(paths)))
    return _join(len(paths), names, sizes, sample)


def fingerprint_of_rows(data: datasets.Dataset, image_column: str, label_column: str | None) -> str:
    """Return the fingerprint of the rows of a data set: their images by name, size and a sample of bytes; their labels.

    Args:
        data (`datasets.Dataset`): The rows, whose images are not decoded.
        image_column (`str`): The column of images.
        label_column (`str`, *optional*): The column of labels, which count as names.
    """
    rows = data.with_format("arrow")
    names, sizes = hashlib.sha256(), hashlib.sha256()
    for batch in rows.select_columns([name for name in (image_column, label_column) if name]).iter(4096):
        column = _combined(batch[image_column])
        if pa.types.is_struct(column.type):
            path = column.field("path")
            names.update(repr([os.path.basename(name or "") for name in path.to_pylist()]).encode())
            sizes.update(repr(pc.binary_length(column.field("bytes")).to_pylist()).encode())
        if label_column:
            names.update(repr(_combined(batch[label_column]).to_pylist()).encode())
    plain = unformatted(data, image_column)
    sample = (_content(plain[row][image_column]) for row in _spread(len(data), SAMPLED // 4))
    return "-".join((str(len(data)), names.hexdigest()[:12], sizes.hexdigest()[:12], _hash(sample)))


def hash_of_times(paths: Sequence[str]) -> str:
    """Return a hash of the times of modification of all files, which a copy need not share."""
    return _hash(b"%d" % _status(path)[1] for path in paths)


def difference(before: str, now: str) -> str | None:
    """Return in what two fingerprints differ, as in "their contents differ"; `None` if they are equal."""
    if before == now:
        return None
    old, new = before.split("-"), now.split("-")
    if old[0] != new[0]:
        return f"{int(old[0]):,} images before, {int(new[0]):,} now"
    changed = [part for part, first, second in zip(_PARTS, old, new, strict=True) if first != second]
    return f"their {' and '.join(changed)} differ"


def _join(count: int, names: Iterable[str], sizes: Iterable[int], sample: Iterable[bytes]) -> str:
    return "-".join(
        (str(count), _hash(name.encode() for name in names), _hash(b"%d" % size for size in sizes), _hash(sample))
    )


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()[:12]


def _spread(count: int, most: int = SAMPLED) -> list[int]:
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _status(path: str) -> tuple[int, int]:
    """Return the size in bytes and the time of modification in nanoseconds; −1 for a file that cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _blocks(path: str, size: int) -> bytes:
    # A pipe could be read for ever.
    if not os.path.isfile(path):
        return b""
    try:
        with open(path, "rb") as file:
            parts = []
            for start in (0, size // 2, max(size - BLOCK, 0)):
                file.seek(start)
                parts.append(file.read(BLOCK))
            return b"".join(parts)
    except OSError:
        return b""


def _content(image: Any) -> bytes:
    """Return the bytes of an undecoded image, or the blocks of its file."""
    if isinstance(image, dict):
        if image.get("bytes") is not None:
            return image["bytes"]
        path = str(image.get("path"))
        return _blocks(path, _status(path)[0])
    return image.tobytes() if isinstance(image, np.ndarray) else repr(image).encode()


def _combined(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
