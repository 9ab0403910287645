"""The lock of an output folder: one command at a time uses it, and the kernel releases it when that command dies."""

import contextlib
import errno
import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .distributed.collectives import on_main, rank
from .messages import warn_once

logger = logging.getLogger(__name__)

# The locked file. It says who holds the lock, and is removed when the lock is released.
LOCK = ".running"
# What a file system answers that has no locks.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

# Folder → thread, of the locks that this process holds: the kernel does not refuse a process its own locks.
_held: dict[Path, int] = {}
_registry = threading.Lock()


class InUse(ValueError):
    """Another command, or another thread of this process, holds the lock of a folder."""


@contextlib.contextmanager
def locked(folder: str | Path, argument: str = "output_dir") -> Iterator[bool]:
    """Hold the lock of an output folder for the duration of the block; every process of a command enters it.

    The main process holds the lock. Within the block, its thread may enter again, which does nothing. A folder that
    does not exist is created, and removed if it is empty at the end.

    Args:
        folder (`str` or `Path`): The folder.
        argument (`str`, defaults to "output_dir"): The option that named it, for errors.

    Yields:
        `bool`: True if this block took the lock, False if a block around it holds it.

    Raises:
        InUse: Another command holds the lock. Nothing has changed.
        ValueError: `folder` is a file. Nothing has changed.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    lock = _Lock(folder, argument) if rank() == 0 else None
    taken = on_main(lambda: lock is not None and lock.acquire())
    try:
        yield taken
    finally:
        if taken and lock is not None:
            lock.release()


class _Lock:
    """A POSIX record lock: unlike one of `flock`, workers that a dead process has forked do not keep it."""

    def __init__(self, folder: Path, argument: str):
        self.folder, self.argument = folder, argument
        self.key = folder.resolve()
        self.handle: int | None = None
        self.created: list[Path] = []

    def acquire(self) -> bool:
        with _registry:
            if self.key in _held:
                if _held[self.key] == threading.get_ident():
                    return False
                raise InUse(self._in_use("another thread of this process"))
            self._create_folder()
            try:
                self._lock_file()
            except BaseException:
                self._remove_folder()
                raise
            _held[self.key] = threading.get_ident()
        return True

    def release(self) -> None:
        with _registry:
            del _held[self.key]
            # Removed while it is locked: whoever has opened it meanwhile sees that the name is gone, and opens it anew.
            with contextlib.suppress(OSError):
                (self.folder / LOCK).unlink()
            if self.handle is not None:
                os.close(self.handle)
            self._remove_folder()

    def _create_folder(self) -> None:
        try:
            for path in reversed((self.folder, *self.folder.parents)):
                if not path.is_dir():
                    path.mkdir()
                    self.created.append(path)
        except (FileExistsError, NotADirectoryError) as error:
            self._remove_folder()
            raise ValueError(
                f"{self.argument} {self.folder}: {error.filename} is a file: pass another --{self.argument}"
            ) from error
        except OSError as error:
            self._remove_folder()
            raise self._unwritable(error) from error

    def _remove_folder(self) -> None:
        for path in reversed(self.created):
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        self.created.clear()

    def _lock_file(self) -> None:
        path = self.folder / LOCK
        while True:
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            except OSError as error:
                raise self._unwritable(error) from error
            try:
                _lock(handle)
            except OSError as error:
                holder = _holder(handle)
                os.close(handle)
                if error.errno in _WITHOUT_LOCKS:
                    warn_once(
                        logger,
                        f"{self.folder} is on a file system without locks: start no second command with this folder",
                    )
                    return
                raise InUse(self._in_use(holder)) from error
            # The holder before may have removed the name between the two calls above.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                break
            os.close(handle)
        who = {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        # A full disk is reported by whatever needs space.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(who).encode())
        self.handle = handle

    def _unwritable(self, error: OSError) -> OSError:
        return OSError(
            f"{self.argument} {self.folder} cannot be written ({error.strerror or error}): pass another "
            f"--{self.argument}, or change its permissions"
        )

    def _in_use(self, holder: str) -> str:
        return (
            f"{self.argument} {self.folder} is in use by {holder}: wait until that command has ended, or pass another "
            f"--{self.argument}"
        )


def _holder(handle: int) -> str:
    """Return who holds the lock, as far as the file says."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        who = json.loads(os.read(handle, 4096))
        return f"process {int(who['process'])} on {who['host']} (since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another command"


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        # Beyond the text, which others can then still read.
        os.lseek(handle, 1 << 20, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
