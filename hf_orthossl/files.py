"""Replace files whole, so that a reader finds the old or the new content, and check beforehand that a folder is fit."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

# The folder of a rehearsal, within the folder that the results go to.
SCRATCH = ".rehearsal"


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


@contextlib.contextmanager
def scratch_folder(folder: str | Path, argument: str = "output_dir") -> Iterator[Path]:
    """Yield an empty folder within a folder that may not exist yet; afterwards nothing is left of what was created.

    Args:
        folder (`str` or `Path`): The folder.
        argument (`str`, defaults to "output_dir"): The option that named it, for errors.

    Raises:
        ValueError: A file is in the way of the folder.
        OSError: Files cannot be created in the folder.
    """
    folder = Path(folder)
    created: list[Path] = []
    scratch = folder / SCRATCH
    try:
        for path in reversed((folder, *folder.parents)):
            if not path.is_dir():
                path.mkdir()
                created.append(path)
        # That of a process that was killed may be there.
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        (scratch / "file").write_bytes(b"")
        (scratch / "file").unlink()
    except (FileExistsError, NotADirectoryError) as error:
        _remove(scratch, created)
        raise ValueError(f"{argument} {folder}: {error.filename} is a file: pass another --{argument}") from error
    except OSError as error:
        _remove(scratch, created)
        raise OSError(
            f"{argument} {folder} cannot be written ({error.strerror or error}): pass another --{argument}, or change "
            "its permissions"
        ) from error
    try:
        yield scratch
    finally:
        _remove(scratch, created)


def require_writable(folder: str | Path, files: Iterable[str] = (), argument: str = "output_dir") -> None:
    """Check before a long computation that its results can be written; nothing is left in the folder.

    Args:
        folder (`str` or `Path`): The folder of the results, which need not exist.
        files (iterable of `str`, *optional*): Names of the files to write there.
        argument (`str`, defaults to "output_dir"): The option that named the folder, for errors.

    Raises:
        ValueError: A file is in the way of the folder, or a folder in that of a file.
        OSError: Files cannot be created in the folder, or one of `files` cannot be replaced.
    """
    with scratch_folder(folder, argument):
        for path in (Path(folder) / name for name in files):
            if path.is_dir():
                raise ValueError(f"{argument} {folder}: {path} is a folder, where a file is to be written: remove it")
            if path.exists() and not os.access(path, os.W_OK):
                raise OSError(f"{path} cannot be written: pass another --{argument}, or change its permissions")


def _remove(scratch: Path, created: list[Path]) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    for path in reversed(created):
        with contextlib.suppress(OSError):  # not empty: another process of the run writes there
            path.rmdir()
