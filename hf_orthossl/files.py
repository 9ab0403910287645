"""Write files and folders completely or not at all, and check beforehand that a folder is fit to be written to.

Whatever is replaced is first written beside its place, under a hidden name with the number of the process, and then
renamed. A process that is killed leaves such a name behind, which the next one that writes there removes.
"""

import contextlib
import ctypes
import errno
import itertools
import os
import re
import shutil
import socket
import sys
import time
import zlib
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

import psutil

from .disk_errors import explained, not_written

# The name of what is not complete yet, and of an earlier folder that was moved away for a moment.
_UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-\d+\.(?P<kind>partial|earlier)")
# Names longer than this are cut, because a file system takes 255 bytes.
_LONGEST = 150
# Seconds after which what another machine has begun counts as abandoned.
_ABANDONED = 24 * 3600
_numbers = itertools.count()


def replace_file(
    path: Path, content: str | bytes, *, durable: bool = False, otherwise: str = "choose another folder"
) -> Path:
    """Write a file completely or not at all.

    Args:
        path (`Path`): The file; an existing one is replaced.
        content (`str` or `bytes`): The whole content; text is encoded as UTF-8. Bytes of
            a file name that are not UTF-8 are written as escapes.
        durable (`bool`, defaults to `False`): Wait until the file is on the disk, so that it survives a power failure.
        otherwise (`str`): What the user can do instead of freeing space, for errors.

    Returns:
        `Path`: `path`.

    Raises:
        NotWritten: The file cannot be written; its earlier content is unchanged.
    """
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    with replacing(path, durable=durable, need=len(data), otherwise=otherwise) as partial:
        partial.write_bytes(data)
    return path


@contextlib.contextmanager
def replacing(
    path: Path, *, durable: bool = False, need: int | None = None, otherwise: str = "choose another folder"
) -> Iterator[Path]:
    """Yield the name of a file to write; it takes the place of `path` if the block succeeds.

    Args:
        path (`Path`): The file; an existing one is replaced.
        durable (`bool`, defaults to `False`): As in [`replace_file`].
        need (`int`, *optional*): The bytes that will be written, for errors.
        otherwise (`str`): As in [`replace_file`].

    Raises:
        NotWritten: The file cannot be written; its earlier content is unchanged.
    """
    partial = _unfinished(path)
    # Removed first, so that an error says what is free without it.
    with explained(path, need, otherwise), _removed(partial):
        sweep(path.parent)
        yield partial
        if durable:
            _sync(partial)
        partial.replace(path)
        if durable:
            sync_folder(path.parent)


@contextlib.contextmanager
def replacing_folder(folder: Path, ours: Collection[str], *, need: int | None = None) -> Iterator[Path]:
    """Yield an empty folder to write to; it takes the place of `folder`, as a whole, if the block succeeds.

    Where the system can exchange two folders in one step, as Linux can, whoever looks sees the earlier folder or the
    new one, complete, at any moment. A folder that cannot be moved, such as the mount point of a disk, keeps its place,
    and gets its files one after the other.

    Args:
        folder (`Path`): The folder, which need not exist. If it is a link, what it points to is replaced.
        ours (collection of `str`): The names that the block may write, and that are removed if it does not. Everything
            else in an earlier folder is kept.
        need (`int`, *optional*): The bytes that will be written, for errors.

    Raises:
        NotWritten: The folder cannot be written; the earlier one is unchanged.
    """
    place = Path(os.path.realpath(folder))
    with explained(folder, need):
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent)
        unfinished = _unfinished(place)
        unfinished.mkdir()
    with explained(folder, need, instead=unfinished), _removed(unfinished):
        yield unfinished
        for file in unfinished.rglob("*"):
            if file.is_file():
                _sync(file)
        _put_in_place(unfinished, place, ours)
        sync_folder(place.parent)


@contextlib.contextmanager
def replacing_files(folder: Path, *, otherwise: str = "choose another folder") -> Iterator[Path]:
    """Yield an empty folder to write to; its files take their places in `folder` once all are complete.

    Args:
        folder (`Path`): The folder, which need not exist. Its other files stay.
        otherwise (`str`): As in [`replace_file`].

    Raises:
        NotWritten: A file cannot be written; all are unchanged.
    """
    with explained(folder, otherwise=otherwise):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        unfinished = _unfinished(folder / "files")
        unfinished.mkdir()
    with explained(folder, otherwise=otherwise, instead=unfinished), _removed(unfinished):
        yield unfinished
        for file in sorted(unfinished.iterdir()):
            file.replace(folder / file.name)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines to a file, all or none; half a line at its end, left by a process that was killed, is removed.

    Args:
        path (`Path`): The file, in UTF-8; it and its folder are created.
        lines (iterable of `str`): The lines, without line breaks.

    Raises:
        NotWritten: The lines cannot be written; those before are unchanged.
    """
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogateescape")
    with explained(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Opening a pipe would wait for its reader.
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "it is not a regular file", str(path))
        with path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            whole = _whole_lines_of(file, size)
            try:
                if whole < size:
                    file.truncate(whole)
                # One call at a time may write less than all, and the next one then says why.
                rest = memoryview(content)
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(whole)
                raise


def read_lines(path: Path) -> list[str]:
    """Return the whole lines of a file of [`append_lines`], without line breaks; empty if there is no file."""
    if not path.is_file():
        return []
    return path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")[:-1]


def sweep(folder: Path) -> None:
    """Remove what processes that have ended left unfinished in a folder; what others are writing stays."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            left = _UNFINISHED.fullmatch(entry.name)
            if left is None or not _is_abandoned(left, entry):
                continue
            path, place = Path(entry.path), folder / left["name"]
            if left["kind"] == "earlier" and not place.exists():
                # Ended between the two renames of a folder: the earlier one is complete.
                path.rename(place)
            elif entry.is_dir(follow_symlinks=False):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    # Windows cannot open folders, but writes their entries immediately.
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sync(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _unfinished(path: Path, kind: str = "partial") -> Path:
    """Return a name beside a path that no other process and no other thread uses."""
    name = path.name if kind == "earlier" else path.name[:_LONGEST]
    return path.with_name(f".{name}.{_machine()}-{os.getpid()}-{next(_numbers)}.{kind}")


@contextlib.contextmanager
def _removed(path: Path) -> Iterator[None]:
    """Remove at the end of a block what is then still at a path."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@cache
def _machine() -> str:
    """Return letters for this machine since its start, or this container, where the number of a process is unique."""
    about = socket.gethostname()
    with contextlib.suppress(OSError):
        about += Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        about += os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(about.encode()):08x}"


def _is_abandoned(left: re.Match[str], entry: os.DirEntry[str]) -> bool:
    """Return whether the process that wrote a name has ended."""
    if left["machine"] != _machine():
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED
    return not psutil.pid_exists(int(left["pid"]))


def _put_in_place(unfinished: Path, place: Path, ours: Collection[str]) -> None:
    """Let a complete folder take the place of another, whose other files it keeps."""
    if not place.is_dir():
        unfinished.rename(place)
        return
    written = {path.name for path in unfinished.iterdir()}
    for path in place.iterdir():
        if path.name not in written and path.name not in ours:
            _keep(path, unfinished / path.name)
    try:
        _exchange(unfinished, place)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        for name in written:
            with replacing(place / name) as partial:
                shutil.copyfile(unfinished / name, partial)
        for name in set(ours) - written:
            (place / name).unlink(missing_ok=True)


def _keep(path: Path, copy: Path) -> None:
    """Give a file or folder a second name; where the disk has no second names, copy it."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)

    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, copy, symlinks=True, copy_function=link)
    else:
        link(str(path), str(copy))


def _exchange(new: Path, place: Path) -> None:
    """Exchange two folders, in one step where the system can."""
    if sys.platform == "linux":
        here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
        renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
        if renameat2 is not None and renameat2(here, os.fsencode(new), here, os.fsencode(place), exchange) == 0:
            return
    earlier = _unfinished(place, "earlier")
    place.rename(earlier)
    try:
        new.rename(place)
    except BaseException:
        earlier.rename(place)
        raise
    earlier.rename(new)


def _whole_lines_of(file, size: int) -> int:
    """Return the size of a file up to the end of its last whole line."""
    end = size
    while end > 0:
        start = max(end - 4096, 0)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


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
    scratch = _unfinished(folder / "rehearsal")
    try:
        for path in reversed((folder, *folder.parents)):
            if not path.is_dir():
                path.mkdir()
                created.append(path)
        sweep(folder)
        scratch.mkdir()
        (scratch / "file").write_bytes(b"0")
        (scratch / "file").unlink()
    except (FileExistsError, NotADirectoryError) as error:
        _remove(scratch, created)
        raise ValueError(f"{argument} {folder}: {error.filename} is a file: pass another --{argument}") from error
    except OSError as error:
        _remove(scratch, created)
        raise not_written(folder, error, otherwise=f"pass another --{argument}", name=f"{argument} {folder}") from error
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
                denied = OSError(errno.EACCES, os.strerror(errno.EACCES))
                raise not_written(path, denied, otherwise=f"pass another --{argument}")


def _remove(scratch: Path, created: list[Path]) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    for path in reversed(created):
        with contextlib.suppress(OSError):  # not empty: another process of the run writes there
            path.rmdir()
