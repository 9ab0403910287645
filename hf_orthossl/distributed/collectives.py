"""Collectives on the CPU: divide work among the processes of one run and combine its results.

Without a process group there is one process, and these functions cost nothing. With one, every process must call
them in the same order.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .environment import TIMEOUT
from .progress import here

T = TypeVar("T")

_cpu_groups: dict[Any, Any] = {}


def world_size() -> int:
    """Return the number of processes, 1 outside of a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0; process 0 is the main one."""
    return dist.get_rank() if world_size() > 1 else 0


def shard_range(count: int) -> range:
    """Return this process's share of `count` rows: contiguous, in rank order, with sizes that differ by at most 1."""
    return range(rank() * count // world_size(), (rank() + 1) * count // world_size())


def all_gather_object(value: Any) -> list[Any]:
    """Return the values of all processes, each small and picklable, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    here.arrivals += 1
    dist.all_gather_object(values, value, group=_cpu_group())
    return values


def on_main(function: Callable[[], T]) -> T:
    """Call a function on the main process and return its value on all processes; if it raises, all raise.

    Args:
        function (`Callable`): Returns a small picklable value, or `None`.

    Returns:
        The value that `function` returned.

    Raises:
        OSError: If `function` raised it.
        ValueError: If `function` raised it.
    """
    value = error = kind = None
    if rank() == 0:
        try:
            value = function()
        except (OSError, ValueError) as failure:
            error = failure
            kind = next(kind for kind in (FileNotFoundError, OSError, ValueError) if isinstance(error, kind))
    # As text, because errors of the Hub contain a network response, which cannot be pickled.
    value, kind, message = all_gather_object((value, kind, error and str(error)))[0]
    if error is not None:
        raise error
    if kind is not None:
        raise kind(message)
    return value


def all_gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes in rank order, on the CPU and without gradient.

    Args:
        rows (`Tensor` of shape `(n, …)`): The rows of this process; `n` may differ between processes and be 0, in
            which case the other dimensions and the type do not matter.

    Returns:
        `Tensor` of shape `(Σ n, …)`.
    """
    rows = rows.detach().cpu()
    if world_size() == 1:
        return rows
    parts = all_gather_object((len(rows), rows.shape[1:], rows.dtype))
    _, shape, dtype = next((part for part in parts if part[0]), parts[0])
    gathered = torch.empty(sum(count for count, _, _ in parts), *shape, dtype=dtype)
    # Broadcast in place: no process needs more memory than the result.
    for source, place in enumerate(gathered.split([count for count, _, _ in parts])):
        if len(place):
            if source == rank():
                place.copy_(rows)
            dist.broadcast(place, src=source, group=_cpu_group())
    return gathered


def wait_for_all() -> None:
    """Wait until all processes are here, however long the main one computes alone before; see `peers.py`."""
    all_reduce_max(0)


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of a tensor over processes, on its own device and without gradient."""
    if world_size() == 1:
        return value
    summed = value.detach().to("cpu", copy=True)
    here.arrivals += 1
    dist.all_reduce(summed, group=_cpu_group())
    return summed.to(value.device)


def all_reduce_min(value: int) -> int:
    """Return the minimum of a number over processes."""
    return _all_reduce(value, dist.ReduceOp.MIN)


def all_reduce_max(value: int) -> int:
    """Return the maximum of a number over processes."""
    return _all_reduce(value, dist.ReduceOp.MAX)


@torch.no_grad()
def all_reduce_mean(value: Tensor) -> Tensor:
    """Return the mean of a tensor over processes, without gradient.

    Unlike the other functions it runs on the tensor's own device, so that a training step does not wait for the CPU.
    """
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value


def _all_reduce(value: int, operation: Any) -> int:
    if world_size() == 1:
        return value
    reduced = torch.tensor(value)
    here.arrivals += 1
    dist.all_reduce(reduced, op=operation, group=_cpu_group())
    return int(reduced)


def _cpu_group() -> Any:
    """Return a process group for tensors on the CPU: the default one if it supports them, else a gloo group."""
    world = dist.group.WORLD
    if "cpu:gloo" in dist.get_backend_config(world):
        return world
    if world not in _cpu_groups:
        _cpu_groups.clear()
        _cpu_groups[world] = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return _cpu_groups[world]
