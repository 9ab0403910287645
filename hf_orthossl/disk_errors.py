"""Say in one line why a file cannot be written: which one, what it needs, and the remedy."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .messages import first_line, readable_size

# What to do about each reason for which a file cannot be written.
_REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
    errno.EFBIG: "raise the limit (ulimit -f)",
    errno.EROFS: "mount it writable",
    errno.EACCES: "change the permissions",
    errno.EPERM: "change the permissions",
}
# How torch says that the memory which workers share is full.
_SHARED = re.compile(r"unable to .*</torch_.* \((\d+)\)")
# Reasons that lie in the disk, and not in one of its files.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotWritten(OSError):
    """Raised if a file or folder cannot be written; the message is one line.

    Args:
        name (`str`): The file or folder.
        cause (`str`): Why it cannot be written, and what it needs.
        remedy (`str`): What to do.
        number (`int`, *optional*): The system's number of the error.
    """

    def __init__(self, name: str, cause: str, remedy: str, number: int | None = None):
        super().__init__(f"{name} cannot be written ({cause}): {remedy}")
        self.name, self.cause, self.remedy, self.errno = name, cause, remedy, number

    def __reduce__(self):
        return type(self), (self.name, self.cause, self.remedy, self.errno)


@contextlib.contextmanager
def explained(
    path: Path, need: int | None = None, otherwise: str = "choose another folder", *, instead: Path | None = None
) -> Iterator[None]:
    """Turn the errors of a block that writes a file or folder into [`NotWritten`].

    Args:
        path (`Path`): The file or folder.
        need (`int`, *optional*): The bytes that the block writes.
        otherwise (`str`): What the user can do instead of freeing space.
        instead (`Path`, *optional*): The folder that the block writes to before it takes the place of `path`: errors
            name `path`, and those of other files are left as they are.
    """
    try:
        yield
    except NotWritten as error:
        if instead is None or str(instead) not in error.name:
            raise
        name = error.name.replace(str(instead), str(path))
        raise NotWritten(name, error.cause, error.remedy, error.errno) from error
    except Exception as error:  # safetensors and torch report a full disk by classes of their own
        number, file = error_number(error), getattr(error, "filename", None)
        # The system names no file if writing fails, but does if opening fails.
        elsewhere = instead is not None and (
            number not in _REMEDIES if file is None else not str(file).startswith(str(instead))
        )
        if number is None or elsewhere:
            raise
        raise not_written(path, error, need, otherwise) from error


def not_written(
    path: Path,
    error: BaseException,
    need: int | None = None,
    otherwise: str = "choose another folder",
    name: str | None = None,
) -> NotWritten:
    """Return the error for a file or folder that cannot be written, with what it needs, and the remedy.

    Args:
        path (`Path`): The file or folder.
        error (`BaseException`): What happened: an `OSError`, or an error of safetensors or torch.
        need (`int`, *optional*): The bytes that were to be written.
        otherwise (`str`): What the user can do instead of freeing space.
        name (`str`, *optional*): What to call it; the path by default.
    """
    number = error_number(error)
    remedy = f"{_REMEDIES[number]}, or {otherwise}" if number in _REMEDIES else otherwise
    return NotWritten(name or str(path), cause_of(error, path, need), remedy, number)


def cause_of(error: BaseException, path: Path, need: int | None = None) -> str:
    """Return why a path cannot be written, in the words of the system, with the bytes needed and free.

    Args:
        error (`BaseException`): What happened.
        path (`Path`): The file or folder.
        need (`int`, *optional*): The bytes that were to be written.
    """
    if isinstance(error, NotWritten):
        return error.cause
    number = error_number(error)
    if number not in _REMEDIES:
        return getattr(error, "strerror", None) or first_line(error)
    parts = [os.strerror(number)]
    if need and number in _FULL:
        parts.append(f"{readable_size(need)} needed")
    free, most = _free(path), _largest_file()
    if number == errno.ENOSPC and free is not None:
        parts.append(f"{readable_size(free)} free")
    if number == errno.EFBIG and most is not None:
        parts.append(f"at most {readable_size(most)} allowed")
    return ", ".join(parts)


def full_disk(error: BaseException) -> NotWritten | None:
    """Return an error that says that a disk takes nothing more, if that is what an error or one of its causes is.

    Libraries write into folders of their own, such as caches, and raise classes of their own.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, NotWritten):
        number = error_number(found)
        if number in _FULL and (found is error or os.strerror(number) not in str(error)):
            file = getattr(found, "filename", None)
            if isinstance(found, RuntimeError) and _SHARED.search(str(found)):
                otherwise = "read images with 0 workers"
                return not_written(Path("/dev/shm/torch"), found, otherwise=otherwise, name="shared memory (/dev/shm)")
            return not_written(Path(file or tempfile.gettempdir()), found, name=str(file or "a file"))
        found = found.__cause__ or found.__context__
    return None


def error_number(error: BaseException) -> int | None:
    """Return the system's number of an error of a file, also if safetensors or torch reports it; `None` for others."""
    if isinstance(error, OSError):
        return error.errno
    module = type(error).__module__.partition(".")[0]
    if module == "safetensors" and (found := re.search(r"\(os error (\d+)\)", str(error))):
        return int(found[1])
    if isinstance(error, RuntimeError) and (found := _SHARED.search(str(error))):
        return int(found[1])
    # torch says only that its writer failed.
    if isinstance(error, RuntimeError) and re.search("PytorchStreamWriter|inline_container", str(error)):
        return errno.ENOSPC if _largest_file() is None else errno.EFBIG
    return None


def _largest_file() -> int | None:
    """Return the size that a file of this process may have; `None` without a limit."""
    if os.name == "nt":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _free(path: Path) -> int | None:
    """Return the free bytes of the disk that a path is on, or would be."""
    with contextlib.suppress(OSError):
        existing = next(parent for parent in path.absolute().parents if parent.is_dir())
        return shutil.disk_usage(existing).free
    return None
