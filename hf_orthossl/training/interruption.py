"""SIGTERM and Ctrl-C while a model trains: the step is finished, a checkpoint saved, and the run ends."""

import os
import signal
import sys
import threading
from pathlib import Path

from ..distributed.collectives import all_reduce_max, rank

# Seconds that a data loader's worker, told to end, still serves the step in progress.
GRACE = 60


class Interrupted(SystemExit):
    """A run was told to end and did so with a checkpoint; `code` is 128 plus the signal's number, as in shells."""

    def __init__(self, code: int, message: str):
        super().__init__(code)
        self.message = message


class Interruption:
    """While entered, SIGTERM and SIGINT are only noted, for all processes to act on together after a step.

    A second Ctrl-C raises `KeyboardInterrupt` at once. Signals that were ignored before stay so, and outside the main
    thread, which alone may handle signals, nothing changes. The earlier handlers return on leaving.

    ```python
    with Interruption() as interruption:
        for step in range(steps):
            ...
            if interruption.agreed():
                save(step)
                interruption.stop(step, checkpoint)
    ```
    """

    def __init__(self):
        self.received = 0
        self._interrupts = 0
        self._process = os.getpid()
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        self.received = self._interrupts = 0
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before = signal.getsignal(number)
                # None: installed by other means than Python, and not ours to replace.
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, Interrupted) and rank() == 0:
            print(error.message, file=sys.stderr)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def agreed(self) -> int:
        """The number of a signal that any process received, 0 for none; every process calls it after each step."""
        self.received = all_reduce_max(self.received)
        return self.received

    def stop(self, step: int, checkpoint: Path) -> None:
        """Ends the run; where it ended and how it goes on is said on leaving, below what progress bars there were.

        Raises:
            Interrupted: always.
        """
        by = signal.Signals(self.received).name
        message = f"stopped by {by} after step {step}: {checkpoint} is saved, go on with --resume"
        raise Interrupted(128 + self.received, message)

    def _note(self, number: int, frame) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts == 2:
                raise KeyboardInterrupt
            if rank() == 0 and os.getpid() == self._process:
                # Not print: the signal may have come in the middle of another.
                os.write(2, b"\nending after this step, with a checkpoint; Ctrl-C again ends at once\n")
        self.received = self.received or number


def outlast_interruption(worker: int) -> None:
    """`worker_init_fn` of a data loader: a signal to the whole process group leaves the step in progress its images."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
