"""Checkpoints: written to a staging folder, renamed when complete, and verified before they are read.

Security: the files of a run folder, which this package wrote, are trusted. The checksums of the manifest detect damage,
not forgery: do not resume from a folder of unknown origin. Weights are safetensors, records of this package are JSON,
and the files of torch, the Trainer and accelerate are read with `weights_only=True`. Only the formats of FSDP and
DeepSpeed contain pickles.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..disk_errors import cause_of, error_number
from ..distributed.collectives import all_reduce_min
from ..files import replace_file, sync_folder
from ..messages import warn_above_bars

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STAGING = ".saving"
# Suffix of a damaged checkpoint.
DAMAGED = ".damaged"


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, valid or not, newest first."""
    named = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    paths = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if named.fullmatch(path.name) and path.is_dir()]
    return sorted(paths, key=steps_done, reverse=True)


def steps_done(checkpoint: Path) -> int:
    """Return the number of optimizer steps after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_checkpoint(folder: Path, marker: str, check: Callable[[Path], None]) -> Path:
    """Return the newest valid checkpoint, to resume from; call it on the main process.

    Newer checkpoints that are damaged are renamed to `checkpoint-<step>.damaged`, with a warning that gives the reason.
    A checkpoint that a killed process left incomplete is removed; one that was complete but not yet renamed is renamed.

    Args:
        folder (`Path`): Run folder.
        marker (`str`): File that identifies the checkpoints: `trainer_state.json` or `loop_state.json`.
        check (`Callable`): Raises if a valid checkpoint is not one of this run; called before any is renamed.

    Raises:
        FileNotFoundError: There is none, or it was written by the other training loop.
    """
    _recover(folder)
    damaged: dict[Path, str] = {}
    for checkpoint in checkpoints(folder):
        reason = damage(checkpoint)
        if reason is None:
            break
        damaged[checkpoint] = reason
    else:
        reasons = ", ".join(f"{path.name} is damaged ({reason})" for path, reason in damaged.items())
        raise FileNotFoundError(
            f"output_dir {folder} has no {'valid ' if damaged else ''}checkpoint to resume from: "
            f"{reasons + '; ' if damaged else ''}run without --resume, with --overwrite_output to replace the folder"
        )
    if not (checkpoint / marker).exists():
        raise FileNotFoundError(
            f"{checkpoint} has no {marker}: it was written by another training loop; resume it with the command that "
            "started it (orthossl pretrain or scripts/pretrain.py)"
        )
    check(checkpoint)
    for path, reason in damaged.items():
        warn_above_bars(
            logger,
            f"{path.name} is damaged ({reason}), renamed to {path.name}{DAMAGED}: resuming from {checkpoint.name}",
        )
        shutil.rmtree(folder / f"{path.name}{DAMAGED}", ignore_errors=True)
        path.rename(folder / f"{path.name}{DAMAGED}")
    return checkpoint


def remove_old_checkpoints(folder: Path, limit: int | None, newest: Path) -> None:
    """Remove all but the newest `limit` checkpoints up to the one just saved, counting those with all their files.

    Args:
        folder (`Path`): Run folder.
        limit (`int`, *optional*): Checkpoints to keep; `None` or 0 for all.
        newest (`Path`): The checkpoint just saved, which is always kept.
    """
    if not limit or limit < 0:
        return
    older = [path for path in checkpoints(folder) if steps_done(path) < steps_done(newest)]
    kept = [newest, *(path for path in older if damage(path, thorough=False) is None)][:limit]
    for path in older:
        if steps_done(path) < steps_done(kept[-1]):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def staged(folder: Path, step: int, write: bool = True) -> Iterator[Path]:
    """Yield a staging folder, whose `checkpoint-<step>` moves to `folder` once all processes have written it.

    Every process of the run must enter the context, and all must see the same folder.

    Args:
        folder (`Path`): Run folder.
        step (`int`): Optimizer steps taken.
        write (`bool`, defaults to `True`): Whether this process cleans up and renames, as the main process
            does.

    Raises:
        OSError: A process could not write. All processes raise it, the staging folder is removed, and earlier
            checkpoints are unchanged.
    """
    staging, target = folder / STAGING, folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    try:
        with _all_or_none(target):
            if write:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
        with _all_or_none(target):
            yield staging
        with _all_or_none(target):
            if write:
                _put_in_place(staging / target.name, target)
    finally:
        if write:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _all_or_none(target: Path) -> Iterator[None]:
    """Raise in every process if the block fails in one of them."""
    failure = None
    try:
        yield
    # Report any error, because all other processes wait for the outcome.
    except BaseException as error:
        failure = error
    if all_reduce_min(int(failure is None)):
        return
    if not isinstance(failure, OSError | None) and error_number(failure) is None:
        raise failure
    reason = "another process could not write" if failure is None else cause_of(failure, target)
    raise OSError(
        f"could not save checkpoint {target} ({reason}): earlier checkpoints are intact; "
        "free disk space and continue with --resume"
    ) from failure


def _put_in_place(checkpoint: Path, target: Path) -> None:
    """Seal a checkpoint and give it its final name."""
    seal(checkpoint)
    if target.exists():
        # The existing one belongs to an earlier run, or is damaged. `_recover` handles a kill before the next rename.
        target.rename(checkpoint.parent / "replaced")
    checkpoint.rename(target)
    sync_folder(target.parent)


def _recover(folder: Path) -> None:
    """Rename a sealed checkpoint that a killed process left in the staging folder, and remove everything else in it."""
    for checkpoint in checkpoints(folder / STAGING):
        if damage(checkpoint) is None and not (folder / checkpoint.name).exists():
            checkpoint.rename(folder / checkpoint.name)
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def seal(folder: Path) -> None:
    """Write the manifest (size and SHA-256 of every file of a checkpoint), and flush all files to disk.

    The manifest is written last: a checkpoint that has one was complete.

    Args:
        folder (`Path`): The checkpoint, with the files of all processes.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(folder).as_posix()] = {"size": file.tell(), "sha256": digest}
            os.fsync(file.fileno())
    replace_file(folder / MANIFEST, json.dumps({"files": files}, indent=1), durable=True)
    for directory in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(directory)


def damage(folder: Path, *, thorough: bool | Collection[str] = True) -> str | None:
    """Return a short description of the damage of a checkpoint; `None` if every file is as it was when sealed.

    Args:
        folder (`Path`): The checkpoint.
        thorough (`bool` or collection of `str`, defaults to `True`): Whether to compare checksums, which reads every
            file, or the names of the files whose checksums are compared; sizes are always compared.
    """
    checked = (lambda name: name in thorough) if isinstance(thorough, Collection) else (lambda name: thorough)
    # Opening a pipe would wait for its writer.
    if (folder / MANIFEST).exists() and not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is not a regular file"
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"].items()
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, (size, checksum) in expected.items():
        if (folder / name).exists() and not (folder / name).is_file():
            return f"{name} is not a regular file"
        try:
            with (folder / name).open("rb") as file:
                actual = os.fstat(file.fileno()).st_size
                if actual != size:
                    return f"{name}: {actual} bytes instead of {size}"
                if checked(name) and hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                    return f"{name}: checksum differs"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None
