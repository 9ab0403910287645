"""Read what a launcher says to the processes that it starts, and leave their errors with it.

These are the variables of torchrun, which also `accelerate launch` sets, or the user by hand, and the store that both
launchers provide.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch.distributed import PrefixStore

# Seconds for which a process that does not answer is waited for.
LIMIT = 300
# How long torch waits in a collective: the main process may compute for hours (a linear probe) while all others wait
# for it. Whether it does is watched by `peers.py`, which ends the wait for a process that is gone.
TIMEOUT = timedelta(days=1)
# The same for NCCL, whose waiting looks like work. Nobody waits there for the main process alone.
NCCL_TIMEOUT = timedelta(minutes=30)
T = TypeVar("T")
_ALONE = ("LOCAL_RANK", "-1")

# Key in the launcher's store under which processes count the errors of a run.
FAILED = "orthossl/failed"


def is_multi_process() -> bool:
    """Return whether a launcher started this process as one of several."""
    return _number("WORLD_SIZE", 1) > 1


def is_main_process() -> bool:
    """Return whether this is the main process, which prints and writes."""
    return _number("RANK", 0) == 0


def is_launched() -> bool:
    """Return whether torchrun or `accelerate launch` started this process, and provides a store to all."""
    return is_multi_process() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def check_environment() -> None:
    """Check the numbers by which a launcher, or the user, says which of several processes this is.

    Raises:
        ValueError: One is missing, no number, or out of range.
    """
    for name, least in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)):
        value = os.environ.get(name)
        # transformers takes a LOCAL_RANK of -1 for a process that is alone.
        if value is not None and not (value.isdecimal() and int(value) >= least) and (name, value) != _ALONE:
            raise ValueError(
                f"{name} is {value!r}: it must be a whole number from {least} on, or unset for one process"
            )
    size = _number("WORLD_SIZE", 1)
    if size > 1 and "RANK" not in os.environ:
        raise ValueError(
            f"RANK is not set, and WORLD_SIZE is {size}: start the command with accelerate launch or torchrun, or set "
            f"RANK from 0 to {size - 1} on each process"
        )
    if _number("RANK", 0) >= size:
        raise ValueError(
            f"RANK is {os.environ['RANK']} and WORLD_SIZE is {size}: RANK must be from 0 to {size - 1}, and differ on "
            "each process"
        )


def print_error_once(line: str) -> None:
    """Print an error of this process, unless another process of this run has already printed one.

    An error that all processes raise is then printed only once, and errors caused by the end of another process are
    not printed. Without torchrun's store, each process prints its own errors with its rank.
    """
    store = _store()
    if store is None:
        line = f"[rank {os.environ.get('RANK', '0')}] {line}" if is_multi_process() else line
    elif _in_time(lambda: store.add(FAILED, 1) > 1):
        return
    print(line, file=sys.stderr)
    _report(line)


def _report(line: str) -> None:
    """Give the launcher the error for its own report, which it ends with."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and is_launched():
        details = {"py_callstack": line, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": details}}), encoding="utf-8")


def peer_failed() -> bool:
    """Return whether another process of this run has printed an error."""
    store = _store()
    return store is not None and bool(_in_time(lambda: store.check([FAILED])))


def _store() -> "PrefixStore | None":
    """Return the store that torchrun, and thus accelerate, provides to the processes it starts, or `None`."""
    if not is_launched():
        return None

    def connect() -> "PrefixStore":
        from torch.distributed import PrefixStore, TCPStore

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        # A launcher that restarts the processes uses the same store again.
        return PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)

    return _in_time(connect)


def _in_time(ask: Callable[[], T], seconds: float = 5.0) -> T | None:
    """Return what the launcher's store answers, `None` if it does not: a launcher that is stopped would never do."""
    answers: list[T] = []

    def call() -> None:
        # torch raises several kinds, all of which mean that the launcher is gone.
        with contextlib.suppress(RuntimeError, OSError):
            answers.append(ask())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def _number(name: str, default: int) -> int:
    """Return a number of the environment, the default where it is none: `check_environment` has refused that."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
