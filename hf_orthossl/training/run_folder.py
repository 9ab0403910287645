"""The folder of a run: whose it is, how it begins, and how another run takes its place."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import replace_file
from .arguments import OrthoSSLTrainingArguments
from .checkpoints import DAMAGED, STAGING, checkpoints

# Where an earlier run waits until the one that replaces it has taken a step, and what it is called while it is removed.
OVERWRITTEN, GONE = ".overwritten", ".overwritten.removing"
# What a run leaves in its folder, and all that --overwrite_output may remove. First the one that says whose it is.
RUN_FILES = ("config.yaml", "encoder", "history.jsonl", "results.json", "unreadable_images.txt")
# First line of a run's config.yaml; tells our files from a user's of the same names.
MARK = "# Settings of an orthossl run; `orthossl pretrain --config` starts it again.\n"


def check_folder(folder: Path, args: OrthoSSLTrainingArguments) -> None:
    """Refuses a folder that holds another run, unless the user says what to do with it."""
    if args.resume and args.overwrite_output:
        raise ValueError("resume and overwrite_output exclude each other: pass one of them")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: pass a folder")
    if not args.resume:
        put_back(folder)
    if not holds_run(folder) or args.resume:
        return
    if not args.overwrite_output:
        raise ValueError(
            f"output_dir {folder} holds another run: pass --resume to continue it, --overwrite_output to replace it, "
            "or another --output_dir"
        )
    if not is_run(folder):
        raise ValueError(
            f"output_dir {folder} holds files that orthossl pretrain did not write: it clears its own runs only; pass "
            "another --output_dir"
        )


def begin_folder(folder: Path, args: OrthoSSLTrainingArguments, settings: dict) -> None:
    """Writes what a run was started with."""
    if not args.resume:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "config.yaml", MARK + yaml.safe_dump(settings, sort_keys=False), durable=True)


def holds_run(folder: Path) -> bool:
    """Whether a folder already has what a run produced; settings alone are those of a run that never began."""
    produced = (name for name in RUN_FILES if name != "config.yaml")
    return any((folder / name).exists() for name in produced) or bool(checkpoints(folder))


def is_run(folder: Path) -> bool:
    """Whether the folder is one that the command line made, and may therefore clear."""
    config = folder / "config.yaml"
    return config.is_file() and config.read_text(errors="replace").startswith(MARK)


@contextlib.contextmanager
def overwriting(folder: Path) -> Iterator[None]:
    """Keeps the run in a folder aside while another one starts there, until that has taken an optimizer step.

    Then the earlier run goes, and nothing else does. What fails before brings it back; after a kill, [`put_back`] does.

    Args:
        folder (`Path`): Run folder; call it on the main process.
    """
    aside = folder / OVERWRITTEN
    aside.mkdir(parents=True, exist_ok=True)
    for path in _left_by_run(folder):
        path.rename(aside / path.name)

    def remove(*_) -> None:
        if aside.is_dir():
            # Renamed first, so that a kill leaves no half of a run to be put back.
            shutil.rmtree(folder / GONE, ignore_errors=True)
            aside.rename(folder / GONE)
            shutil.rmtree(folder / GONE, ignore_errors=True)

    hook = register_optimizer_step_post_hook(remove)
    try:
        yield
        remove()
    except BaseException:
        put_back(folder)
        raise
    finally:
        hook.remove()


def put_back(folder: Path) -> None:
    """Brings back a run that [`overwriting`] set aside and that nothing has replaced, if there is one."""
    aside = folder / OVERWRITTEN
    if not aside.is_dir():
        return
    # Settings are the first to go aside and the last to return: those found here as well are of the run that failed.
    if is_run(aside) and is_run(folder):
        for path in _left_by_run(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in reversed(_left_by_run(aside)):
        path.rename(folder / path.name)
    shutil.rmtree(aside)


def _left_by_run(folder: Path) -> list[Path]:
    damaged = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*{DAMAGED}")
    named = (folder / name for name in (*RUN_FILES, STAGING))
    return [*(path for path in named if path.exists()), *checkpoints(folder), *damaged]
