"""End a command by a signal: at once where nothing is to be saved, at the second one in any case, without leftovers.

Python calls a signal's handler between two instructions of the main thread, and thus not while that thread waits in a
collective whose peer is gone, or in a long product of matrices. A thread therefore reads the signals too, from a pipe
that Python writes to as they arrive, and ends the process when the main thread does not.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from . import environment
from .progress import here

if TYPE_CHECKING:
    import psutil

# SIGHUP is what processes get when their terminal is closed; Windows has none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
# Seconds that a command has to end after the first signal, where it does not save.
PATIENCE = 5.0
# A signal repeated within so many seconds is the same one: `timeout` and batch systems send it to the process and to
# its group.
REPEAT = 0.3
# Seconds for printing before the end.
LAST_WORDS = 2.0


class Terminated(SystemExit):
    """The end of a command by SIGTERM or SIGHUP; `code` is 128 plus the number of the signal, as in shells."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


class SignalGuard:
    """A context in which SIGTERM, SIGHUP and Ctrl-C end a command at once, or at the second signal if it saves first.

    The first raises [`Terminated`] or `KeyboardInterrupt`, so that what is half done is undone. If the main thread does
    not end within `PATIENCE` seconds, or at a second signal, the process is ended with all of its children. Signals
    that are ignored, as by nohup, remain ignored. Outside the main thread nothing changes.
    """

    def __init__(self):
        self.received: int | None = None
        # Set while a handler of signals, other than ours, ends the command in its own time.
        self.deferred = 0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalGuard":
        global _guard
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in SIGNALS:
            before = signal.getsignal(number)
            # `None` means that the handler was not installed from Python and cannot be restored.
            if before not in (None, signal.SIG_IGN):
                self._before[number] = before
                signal.signal(number, self._raise)
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._read, name="orthossl-signals", daemon=True).start()
        self._outer, _guard = _guard, self
        return self

    def __exit__(self, kind, error, traceback) -> None:
        global _guard
        if _guard is not self:
            return
        _guard = self._outer
        signal.set_wakeup_fd(self._wakeup)
        # A process that was forked may hold the pipe open, so that closing it would not end the thread.
        os.write(self._writing, b"\0")
        os.close(self._writing)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def comes(self, within: float = 0.2) -> bool:
        """Return whether a signal has arrived, or does so within some seconds."""
        until = time.monotonic() + within
        with contextlib.suppress(Terminated, KeyboardInterrupt):
            while self.received is None and time.monotonic() < until:
                time.sleep(0.01)
        return self.received is not None

    def _raise(self, number: int, frame) -> None:
        if os.getpid() != self._process:
            # A process that was forked from this one, such as a data loader's, ends without a word.
            os._exit(128 + number)
        self.received = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(number)

    def _read(self) -> None:
        """Count the signals, in a thread, and end the process when the main thread does not."""
        first, number = None, 0
        while True:
            patience = None
            if first is not None and not self.deferred:
                patience = max(0.0, first + PATIENCE - time.monotonic())
            if not select.select([self._reading], [], [], patience)[0]:
                _end_by(number)
            arrived = os.read(self._reading, 64)
            if 0 in arrived:
                os.close(self._reading)
                return
            for number in (number for number in arrived if number in self._before):
                now = time.monotonic()
                if first is None:
                    first = now
                elif now - first > REPEAT:
                    _end_by(number)


@contextlib.contextmanager
def deferred() -> Iterator[bool]:
    """Leave the first signal to other handlers, which end the command in their own time.

    Yields:
        `bool`: Whether a second signal ends the process by itself; otherwise the handlers have to.
    """
    guard = _guard
    if guard is None:
        yield False
        return
    guard.deferred += 1
    try:
        yield True
    finally:
        guard.deferred -= 1


def tell_ended(number: int) -> None:
    """Print that a signal ended the command, and how to go on; one process of several that a launcher started does."""
    if environment.is_main_process() or not environment.is_launched():
        write(f"\n{here.command}: ended by {signal.Signals(number).name}: {here.remedy()}\n")


def _end_by(number: int) -> NoReturn:
    end_now(128 + number, lambda: tell_ended(number))


def end_now(code: int, last_words: Callable[[], object]) -> NoReturn:
    """End this process from any thread, after printing, together with the processes that it has started.

    Args:
        code (`int`): The exit code.
        last_words (`Callable`): Prints; it is given up after two seconds, as are lines not yet printed.
    """

    def speak() -> None:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            last_words()

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    speaker.join(LAST_WORDS)
    end_children()
    os._exit(code)


def end_children() -> None:
    """End all processes that this one has started, such as those of data loaders, which would outlive it."""
    import psutil

    for child in _children():
        with contextlib.suppress(psutil.Error):
            # Python's own helper removes shared memory that is left over, once all others have ended.
            if not any("resource_tracker" in part for part in child.cmdline()):
                child.kill()


def children_work() -> float:
    """Return the seconds that the processes which this one has started have computed."""
    import psutil

    total = 0.0
    for child in _children():
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def _children() -> "list[psutil.Process]":
    # Imported here, because commands that only print help need not wait for it.
    import psutil

    try:
        return psutil.Process().children(recursive=True)
    except psutil.Error:
        return []


def write(text: str) -> None:
    """Write to standard error from any thread, even while the main thread is within a call of `print`.

    Nothing is written where that would block.
    """
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], LAST_WORDS)[1]:
            os.write(2, text.encode(errors="replace"))


def send_to_self() -> None:
    """Send SIGTERM to this process, as a launcher does that ends."""
    os.kill(os.getpid(), signal.SIGTERM)


def _forget() -> None:
    """Let a process that was forked from this one not write its signals into this one's pipe."""
    global _guard
    if _guard is not None:
        _guard = None
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)


_guard: SignalGuard | None = None
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
