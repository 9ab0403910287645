"""Show the progress of a run: a bar in a terminal, and a dated line for each log entry elsewhere."""

import math
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from ..spectra.stages import REPRESENTATION
from ..terminal import shows_bars

# Key of a log entry → what it is called, in the order in which they are shown. The history file has all that is logged.
SHOWN = {
    "loss": "loss",
    "knn/top1": "kNN",
    "linear_probe/top1": "linear",
    f"spectra/features/{REPRESENTATION}/effective_rank": "rank",
    "learning_rate": "lr",
    "ssl": "ssl",
    "orthogonality": "orthogonality",
    "embedding_std": "embedding_std",
}
# What is measured more rarely than it is logged is shown until it is measured again.
_KEPT = ("kNN", "linear", "rank")
# The bar has a fixed width, so that text beside it is cut at the edge of the terminal and does not squeeze it.
_BAR = "{percentage:3.0f}%|{bar:14}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


class Display:
    """Show how far a run is, how fast it is, and what it logs, on standard error.

    In a terminal this is a bar. Elsewhere, in a file of a batch system, it is a line for each log entry, with date and
    time; and in a terminal too, with `disable_tqdm`.

    Args:
        total (`int`): Optimizer steps of the whole run.
        done (`int`): Those taken before, of a run that is resumed.
        images_per_step (`int`): Images of a step, of all processes together.
        bar (`bool`): Whether a bar may be shown; there is none outside a terminal.
        quiet (`bool`, defaults to `False`): Show nothing: on all processes but the main one.
    """

    def __init__(self, total: int, done: int, images_per_step: int, *, bar: bool, quiet: bool = False):
        self.total, self.first, self.done, self.images_per_step, self.quiet = total, done, done, images_per_step, quiet
        self._kept: dict[str, str] = {}
        self._began = self._since = self._now = time.monotonic()
        self._logged = done
        shown = bar and shows_bars() and not quiet
        self.bar = tqdm(total=total, initial=done, dynamic_ncols=True, bar_format=_BAR) if shown else None

    def step(self) -> None:
        """Take note of an optimizer step."""
        self.done += 1
        self._now = time.monotonic()
        if self.bar is not None:
            self.bar.update()

    def log(self, logs: Mapping[str, Any]) -> None:
        """Show a log entry, without the time that was spent on its measurements."""
        if self.quiet:
            return
        values = {name: f"{logs[key]:.4g}" for key, name in SHOWN.items() if isinstance(logs.get(key), int | float)}
        self._kept |= {name: values[name] for name in _KEPT if name in values}
        text = [f"{name} {value}" for name, value in (self._kept | values).items()]
        # The order of SHOWN, whatever was measured when.
        order = list(SHOWN.values())
        text.sort(key=lambda part: order.index(part.partition(" ")[0]))
        speed = self._speed()
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join([f"{speed} images/s", *text]))
        else:
            when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
            left = f"{duration(self._seconds_left())} left"
            print(
                f"{when}  step {self.done}/{self.total}  {speed} images/s  {left}  {'  '.join(text)}",
                file=sys.stderr,
                flush=True,
            )
        self._logged, self._since = self.done, time.monotonic()

    def close(self) -> None:
        """End the bar, which stays as it is."""
        if self.bar is not None:
            self.bar.close()

    def _speed(self) -> str:
        seconds = self._now - self._since
        images = (self.done - self._logged) * self.images_per_step
        return f"{images / seconds:,.{0 if images / seconds >= 10 else 1}f}" if seconds > 0 and images else "?"

    def _seconds_left(self) -> float:
        taken = self.done - self.first
        return (self.total - self.done) * (time.monotonic() - self._began) / taken if taken else math.nan


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    if math.isnan(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class DisplayCallback(TrainerCallback):
    """Show a [`Display`] while a Trainer trains, in the place of its own bar and of its printed entries.

    Args:
        images_per_step (`int`): Images of a step, of all processes together.
    """

    def __init__(self, images_per_step: int):
        self.images_per_step = images_per_step
        self.display: Display | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin to show."""
        quiet = not state.is_world_process_zero
        bar = not args.disable_tqdm
        self.display = Display(state.max_steps, state.global_step, self.images_per_step, bar=bar, quiet=quiet)

    def on_step_end(self, args, state, control, **kwargs):
        """Show that a step was taken."""
        if self.display is not None:
            self.display.step()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show a log entry; not the Trainer's summary, which is no measurement."""
        if self.display is not None and logs is not None and "loss" in logs:
            self.display.log(logs)

    def on_train_end(self, args, state, control, **kwargs):
        """End the bar."""
        if self.display is not None:
            self.display.close()
