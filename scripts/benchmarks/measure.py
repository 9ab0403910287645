"""Side-by-side timing: contenders take turns in one process, so that other load on the machine affects all of them."""

import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence

import psutil
import timm
import torch
from torch.profiler import ProfilerActivity, profile

from hf_orthossl.comparison import costs


def measure(
    contenders: dict[str, Callable[[], object]], device: str, repeats: int, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Measure milliseconds per call of each contender, and its ratio to the first one.

    Args:
        contenders (`dict[str, Callable]`): Functions to time, by name; the others are compared with the first.
        device (`str`): `"cpu"` or `"cuda"`; CUDA is synchronized around every call.
        repeats (`int`): Number of timed rounds, ≥ 1; each calls every contender once.
        warmup (`int`, defaults to 2): Number of untimed rounds before.

    Returns:
        by contender: `median_ms`, `iqr_ms` (interquartile range), `ratio` (median over rounds of its time
        divided by the first contender's time of the same round).
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, call in contenders.items():
            _synchronize(device)
            start = time.perf_counter()
            call()
            _synchronize(device)
            if turn >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    reference = next(iter(times.values()))
    return {
        name: {
            "median_ms": statistics.median(taken),
            "iqr_ms": _interquartile_range(taken),
            "ratio": statistics.median(t / r for t, r in zip(taken, reference, strict=True)),
        }
        for name, taken in times.items()
    }


def peak_memory(call: Callable[[], object], device: str) -> int:
    """Return the peak of bytes that one call allocates for tensors, above those allocated before."""
    call()
    if device == "cuda":
        _synchronize(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        _synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own start and stop on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    return costs.peak_of(profiler)


def peak_rss(call: Callable[[], object], device: str) -> int:
    """Return the peak of the process's memory (on CUDA: of its tensors) during one call, in bytes above that before."""
    if device == "cuda":
        return peak_memory(call, device)
    done, process = threading.Event(), psutil.Process()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    gc.collect()
    before = peak = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(peak, process.memory_info().rss) - before


def judged(
    what: str, measured: float, unit: str, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, object]:
    """Compare a result with its target, for the table of `scripts/benchmark.py all`.

    Args:
        what (`str`): Description of the measurement.
        measured (`float`): The result; a percentage as a fraction of 1.
        unit (`str`): Unit such as `"×"` or `"%"`.
        at_most (`float`, *optional*): The target, if lower is better.
        at_least (`float`, *optional*): The target, if higher is better.

    Returns:
        `what`, `measured`, `unit`, `target`, `bound` (`"≤"` or `"≥"`) and `met`.
    """
    target = at_least if at_most is None else at_most
    bound = "≥" if at_most is None else "≤"
    met = measured >= target if at_most is None else measured <= target
    return {"what": what, "measured": measured, "unit": unit, "target": target, "bound": bound, "met": met}


def check_models(names: Sequence[str]) -> None:
    """Reject a name of `--models` that timm does not have."""
    if unknown := [name for name in names if not timm.is_model(name)]:
        raise ValueError(f"--models: timm has no {unknown[0]!r}; timm.list_models() names what it has")


def in_unit(value: float, unit: str) -> str:
    """Return a number with three significant digits and its unit; a fraction of 1 is written in percent."""
    return f"{100 * value:.3g} %" if unit == "%" else f"{value:.3g}{unit}"


def machine(device: str) -> str:
    """Return one line that names the machine, the versions of the measurement, and how busy the machine is."""
    return f"{costs.machine(device)}, load {os.getloadavg()[0]:.1f}"


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _interquartile_range(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
