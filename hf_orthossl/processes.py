"""What several processes of one run share out and put together again, on the CPU; every room may use it.

Outside a process group there is one process, and all of this costs nothing. Where several are, all of them must call.
"""

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

# The main process may compute for hours (a linear probe) before the others hear of it.
PATIENCE = datetime.timedelta(days=1)

T = TypeVar("T")

_cpu_groups: dict[Any, Any] = {}


def world_size() -> int:
    """Number of processes; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's place among them, from 0; process 0 is the main one."""
    return dist.get_rank() if world_size() > 1 else 0


def share(count: int) -> range:
    """This process's share of `count` rows: contiguous, in rank order, sizes differing by at most 1."""
    return range(rank() * count // world_size(), (rank() + 1) * count // world_size())


def everyone(value: Any) -> list[Any]:
    """A small picklable value of every process, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_cpu_group())
    return values


def found_by_main(find: Callable[[], T]) -> T:
    """What `find` gives the main process, on all of them; where it raises, all do.

    Args:
        find (`Callable`): Checks or chooses something; gives what is small and picklable, or nothing.

    Raises:
        OSError, ValueError: what `find` raised.
    """
    value = error = kind = None
    if rank() == 0:
        try:
            value = find()
        except (OSError, ValueError) as failure:
            error = failure
            kind = next(kind for kind in (FileNotFoundError, OSError, ValueError) if isinstance(error, kind))
    # As words: errors of the Hub hold an answer of the network, which cannot be sent on.
    value, kind, message = everyone((value, kind, error and str(error)))[0]
    if error is not None:
        raise error
    if kind is not None:
        raise kind(message)
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, one process's after the other's, on the CPU and without gradient.

    Args:
        rows (`Tensor` of shape `(n, …)`): This process's; `n` may differ between processes and be 0. Where it is 0,
            neither the other dimensions nor the type matter.

    Returns:
        `Tensor` of shape `(Σ n, …)`.
    """
    rows = rows.detach().cpu()
    if world_size() == 1:
        return rows
    parts = everyone((len(rows), rows.shape[1:], rows.dtype))
    _, shape, dtype = next((part for part in parts if part[0]), parts[0])
    gathered = torch.empty(sum(count for count, _, _ in parts), *shape, dtype=dtype)
    # Broadcast into place: no process needs more memory than the result.
    for source, place in enumerate(gathered.split([count for count, _, _ in parts])):
        if len(place):
            if source == rank():
                place.copy_(rows)
            dist.broadcast(place, src=source, group=_cpu_group())
    return gathered


def total(value: Tensor) -> Tensor:
    """Sum of a tensor over processes, on its own device and without gradient."""
    if world_size() == 1:
        return value
    summed = value.detach().to("cpu", copy=True)
    dist.all_reduce(summed, group=_cpu_group())
    return summed.to(value.device)


def smallest(value: int) -> int:
    """The least of a number over processes."""
    if world_size() == 1:
        return value
    least = torch.tensor(value)
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=_cpu_group())
    return int(least)


def _cpu_group() -> Any:
    """A group over which tensors on the CPU travel: the default one where it can, else gloo's beside it."""
    world = dist.group.WORLD
    if "cpu:gloo" in dist.get_backend_config(world):
        return world
    if world not in _cpu_groups:
        _cpu_groups.clear()
        _cpu_groups[world] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _cpu_groups[world]
