"""Handle SIGTERM and Ctrl-C during training: finish the step, save a checkpoint, and end the run."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ..distributed.collectives import all_reduce_max, rank

# Seconds for which a data loader worker continues to serve the current step after SIGTERM.
GRACE = 60


class Interrupted(SystemExit):
    """The end of a run by a signal, with a checkpoint; `code` is 128 plus the number of the signal, as in shells."""

    def __init__(self, code: int, message: str):
        super().__init__(code)
        self.message = message


class Interruption:
    """A context that only records SIGTERM and SIGINT, so that all processes act on them together after a step.

    A second Ctrl-C raises `KeyboardInterrupt` at once. Signals that were ignored remain ignored. Outside the
    main thread, the only one that may handle signals, nothing changes. The previous handlers are restored at the end.

    Example:
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
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        self.received = self._interrupts = 0
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before = signal.getsignal(number)
                # `None` means that the handler was not installed from Python and cannot be restored.
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
        """Return the number of a signal that any process received, else 0; call it on every process after each step."""
        self.received = all_reduce_max(self.received)
        return self.received

    def stop(self, step: int, checkpoint: Path) -> None:
        """End the run; when the context exits, a line below the progress bars states how to continue it.

        Raises:
            Interrupted: Always.
        """
        by = signal.Signals(self.received).name
        message = f"stopped by {by} after step {step}: {checkpoint} is saved, continue with --resume"
        raise Interrupted(128 + self.received, message)

    def _note(self, number: int, frame) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts == 2:
                raise KeyboardInterrupt
            if rank() == 0 and os.getpid() == self._process:
                # Not `print`, because the signal may have interrupted a call of it.
                os.write(2, b"\nending after this step, with a checkpoint; Ctrl-C again ends at once\n")
        self.received = self.received or number


def outlast_interruption(worker: int) -> None:
    """Let a data loader worker finish the current step when the whole process group is signalled (`worker_init_fn`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
