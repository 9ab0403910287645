"""Replace files atomically: a reader finds the old or the new content, even if the writing process is killed."""

import os
from pathlib import Path


def replace_file(path: Path, content: str | bytes, *, durable: bool = False) -> Path:
    """Write a file completely or not at all.

    Args:
        path (`Path`): The file; an existing one is replaced.
        content (`str` or `bytes`): The whole content; text is encoded as UTF-8. Bytes of
            a file name that are not UTF-8 are written as escapes.
        durable (`bool`, defaults to `False`): Wait until the file is on the disk, so that it survives a power failure.

    Returns:
        `Path`: `path`.

    Raises:
        OSError: The file cannot be written; its earlier content is unchanged.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
    if durable:
        sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    # Windows cannot open folders, but writes their entries immediately.
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
