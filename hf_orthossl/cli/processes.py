"""One command in several processes: what all of them find is said once."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta

# Under this key of the launcher's store, processes count the errors of a run.
FAILED = "orthossl/failed"


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


def checked_by_main(check: Callable[[], None]) -> None:
    """Lets the main process check something; all processes raise what it raises.

    Raises:
        OSError, ValueError: what `check` raised.
    """
    from ..processes import everyone, rank

    error = None
    if rank() == 0:
        try:
            check()
        except (OSError, ValueError) as failure:
            error = failure
    # As words: errors of the Hub hold an answer of the network, which cannot be sent on.
    kind, message = everyone((OSError if isinstance(error, OSError) else ValueError, error and str(error)))[0]
    if error is not None:
        raise error
    if message is not None:
        raise kind(message)


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


def first_to_fail() -> bool:
    """Whether no other process of this run has announced an error before; announces one.

    Errors that all processes find alike are then told by whichever comes first, and those that follow from a process
    having ended by none.
    """
    store = _store()
    return is_main() if store is None else store.add(FAILED, 1) == 1


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
