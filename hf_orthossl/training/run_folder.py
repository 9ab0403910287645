"""The folder of a run: write its settings, recognize what this package wrote, and replace an earlier run."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..distributed.collectives import rank
from ..files import replace_file
from ..options import read_config
from .arguments import OrthoSSLTrainingArguments
from .callbacks.reporting import history_run, read_history
from .checkpoints import DAMAGED, STAGING, checkpoints
from .settings import MEASURED, RunRecord

# Where an earlier run is stored until its replacement has taken a step, and its name while it is removed.
OVERWRITTEN, REMOVING = ".overwritten", ".overwritten.removing"
# The files of a run, the only ones that --overwrite_output may remove. The first two identify a run: they are moved
# away first, and removed or restored last.
RUN_FILES = (
    *("config.yaml", "history.jsonl", "encoder", "results.json", "unreadable_images.txt"),
    *("report.html", "start"),
)
# The page that says what a run came to, and how it begins; distinguishes it from a user's file of the same name.
REPORT, REPORT_MARK = "report.html", "<!DOCTYPE html>\n<!-- Report of an orthossl run"
EXCLUSIVE = "resume and overwrite_output exclude each other: pass one of them"
# First line of a run's config.yaml; distinguishes it from a user's file of the same name. The second is the run's id.
MARK = "# Settings of an orthossl run; `orthossl pretrain --config` starts it again.\n"


def check_folder(folder: Path, args: OrthoSSLTrainingArguments, run: str | None = None) -> None:
    """Reject a folder that contains another run, unless `resume` or `overwrite_output` is set.

    Args:
        folder (`Path`): Run folder, whose lock this process holds.
        args ([`OrthoSSLTrainingArguments`]): Settings of the run.
        run (`str`, *optional*): The id of the run, whose own files are not in its way.

    Raises:
        ValueError: The folder is a file, or contains another run or files that do not belong to a run.
    """
    if args.resume and args.overwrite_output:
        raise ValueError(EXCLUSIVE)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: pass a folder")
    if not args.resume:
        put_back(folder)
    if not holds_run(folder) or args.resume or (run is not None and run_of(folder) == run):
        return
    if not args.overwrite_output:
        raise ValueError(
            f"output_dir {folder} holds another run: pass --resume to continue it, --overwrite_output to replace it, "
            "or another --output_dir"
        )
    if not is_run(folder):
        raise ValueError(
            f"output_dir {folder} holds files that no run of orthossl wrote, and only its own runs are overwritten: "
            "pass another --output_dir"
        )


def update_settings(folder: Path, record: RunRecord) -> None:
    """Write the options that a resumed run changed into its settings, with their earlier values as comments.

    Without options, `--resume` then continues with the changed ones. A γ that was measured becomes a comment too.

    Args:
        folder (`Path`): Run folder; nothing is written if no command has written settings into it.
        record ([`RunRecord`]): The record of the run, with the changes.
    """
    if not _is_config(folder):
        return
    settings = read_config(folder / "config.yaml")
    settings |= {name: now for name, (_, now) in record.changes.items()}
    changed = [name for name in record.options if len(record.options.values_of(name)) > 1]
    comments = "".join(f"# Changed when resumed: {name} {record.options.describe(name)}\n" for name in changed)
    if MEASURED in record.facts:
        comments += f"# {MEASURED}: {record.facts.describe(MEASURED)}\n"
    _write_config(folder, record.run, comments, settings)


def begin_folder(folder: Path, args: OrthoSSLTrainingArguments, settings: dict[str, Any], run: str) -> None:
    """Write the settings of a new run and its id; those of a resumed run are not changed."""
    if not args.resume:
        folder.mkdir(parents=True, exist_ok=True)
        _write_config(folder, run, "", settings)


def _write_config(folder: Path, run: str, comments: str, settings: dict[str, Any]) -> None:
    content = f"{MARK}# Run {run}\n{comments}{yaml.safe_dump(settings, sort_keys=False)}"
    replace_file(folder / "config.yaml", content, durable=True)


def run_of(folder: Path) -> str | None:
    """Return the id of the run that a folder belongs to, or `None` if it has no settings and no history of a run."""
    if _is_config(folder):
        found = re.search(
            r"^# Run (\w+)$", (folder / "config.yaml").read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        if found:
            return found[1]
    return history_run(folder)


def holds_run(folder: Path) -> bool:
    """Return whether a folder contains output of a run; settings, a history without entries, `start` do not count."""
    produced = any((folder / name).exists() for name in RUN_FILES[2:-2]) or bool(checkpoints(folder))
    return produced or ((folder / "history.jsonl").exists() and (not history_run(folder) or bool(read_history(folder))))


def size_of_run(folder: Path) -> int:
    """Return the bytes that `overwrite_output` frees in a folder, without the report, which the new run writes too."""
    written = (path for path in _written_by_run(folder) if path.name != REPORT)
    files = (file for path in written for file in (path.rglob("*") if path.is_dir() else (path,)))
    return sum(file.stat().st_size for file in files if file.is_file())


def is_run(folder: Path) -> bool:
    """Return whether a run wrote into a folder, which may therefore be cleared."""
    return _is_config(folder) or history_run(folder) is not None


def is_report(path: Path) -> bool:
    """Return whether a file is a report of a run, which may therefore be replaced."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(len(REPORT_MARK)) == REPORT_MARK


def _is_config(folder: Path) -> bool:
    config = folder / "config.yaml"
    return config.is_file() and config.read_text(encoding="utf-8", errors="replace").startswith(MARK)


@contextlib.contextmanager
def overwriting(args: OrthoSSLTrainingArguments) -> Iterator[None]:
    """Set the run in a folder aside, with `overwrite_output`, until the run that replaces it has taken a step.

    Only then is the earlier run removed. If the new run fails before, the earlier one is restored; after a
    kill, [`put_back`] restores it. Every process may enter the context; the main one acts.

    Args:
        args ([`OrthoSSLTrainingArguments`]): Settings of the run, whose `output_dir` is locked.
    """
    folder = Path(args.output_dir)
    if not args.overwrite_output or rank() > 0:
        yield
        return
    earlier = folder / OVERWRITTEN
    earlier.mkdir(parents=True, exist_ok=True)
    for path in _written_by_run(folder):
        path.rename(earlier / path.name)

    def remove(*_: Any) -> None:
        if earlier.is_dir():
            # Renamed first, so that a kill never leaves half a run to be restored.
            shutil.rmtree(folder / REMOVING, ignore_errors=True)
            earlier.rename(folder / REMOVING)
            shutil.rmtree(folder / REMOVING, ignore_errors=True)

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
    """Restore a run that [`overwriting`] set aside and that was not replaced, if there is one."""
    earlier = folder / OVERWRITTEN
    if not earlier.is_dir():
        return
    # What identifies a run is moved away first and restored last, so two runs mean that the new one failed.
    if run_of(folder) is not None and run_of(earlier) not in (None, run_of(folder)):
        for path in reversed(_written_by_run(folder)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in reversed(_written_by_run(earlier)):
        path.rename(folder / path.name)
    shutil.rmtree(earlier)


def _written_by_run(folder: Path) -> list[Path]:
    damaged = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*{DAMAGED}")
    theirs = {"config.yaml": not _is_config(folder), REPORT: not is_report(folder / REPORT)}
    named = (folder / name for name in (*RUN_FILES, STAGING) if not theirs.get(name))
    return [*(path for path in named if path.exists()), *checkpoints(folder), *damaged]
