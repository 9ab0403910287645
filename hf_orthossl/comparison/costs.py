"""Measure what a step of a run costs, in seconds and memory, from beside the training loop."""

import os
import platform
import statistics
import time
from types import TracebackType
from typing import Any, Self

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

# The step whose memory is measured, counted from 1: the first one allocates what stays, such as moments. It is slower
# than the others.
PROFILED = 2


class StepCosts:
    """A context around a run that measures its optimizer steps, without changing them.

    Time passes from the end of one optimizer step to that of the next. The first two, of which the second has its
    memory measured, do not count, and the median leaves out those in which something is logged or saved. The memory is
    the peak of what the second step allocates for tensors above what was allocated before it: on a CPU by torch's
    profiler, on CUDA by its allocator.

    Attributes:
        seconds (`list[float]`): Seconds of each step that counts.
        peak_bytes (`int`, *optional*): Bytes of the peak; `None` for a run of fewer than two steps.

    Example:
        >>> with StepCosts() as costs:
        ...     run_pretraining(...)
        >>> costs.to_dict()
        {'seconds_per_step': 0.11, 'peak_bytes': 181403648}
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak_bytes: int | None = None
        self._optimizer: Optimizer | None = None
        self._steps, self._last = 0, 0.0
        self._profiler: profile | None = None
        self._before = 0

    def __enter__(self) -> Self:
        self._hook = register_optimizer_step_post_hook(self._stepped)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._hook.remove()
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the median of the seconds and the bytes of the peak; `None` where a run was too short."""
        return {
            "seconds_per_step": statistics.median(self.seconds) if self.seconds else None,
            "peak_bytes": self.peak_bytes,
        }

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # An optimizer that is made of several steps each of them.
        self._optimizer = self._optimizer or optimizer
        if optimizer is not self._optimizer:
            return
        now, self._steps = time.perf_counter(), self._steps + 1
        if self._steps > PROFILED:
            self.seconds.append(now - self._last)
        if self._steps == PROFILED - 1:
            self._begin_memory()
        elif self._steps == PROFILED:
            self._end_memory()
        self._last = time.perf_counter()

    def _begin_memory(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
            self._before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own start and stop on stderr
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profiler.start()

    def _end_memory(self) -> None:
        if self._profiler is None:
            torch.cuda.synchronize()
            self.peak_bytes = torch.cuda.max_memory_allocated() - self._before
            return
        self._profiler.stop()
        self.peak_bytes = peak_of(self._profiler)
        self._profiler = None


def peak_of(profiler: profile) -> int:
    """Return the peak of bytes allocated on the CPU while a profiler with `profile_memory` ran, above those before."""
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]  # it has run
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def machine(device: str) -> str:
    """Return one line that names the machine and the versions of a measurement."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    threads = f"{torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "1 thread"
    return (
        f"{name}, {os.cpu_count()} CPU cores, {threads}, torch {torch.__version__}, Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
