"""Checkpoints that are written aside and renamed when whole, and checked before anything is read from them.

What is trusted: the files of a run folder, which this package wrote. The manifest's checksums find damage, not forgery:
do not resume a folder of unknown origin. Weights are safetensors, our own records JSON, and what remains of torch, the
Trainer and accelerate is read with `weights_only=True`. Only FSDP's and DeepSpeed's own formats hold pickles.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..distributed.collectives import all_reduce_min
from ..files import sync_folder
from .checkpoint_files import damage, seal
from .watching import say

STAGING = ".saving"
# Added to the name of a checkpoint that was found damaged.
ASIDE = ".damaged"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, newest first."""
    named = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if named.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=steps_done, reverse=True)


def steps_done(checkpoint: Path) -> int:
    """Optimizer steps after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_checkpoint(folder: Path, marker: str) -> Path:
    """The newest checkpoint that is whole, to resume from; call it on the main process.

    Newer ones that are damaged are named in a warning with the reason, and kept as `checkpoint-<step>.damaged`. What a
    kill left half-written is removed, and a checkpoint that only lacked its name gets it.

    Args:
        folder (`Path`): Run folder.
        marker (`str`): File that the front's checkpoints hold, `trainer_state.json` or `loop_state.json`.

    Raises:
        FileNotFoundError: there is none, or the other front wrote it.
    """
    _recover(folder)
    damaged: dict[Path, str] = {}
    for checkpoint in checkpoints(folder):
        reason = damage(checkpoint)
        if reason is None:
            break
        damaged[checkpoint] = reason
    else:
        found = ", ".join(f"{path.name} is damaged ({reason})" for path, reason in damaged.items())
        raise FileNotFoundError(
            f"output_dir {folder} has no {'valid ' if damaged else ''}checkpoint to resume from: "
            f"{found + '; ' if damaged else ''}run without --resume, with --overwrite_output to replace what is there"
        )
    if not (checkpoint / marker).exists():
        raise FileNotFoundError(
            f"{checkpoint} has no {marker}: it was written by the other front; resume it with the command that started "
            "it (orthossl pretrain or scripts/pretrain.py)"
        )
    for path, reason in damaged.items():
        say(f"{path.name} is damaged ({reason}), kept as {path.name}{ASIDE}: resuming from {checkpoint.name}")
        shutil.rmtree(folder / f"{path.name}{ASIDE}", ignore_errors=True)
        path.rename(folder / f"{path.name}{ASIDE}")
    return checkpoint


def remove_old_checkpoints(folder: Path, limit: int | None, newest: Path) -> None:
    """Keeps the newest `limit` checkpoints up to the one just saved, counting only those whose files are complete.

    Args:
        folder (`Path`): Run folder.
        limit (`int`, *optional*): How many to keep; `None` or 0 for all.
        newest (`Path`): The checkpoint just saved, which always stays.
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
    """Yields a staging folder; what all processes put into `checkpoint-<step>` below it moves to `folder` when whole.

    Every process of the run has to enter. The folder is one that all of them see.

    Args:
        folder (`Path`): Run folder.
        step (`int`): Optimizer steps done.
        write (`bool`, defaults to `True`): Whether this process cleans up and renames; the main process of a run does.

    Raises:
        OSError: a process could not write; all of them raise, the staging folder is removed, earlier checkpoints are
            untouched.
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
    """Raises in every process when the block fails in one of them."""
    failure = None
    try:
        yield
    # Whatever it is, the others wait to hear of it.
    except BaseException as error:
        failure = error
    if all_reduce_min(int(failure is None)):
        return
    # torch.save reports a full disk as RuntimeError, safetensors as an error of its own.
    if not isinstance(failure, OSError | RuntimeError | SafetensorError | None):
        raise failure
    reason = "another process could not write" if failure is None else _first_line(failure)
    raise OSError(
        f"could not save checkpoint {target} ({reason}): earlier checkpoints are intact; "
        "free some space and continue with --resume"
    ) from failure


def _put_in_place(checkpoint: Path, target: Path) -> None:
    seal(checkpoint)
    if target.exists():
        # Of an earlier run, or damaged. A kill before the next rename is mended by `_recover`.
        target.rename(checkpoint.parent / "replaced")
    checkpoint.rename(target)
    sync_folder(target.parent)


def _recover(folder: Path) -> None:
    """Ends what a kill interrupted: a sealed checkpoint gets its name, anything else in the staging folder goes."""
    for checkpoint in checkpoints(folder / STAGING):
        if damage(checkpoint) is None and not (folder / checkpoint.name).exists():
            checkpoint.rename(folder / checkpoint.name)
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
