"""Files that a reader, or a process killed while it writes, finds old or new, never half written. For every room."""

import os
from pathlib import Path


def replace_file(path: Path, content: str | bytes, *, durable: bool = False) -> Path:
    """Writes a file whole or not at all.

    Args:
        path (`Path`): The file; one that is there is replaced.
        content (`str` or `bytes`): All of it; text as UTF-8.
        durable (`bool`, defaults to `False`): Wait until it is on the disk, so that it outlives a power cut.

    Returns:
        `Path`: `path`.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
    if durable:
        sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    # Windows cannot open folders, and writes their entries through.
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
