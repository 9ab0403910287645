"""Do the runs of a plan: share them out among processes, stop in time, and go on after any kill."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from ..locks import InUse, locked
from ..training.interruption import OUT_OF_TIME, Interrupted, time_limit
from .images import ComparedImages
from .plan import Plan
from .runs import Run, UntrainedRun

# Seconds between two looks for a run to take, while all that are left are in the hands of other processes.
PAUSE = 2.0


def work(plan: Plan, images: ComparedImages, minutes: float | None, done: Callable[[Run | UntrainedRun], None]) -> bool:
    """Do all runs that are left and that no other process does.

    Several processes with the same folder share the runs out: each takes the first that has not ended and whose folder
    nobody has locked. While all that are left are in other hands it waits, so that it takes over those of a process
    that is killed, and ends when all runs have ended.

    Args:
        plan ([`Plan`]): The runs.
        images ([`ComparedImages`]): The images that they learn from and are measured with.
        minutes (`float`, *optional*): After so many minutes the run in progress stops with a checkpoint.
        done (callable): Is called after each run with the run.

    Returns:
        `bool`: Whether all runs have ended; `False` if the time was over before.

    Raises:
        Interrupted: A signal ended the run in progress, with a checkpoint.
    """
    with time_limit(math.inf if minutes is None else 60 * minutes) as is_over:
        while not is_over():
            taken, waiting = False, False
            for run in plan.in_order():
                if run is None:
                    waiting = True
                elif not run.is_measured:
                    try:
                        taken = _do(run, images)
                    except Interrupted as error:
                        if error.code == 128 + OUT_OF_TIME:
                            return False
                        raise
                    if taken:
                        done(run)
                        break
                    waiting = True
            if not taken:
                if not waiting:
                    return True
                time.sleep(PAUSE)
    return False


def _do(run: Run | UntrainedRun, images: ComparedImages) -> bool:
    """Complete a run unless another process does, and return whether it was done here."""
    try:
        with locked(Path(run.folder)):
            # Another process may have ended it since we looked.
            if not run.is_measured:
                run.complete(images)
    except InUse:
        return False
    return True
