"""Handle SIGTERM, SIGHUP, Ctrl-C and a time limit in training: finish the step, save a checkpoint, end the run."""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..distributed import peers
from ..distributed.collectives import all_reduce_max, rank
from ..distributed.ending import REPEAT, SIGNALS, Terminated, deferred
from ..distributed.progress import here
from .checkpoints import checkpoints

# The number by which processes agree that the time is over; among signals it is that of timers, SIGALRM.
OUT_OF_TIME = 14
# Seconds for which a data loader worker continues to serve the current step after a signal.
GRACE = 60


class Interrupted(SystemExit):
    """The end of a run by a signal, with a checkpoint; `code` is 128 plus the number of the signal, as in shells."""

    def __init__(self, code: int, message: str):
        super().__init__(code)
        self.message = message


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[Callable[[], bool]]:
    """Let every run within the block stop with a checkpoint once some time has passed, as a signal would.

    Args:
        seconds (`float`): The time from now on; infinite for no limit.

    Yields:
        `Callable`: Returns whether the time is over.
    """
    until = _clock() + seconds
    _limits.append(until)
    try:
        yield lambda: _clock() >= until
    finally:
        _limits.remove(until)


def _clock() -> float:
    return time.monotonic()


# The times, by that clock, at which runs stop.
_limits: list[float] = []


class Interruption:
    """A context that only records SIGTERM, SIGHUP and SIGINT, so that all processes act on them together after a step.

    A second signal ends the process at once: a command by itself, even in the midst of a collective; elsewhere it
    raises `KeyboardInterrupt` or [`Terminated`]. Signals that were ignored remain ignored. Outside the main thread, the
    only one that may handle signals, nothing changes. The previous handlers are restored at the end, and get a signal
    that came too late for a step.

    Args:
        folder (`str` or `Path`): The folder of the run, whose newest checkpoint is named if the run is lost.

    Example:
        ```python
        with Interruption("runs/a") as interruption:
            for step in range(steps):
                ...
                if interruption.agreed():
                    save(step)
                    interruption.stop(step, checkpoint)
        ```
    """

    def __init__(self, folder: str | Path):
        self.received = 0
        self._folder = Path(folder)
        self._first = 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        self._contexts = ExitStack()

    def __enter__(self) -> "Interruption":
        self.received, self._first = 0, 0.0
        here.training, here.remedy = True, self._remedy
        if threading.current_thread() is threading.main_thread():
            self._ends_by_itself = self._contexts.enter_context(deferred())
            for number in SIGNALS:
                before = signal.getsignal(number)
                # `None` means that the handler was not installed from Python and cannot be restored.
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        here.training = False
        if isinstance(error, Interrupted) and rank() == 0:
            print(error.message, file=sys.stderr)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._contexts.close()
        if error is None and self.received in self._before:
            os.kill(os.getpid(), self.received)
        self._before.clear()

    def agreed(self) -> int:
        """Return the number of a signal that any process received, `OUT_OF_TIME` after a time limit, else 0.

        Call it on every process after each step.
        """
        agreed = all_reduce_max(self.received or (OUT_OF_TIME if _clock() >= min(_limits, default=math.inf) else 0))
        # One that arrived meanwhile is for the next step.
        self.received = agreed or self.received
        return agreed

    def stop(self, step: int, checkpoint: Path) -> None:
        """End the run; when the context exits, a line below the progress bars states how to continue it.

        Raises:
            Interrupted: Always.
        """
        # From here on, each process ends by itself.
        peers.leave()
        by = "the time limit" if self.received == OUT_OF_TIME else signal.Signals(self.received).name
        message = f"stopped by {by} after step {step}: {checkpoint} is saved, continue {here.resumed}"
        raise Interrupted(128 + self.received, message)

    def _note(self, number: int, frame) -> None:
        if os.getpid() != self._process:
            # A process that was forked from this one, until it has its own handlers.
            return
        now = time.monotonic()
        if not self.received:
            self.received, self._first = number, now
            if number == signal.SIGINT and rank() == 0:
                # Not `print`, because the signal may have interrupted a call of it.
                os.write(2, b"\nending after this step, with a checkpoint; Ctrl-C again ends at once\n")
        elif now - self._first > REPEAT and not self._ends_by_itself:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    def _remedy(self) -> str:
        newest = next(iter(checkpoints(self._folder)), None)
        if newest is None:
            return "start the command again; no checkpoint was saved yet"
        return f"start the command again {here.resumed} to continue from {newest.name}"


def outlast_interruption(worker: int) -> None:
    """Let a data loader worker finish the current step when the whole process group is signalled (`worker_init_fn`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in SIGNALS:
        if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda received, frame: signal.alarm(GRACE))
