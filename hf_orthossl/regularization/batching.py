"""Evaluate the penalties of many weights: batch equal shapes, draw random vectors at once, divide the work."""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from ..distributed.sharding import full_tensor, is_sharded
from .matrices import full_precision
from .penalties import Penalty
from .selection import WeightMatrix
from .sharded import RowShard, is_row_sharded, with_known_gradient

# Parameters of equal matrix shape are stacked up to this many elements. On the CPU this pays off only for tiny matrices
# (measured from 2^14 to 2^20); on an accelerator, launches cost more than copies of small matrices.
_TOGETHER = {"cpu": 1 << 14, "cuda": 1 << 22}


class Group(NamedTuple):
    """Penalties that were evaluated together.

    Attributes:
        places (`list[int]`): The indices of the matrices among all selected ones.
        values (`torch.Tensor` of shape `(len(places),)`): Their penalties.
    """

    places: list[int]
    values: Tensor


def random_vectors(
    penalty: Penalty, matrices: Sequence[WeightMatrix], generator: torch.Generator | None
) -> list[Tensor] | None:
    """Draw the random vectors of all matrices at once.

    Returns:
        `list[torch.Tensor]`: For each matrix a tensor of shape `(k, smaller side)`; `None` for a penalty without random
        vectors.
    """
    k = penalty.num_vectors
    if not k:
        return None
    device = matrices[0].parameter.device if generator is None else generator.device
    sizes = [min(matrix.shape) for matrix in matrices]
    drawn = penalty.draw(k * sum(sizes), device, generator)
    return [part.view(k, -1) for part in drawn.split([k * size for size in sizes])]


def evaluate(
    penalty: Penalty,
    matrices: Sequence[WeightMatrix],
    weights: dict[int, Tensor],
    vectors: Sequence[Tensor] | None,
    references: Mapping[int, Tensor] | None = None,
) -> Iterator[Group]:
    """Evaluate groups of matrices lazily, one after the other.

    Args:
        penalty ([`Penalty`]): The penalty.
        matrices (sequence of [`WeightMatrix`]): All selected matrices.
        weights (`dict[int, torch.Tensor]`): The parameters to evaluate, by the index of their first matrix.
        vectors (sequence of `torch.Tensor`, *optional*): The vectors of all matrices, from [`random_vectors`].
        references (mapping of `int` to `torch.Tensor`, *optional*): What the penalty kept of the parameters at the
            start, by the index of their first matrix.
    """
    places = {i: list(range(i, i + matrices[i].count)) for i in weights}
    shards, whole = {}, {}
    for i, weight in weights.items():
        if is_sharded(weight) and is_row_sharded(weight):
            shards[i] = RowShard(matrices[i], weight, None if references is None else references[i])
        else:
            whole[i] = weight
    drawn = [torch.stack([vectors[j] for j in places[i]]) for i in shards] if vectors else None
    for i, values in zip(shards, _evaluate_shards(penalty, [*shards.values()], drawn), strict=True):
        yield Group(places[i], values)
    for indices, W in batches(matrices, whole, places):
        drawn_here = torch.stack([vectors[i].to(W.device) for i in indices]) if vectors else None
        yield Group(indices, penalty(W, drawn_here, reference=_references_of(indices, matrices, references)))


def shares(costs: Sequence[int], processes: int) -> list[list[int]]:
    """Divide items among processes, most expensive first, each to the process with the smallest load so far.

    The split is the same on every process, so that nothing is communicated. The largest load is at most 4/3 of
    that of an optimal split (Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17, 1969).

    Args:
        costs (sequence of `int`): The cost of each item, ≥ 0.
        processes (`int`): The number of processes, ≥ 1.

    Returns:
        `list[list[int]]`: The items of each process, in ascending order; empty if there are too few.
    """
    split: list[list[int]] = [[] for _ in range(processes)]
    loads = [(0, process) for process in range(processes)]
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, process = loads[0]
        split[process].append(item)
        heapq.heapreplace(loads, (load + costs[item], process))
    return [sorted(items) for items in split]


def touch(weights: Sequence[Tensor], zeros: Sequence[bool]) -> Tensor:
    """Return a scalar 0 that depends on weights without changing their gradients, for weights of other processes.

    DDP waits for every parameter to take part in the backward pass, for which no gradient suffices and costs nothing.
    FSDP reduces the parameters that have a gradient, which must be the same on every process.

    Args:
        weights (sequence of `torch.Tensor`): One or more weights.
        zeros (sequence of `bool`): For each weight, whether it receives a gradient of zeros instead of none.
    """
    return _Touch.apply(zeros, *weights)


class _Touch(Function):
    @staticmethod
    def forward(ctx, zeros: Sequence[bool], *weights: Tensor) -> Tensor:
        ctx.zeros = zeros
        ctx.like = [(weight.shape, weight.dtype, weight.device) for weight in weights]
        return weights[0].new_zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        each = zip(ctx.zeros, ctx.like, strict=True)
        return None, *(
            grad.new_zeros((), dtype=dtype, device=device).expand(shape) if zero else None
            for zero, (shape, dtype, device) in each
        )


def _references_of(
    indices: Sequence[int], matrices: Sequence[WeightMatrix], references: Mapping[int, Tensor] | None
) -> Tensor | None:
    """Return the references of matrices that are evaluated together, parameter by parameter as they are."""
    if references is None:
        return None
    parts = [references[i] for i in indices if not matrices[i].index]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _evaluate_shards(penalty: Penalty, shards: Sequence[RowShard], drawn: Sequence[Tensor] | None) -> list[Tensor]:
    """Return the values of sharded parameters, differentiable; call it on all processes of their meshes."""
    families = defaultdict(list)
    for i, shard in enumerate(shards):
        families[shard.mesh, shard.mesh_dim, shard.dtype, shard.weight.device].append(i)
    values: dict[int, Tensor] = {}
    for family in families.values():
        members = [shards[i] for i in family]
        with torch.no_grad(), full_precision(members[0].weight):
            vectors = _agreed(members, [drawn[i] for i in family]) if drawn else None
            results = penalty.sharded(members, vectors)
        for i, result in zip(family, results, strict=True):
            values[i] = with_known_gradient(shards[i], result)
    return [values[i] for i in range(len(shards))]


def _agreed(shards: Sequence[RowShard], drawn: Sequence[Tensor]) -> list[Tensor]:
    """Return the random vectors that the first process of the mesh drew, on all of its processes."""
    device, dtype = shards[0].weight.to_local().device, shards[0].dtype
    flat = torch.cat([vectors.flatten().to(device, dtype) for vectors in drawn])
    for mesh_dim in range(shards[0].mesh.ndim):
        dist.broadcast(flat, group=shards[0].mesh.get_group(mesh_dim), group_src=0)
    parts = flat.split([vectors.numel() for vectors in drawn])
    return [part.view(vectors.shape) for part, vectors in zip(parts, drawn, strict=True)]


def batches(
    matrices: Sequence[WeightMatrix], weights: Mapping[int, Tensor], places: Mapping[int, list[int]]
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield indices of matrices together with the matrices, of shape `(len(indices), input, output)`.

    Small matrices of equal shape come together, the others parameter by parameter, so that only one is gathered.

    Args:
        matrices (sequence of [`WeightMatrix`]): All selected matrices.
        weights (mapping of `int` to `torch.Tensor`): The parameters to read, by the index of their first matrix.
        places (mapping of `int` to `list[int]`): The indices of the matrices of each parameter.
    """
    waiting: dict[tuple, tuple[list[int], list[Tensor]]] = {}
    for position, weight in weights.items():
        matrix = matrices[position]
        stack = matrix.layout(full_tensor(weight), matrix.count)
        limit = _TOGETHER.get(stack.device.type, _TOGETHER["cuda"])
        if 2 * stack.numel() > limit:  # a second one would exceed the limit
            yield places[position], stack
            continue
        # Gathered weights are not divided among processes.
        key = (stack.shape[1:], stack.dtype, stack.device, is_sharded(weight))
        batch, stacks = waiting.setdefault(key, ([], []))
        if len(batch) * stack[0].numel() + stack.numel() > limit:
            yield batch, torch.cat(stacks)
            batch, stacks = waiting[key] = ([], [])
        batch += places[position]
        stacks.append(stack)
    for batch, stacks in waiting.values():
        yield batch, torch.cat(stacks)
