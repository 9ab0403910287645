"""One command in several processes: what all of them find is said once."""

import io
import logging
import os
import sys
import time
import warnings
from datetime import timedelta

# Under this key of the launcher's store, processes count the errors of a run.
FAILED = "orthossl/failed"
# Seconds after the last collective before a process may end.
SETTLE = 0.3


def several() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def fall_silent() -> None:
    """Leaves it to the main process to warn and to show progress."""
    import datasets
    import transformers

    warnings.simplefilter("ignore")
    logging.getLogger("hf_orthossl").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def join(device: str | None = None) -> None:
    """Lets the processes that a launcher started work on one command together; all but the main one print nothing.

    Args:
        device (`str`, *optional*): Where the command computes; "cpu" also where there are GPUs.
    """
    if not several():
        return
    from accelerate import PartialState

    from ..processes import PATIENCE

    PartialState(cpu=device == "cpu", timeout=PATIENCE)
    if not is_main():
        fall_silent()
        sys.stdout = io.StringIO()


def part() -> None:
    """Ends what the processes of a command have in common, so that each may go on alone, or end."""
    if not several():
        return
    from accelerate import PartialState
    from torch import distributed

    if distributed.is_initialized():
        PartialState().wait_for_everyone()
        distributed.destroy_process_group()
        # A thread of gloo's lets go of the last collective a moment after it has returned. Were Python to end before,
        # torch 2.15 aborts the process (1 run in 10, measured).
        time.sleep(SETTLE)


def say_error(line: str) -> None:
    """Prints an error of this process, unless another one of this run has printed one before.

    Errors that all processes find alike are then told by whichever comes first, and those that follow from a process
    having ended by none. Without torchrun's store processes do not know of each other: each says its rank.
    """
    store = _store()
    if store is None:
        line = f"[rank {os.environ.get('RANK', '0')}] {line}" if several() else line
    elif store.add(FAILED, 1) > 1:
        return
    print(line, file=sys.stderr)


def another_failed() -> bool:
    """Whether another process of this run has announced an error."""
    store = _store()
    return store is not None and store.check([FAILED])


def _store():
    """The store that torchrun, and so accelerate, keeps for the processes it starts; `None` where there is none."""
    if not several() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import DistError, PrefixStore, TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
    except (DistError, OSError, RuntimeError):
        return None
    # A launcher that starts the processes again keeps its store.
    return PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
