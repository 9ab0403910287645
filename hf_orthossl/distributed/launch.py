"""Run one command in several processes: start and end together, and print each error once."""

import io
import logging
import os
import sys
import time
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import PrefixStore

# The main process may compute for hours (a linear probe) while all other processes wait for it.
TIMEOUT = timedelta(days=1)
# Key in the launcher's store under which processes count the errors of a run.
FAILED = "orthossl/failed"
# Seconds between the last collective and the end of a process.
SETTLE = 0.3


def is_multi_process() -> bool:
    """Return whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Return whether this is the main process, which prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def silence() -> None:
    """Silence warnings and progress bars on all processes but the main one."""
    import datasets
    import transformers

    warnings.simplefilter("ignore")
    logging.getLogger("hf_orthossl").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def init_processes(device: str | None = None) -> None:
    """Join the processes that a launcher started for one command; only the main process prints.

    Args:
        device (`str`, *optional*): The device of the command; "cpu" uses gloo even if there are GPUs.
    """
    if not is_multi_process():
        return
    from accelerate import PartialState

    PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    if not is_main_process():
        silence()
        sys.stdout = io.StringIO()


def end_processes() -> None:
    """Wait for all processes of a command and leave their group, so that each can continue alone or end."""
    if not is_multi_process():
        return
    from accelerate import PartialState
    from torch import distributed

    if distributed.is_initialized():
        PartialState().wait_for_everyone()
        distributed.destroy_process_group()
        # A thread of gloo releases the last collective a moment after it has returned. If Python ends before that,
        # torch 2.15 aborts the process (1 run in 10, measured).
        time.sleep(SETTLE)


def print_error_once(line: str) -> None:
    """Print an error of this process, unless another process of this run has already printed one.

    An error that all processes raise is then printed only once, and errors caused by the end of another process are
    not printed. Without torchrun's store, each process prints its own errors with its rank.
    """
    store = _store()
    if store is None:
        line = f"[rank {os.environ.get('RANK', '0')}] {line}" if is_multi_process() else line
    elif store.add(FAILED, 1) > 1:
        return
    print(line, file=sys.stderr)


def peer_failed() -> bool:
    """Return whether another process of this run has printed an error."""
    store = _store()
    return store is not None and store.check([FAILED])


def _store() -> "PrefixStore | None":
    """Return the store that torchrun, and thus accelerate, provides to the processes it starts, or `None`."""
    if not is_multi_process() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import DistError, PrefixStore, TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
    except (DistError, OSError, RuntimeError):
        return None
    # A launcher that restarts the processes uses the same store again.
    return PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
