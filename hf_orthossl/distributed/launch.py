"""Start and end one command in several processes."""

import io
import logging
import sys
import time
import warnings
from datetime import timedelta

from .environment import LIMIT, NCCL_TIMEOUT, TIMEOUT, is_main_process, is_multi_process

# Seconds between the last collective and the end of a process.
SETTLE = 0.3


def silence() -> None:
    """Silence warnings and progress bars on all processes but the main one."""
    import datasets
    import transformers

    warnings.simplefilter("ignore")
    logging.getLogger("hf_orthossl").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def meet_processes(limit: float = LIMIT) -> None:
    """Wait for the other processes that were started for one command, and watch over them until this one leaves.

    Args:
        limit (`float`, defaults to 300): Seconds for which a process is waited for, at the start, and later when
            it does not answer.

    Raises:
        ValueError: The environment does not describe a run of several processes.
        ConnectionError: A process did not come in time, or the address cannot be used.
    """
    from torch import distributed

    from . import peers, rendezvous

    if is_multi_process() and not distributed.is_initialized() and peers.watch() is None:
        rendezvous.meet(limit)


def init_processes(device: str | None = None, limit: float = LIMIT) -> None:
    """Join the processes that a launcher started for one command; only the main process prints.

    Args:
        device (`str`, *optional*): The device of the command; "cpu" uses gloo even if there are GPUs.
        limit (`float`, defaults to 300): See [`meet_processes`].
    """
    if not is_multi_process():
        return
    from accelerate import PartialState

    meet_processes(limit)
    PartialState(cpu=device == "cpu", timeout=group_timeout(cpu=device == "cpu"))
    if not is_main_process():
        silence()
        sys.stdout = io.StringIO()


def group_timeout(*, cpu: bool) -> timedelta:
    """Return how long torch itself waits in a collective of the default process group."""
    import torch

    return TIMEOUT if cpu or not torch.cuda.is_available() else NCCL_TIMEOUT


def end_processes() -> None:
    """Wait for all processes of a command and leave their group, so that each can continue alone or end."""
    if not is_multi_process():
        return
    from torch import distributed

    from . import collectives, peers

    if distributed.is_initialized():
        collectives.wait_for_all()
        peers.leave()
        distributed.destroy_process_group()
        # A thread of gloo releases the last collective a moment after it has returned. If Python ends before that,
        # torch 2.15 aborts the process (1 run in 10, measured).
        time.sleep(SETTLE)
