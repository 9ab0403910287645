"""Read files that someone else wrote: regular files of one folder, within bounds, as plain values.

A folder may come from the Hub, from a clone or from an archive. Nothing in it is taken at its word: a file is not
opened through a link that leaves the folder, JSON is limited in size and depth, and the header of a safetensors file is
checked against the file before a number of it is read.
"""

import json
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from .messages import readable_size

# Bytes of a JSON file: the configuration of 21,841 class names has two million.
MAX_JSON = 8 * 2**20
MAX_DEPTH = 20
# Bytes of a safetensors header: that of a network of 700 tensors has 70,000.
MAX_HEADER = 16 * 2**20
# Formats of numbers → bytes of one. Narrower ones come from quantization, whose scales are not in the tensor.
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
WHOLE = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
# The first bytes of files that stand where another file should be → what they are, with the remedy.
_IMPOSTORS = {
    b"version https://git-lfs": "is a git-lfs pointer, not the file itself: run git lfs pull in its folder",
    b"<!doctype": "is a web page: download the file itself, whose address has /resolve/ instead of /blob/",
    b"<html": "is a web page: download the file itself, whose address has /resolve/ instead of /blob/",
    b"<?xml": "is XML, the answer of a server to a failed download: download it again",
    b"pk\x03\x04": "is an archive, as torch.save writes it, which is never read: convert it to safetensors",
    b"\x80\x02": "is a pickle, which is never read: convert it to safetensors",
    b"\x80\x04": "is a pickle, which is never read: convert it to safetensors",
    b"\x1f\x8b": "is compressed (gzip): unpack it",
}


class Refused(ValueError):
    """Raised if what someone else wrote is not used; the message is one line that names it and the remedy."""


class Stored(NamedTuple):
    """A tensor in a safetensors file: the format of its numbers, such as "F32", and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file of a folder.

    Args:
        folder (`Path`): The folder.
        name (`str`): The name of the file in it.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read.
        Refused: The file is no regular file of this folder, is too large or too deep, is not JSON in UTF-8, repeats a
            key, holds a number that is not finite, or is no object.
    """
    path = Path(folder) / name
    content = _read(path, MAX_JSON)

    def refuse(why: object) -> NoReturn:
        raise Refused(f"{path} is not JSON ({why}): repair it, or download it again")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(items)
        if len(values) < len(items):
            names = [key for key, _ in items]
            repeated = next(key for key in names if names.count(key) > 1)
            raise Refused(f"{path} states {repeated[:80]!r} twice, and readers differ in which they take: remove one")
        return values

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=pairs, parse_constant=refuse)
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        refuse(error)
    if not isinstance(value, dict):
        raise Refused(f"{path} holds a {type(value).__name__}: it must be a JSON object, {{…}}; download it again")
    _check_plain(path, value)
    return value


def read_tensors(folder: Path, name: str) -> dict[str, Stored]:
    """Return what a safetensors file holds, by its header, without reading its numbers.

    Args:
        folder (`Path`): The folder.
        name (`str`): The name of the file in it.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read.
        Refused: The file is no regular file of this folder or no safetensors file, its header does not describe it
            completely, or its numbers are of a format that is not read.
    """
    path = Path(folder) / name
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        _refuse_impostors(path, start + file.read(64))
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= size - 8:
            raise Refused(f"{path} is not a safetensors file, or is cut off: download it again")
        if length > MAX_HEADER:
            raise Refused(
                f"{path} has a header of {readable_size(length)}: at most {MAX_HEADER >> 20} MiB are read; no encoder "
                "needs more"
            )
        file.seek(8)
        header = file.read(length)
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is not a safetensors file ({error}): download it again") from error
    if not isinstance(entries, dict):
        raise Refused(f"{path} is not a safetensors file (its header is no object): download it again")
    entries.pop("__metadata__", None)
    return _checked_tensors(path, entries, size - 8 - length)


def inside(folder: Path, path: Path) -> Path:
    """Return the file that a path within a folder leads to.

    Args:
        folder (`Path`): The folder. Within the Hub's cache, files may also lie in its folder of contents.
        path (`Path`): A path within it.

    Raises:
        FileNotFoundError: There is no such file.
        Refused: The path leads out of the folder.
    """
    try:
        target = path.resolve(strict=True)
        root = Path(folder).resolve()
    except FileNotFoundError:
        if path.is_symlink():
            raise Refused(
                f"{path} is a link to {os.readlink(path)}, which does not exist: copy the file here"
            ) from None
        raise FileNotFoundError(f"{path} does not exist") from None
    except (RuntimeError, ValueError) as error:
        raise Refused(f"{path} is a link that leads nowhere ({error}): copy the file here") from error
    # huggingface_hub keeps `snapshots/COMMIT/NAME` as a link to `blobs/HASH`.
    cache = root.parents[1] if root.parent.name == "snapshots" and (root.parents[1] / "blobs").is_dir() else root
    if not target.is_relative_to(root) and not target.is_relative_to(cache / "blobs"):
        raise Refused(
            f"{path} leads out of its folder, to {target}: copy that file into the folder if it belongs there"
        )
    return target


def is_file_name(name: object) -> bool:
    """Return whether a value names a file of the same folder: a path, a parent or an empty text does not."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name not in (".", "..")
        and not set(name) & set('/\\:"\0')
        and name.isprintable()
    )


def open_file(path: Path) -> Any:
    """Open a regular file of its folder for reading bytes; a pipe is not waited for."""
    target = inside(path.parent, path)
    try:
        # Not blocking, since a pipe without a writer would be waited for.
        handle = os.open(target, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        kind = _kind_of(target)
        if kind:
            raise Refused(f"{path} is {kind}, not a file: replace it by the file") from error
        raise OSError(f"{path} cannot be read ({error.strerror or error}): change its permissions") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise Refused(f"{path} is {_kind_of(target)}, not a file: replace it by the file")
    return os.fdopen(handle, "rb")


def _kind_of(path: Path) -> str | None:
    mode = os.stat(path).st_mode
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in kinds.items() if test(mode)), "a device")


def _read(path: Path, limit: int) -> bytes:
    with open_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise Refused(f"{path} is larger than {readable_size(limit)}: no real file of this name is, replace it")
    _refuse_impostors(path, content[:72])
    return content


def _refuse_impostors(path: Path, start: bytes) -> None:
    if not start:
        raise Refused(f"{path} is empty: download it again")
    beginning = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what in _IMPOSTORS.items():
        if beginning.startswith(magic):
            raise Refused(f"{path} {what}")


def _unrepeated(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(items)) < len(items):
        raise ValueError("its header states a tensor twice")
    return dict(items)


def _check_plain(path: Path, value: Any) -> None:
    """Refuse values that are nested too deep, and numbers that are not finite."""
    level: Sequence[Any] = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(one, float) and not math.isfinite(one) for one in level):
            raise Refused(f"{path} holds a number that is not finite: correct it")
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [inner for values in nested for inner in values]
        if not level:
            return
    raise Refused(f"{path} is nested deeper than {MAX_DEPTH} levels: no real file of this name is, replace it")


def _checked_tensors(path: Path, entries: dict[str, Any], size: int) -> dict[str, Stored]:
    """Return the tensors of a header; their numbers must fill the rest of the file, `size` bytes, without overlaps."""
    tensors: dict[str, Stored] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int(last)]} if all(
                type(side) is int and 0 <= side < 2**48 for side in shape
            ):
                width = (FLOATS | WHOLE).get(dtype)
                if width is None:
                    raise Refused(
                        f"{path} holds {name[:80]!r} as {dtype[:20]}: only {', '.join(FLOATS)} weights are read, "
                        "convert it"
                    )
                if name.endswith((".weight", ".bias")) and dtype not in FLOATS:
                    raise Refused(
                        f"{path} holds {name[:80]!r} as {dtype}, quantized: only {', '.join(FLOATS)} weights are read, "
                        "convert it"
                    )
                if last - first != width * math.prod(shape):
                    raise Refused(f"{path}: the place of {name[:80]!r} does not fit its shape: download it again")
                tensors[name] = Stored(dtype, tuple(shape))
                places.append((first, last, name))
            case _:
                raise Refused(f"{path} is not a safetensors file (its entry {name[:80]!r}): download it again")
    end = 0
    for first, last, name in sorted(places):
        if first != end:
            raise Refused(f"{path}: {name[:80]!r} overlaps another tensor or leaves a gap before it: download it again")
        end = last
    if end > size:
        raise Refused(
            f"{path} is cut off: its header promises {readable_size(end)} of numbers, it holds {readable_size(size)}; "
            "download it again"
        )
    if end < size:
        raise Refused(f"{path} holds {readable_size(size - end)} after its last tensor: download it again")
    if not tensors:
        raise Refused(f"{path} holds no tensors: download it again, or pass pretrained=False")
    return tensors
