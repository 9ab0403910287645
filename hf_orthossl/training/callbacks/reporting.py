"""Report training progress: scalars in log entries, and the history file."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from transformers import Trainer, TrainerCallback, TrainerState

from ...files import append_lines, read_lines, replace_file
from ...messages import warn_once
from ..settings import RunRecord

logger = logging.getLogger(__name__)

HISTORY = "history.jsonl"
# Key of the first entry, which holds the id of the run.
RUN = "run"
# Key of an entry that holds the options that a resumed run changed, each with its values before and now.
CHANGED = "changed"


class ReportingCallback(TrainerCallback):
    """Add scalars to the log entries of any `transformers.Trainer`.

    A Trainer calls the integrations that `report_to` names (TensorBoard, …) before the user's callbacks, so that
    they do not see what those callbacks add. [`~ReportingCallback.attach`] puts a callback before them. A
    callback passed as `Trainer(callbacks=[…])` works as well, but its scalars reach only `trainer.state.log_history`
    and the printed log. [`OrthoSSLTrainer`] attaches its callbacks automatically.

    Subclasses implement [`~ReportingCallback.scalars`].
    """

    _attached = False

    def attach(self, trainer: Trainer) -> Self:
        """Add this callback to a trainer, before the integrations that report its log entries.

        Args:
            trainer (`Trainer`): The trainer; if it already has the callback, the callback is moved.

        Returns:
            This callback.

        Example:
            ```python
            trainer = Trainer(model, args, train_dataset=ds)
            OrthogonalityCallback(kind="so").attach(trainer)
            trainer.train()
            ```
        """
        handler = trainer.callback_handler
        handler.callbacks = [self, *(callback for callback in handler.callbacks if callback is not self)]
        self._attached = True
        return self

    def on_train_begin(self, args, state, control, **kwargs):
        """Warn once if the integrations will not see the scalars of this callback."""
        integrations = getattr(args, "report_to", None)
        if integrations and not self._attached:
            warn_once(
                logger,
                f"the values of {type(self).__name__} are logged but not reported to {', '.join(integrations)}: call "
                "callback.attach(trainer) instead of passing it as callbacks=[callback]",
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Add the scalars to the log entry and to the trainer's log history."""
        added = self.scalars(state, logs)
        logs.update(added)
        state.log_history[-1].update(added)

    def scalars(self, state: TrainerState, logs: dict[str, float]) -> dict[str, float]:
        """Return the scalars to add to a log entry; called on every process.

        Args:
            state (`TrainerState`): The trainer's state, after `state.global_step` optimizer steps.
            logs (`dict[str, float]`): The log entry so far.
        """
        return {}


class HistoryCallback(TrainerCallback):
    """Write every log entry to `<output_dir>/history.jsonl`, one JSON object per line.

    Args:
        record ([`~training.settings.RunRecord`]): The record of the run, which has its id.
    """

    def __init__(self, record: RunRecord):
        self.record = record

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin the file, without the entries that a resumed run will write again."""
        if state.is_world_process_zero:
            begin_history(args.output_dir, self.record.run, state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append one entry."""
        if state.is_world_process_zero:
            append_history(args.output_dir, {"step": state.global_step, **logs})


def append_history(folder: str | Path, entry: Mapping[str, Any]) -> None:
    """Append one log entry to `<folder>/history.jsonl`."""
    append_lines(Path(folder) / HISTORY, [json.dumps(entry)])


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """Return the log entries in `<folder>/history.jsonl`; a truncated last line is ignored.

    Raises:
        ValueError: A line is not one of a history.
    """
    return [entry for entry in _entries(folder) if RUN not in entry]


def history_run(folder: str | Path) -> str | None:
    """Return the id of the run whose history is in a folder, or `None` if there is none."""
    try:
        return next((str(entry[RUN]) for entry in _entries(folder) if RUN in entry), None)
    except ValueError:
        return None


def begin_history(folder: str | Path, run: str, step: int) -> list[dict[str, Any]]:
    """Write the id of the run, and remove the log entries that a run resumed after `step` writes again.

    Returns:
        `list[dict[str, Any]]`: The remaining log entries.
    """
    entries = [entry for entry in read_history(folder) if entry["step"] < step + (CHANGED not in entry)]
    lines = [json.dumps(entry) + "\n" for entry in ({RUN: run, "step": 0}, *entries)]
    Path(folder).mkdir(parents=True, exist_ok=True)
    replace_file(Path(folder) / HISTORY, "".join(lines), durable=True)
    return entries


def _entries(folder: str | Path) -> list[dict[str, Any]]:
    """Return all entries of a history, that with the id of the run included."""
    path = Path(folder) / HISTORY
    entries = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise ValueError(f"{path}: line {number} is not a log entry with its step: remove the line")
        entries.append(entry)
    return entries
