"""The penalties of selected weights, in groups that are evaluated together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributed.sharding import full_tensor, is_sharded
from . import penalties, sharded
from .row_shard import RowShard, is_row_sharded
from .selection import WeightMatrix
from .sketch import random_signs, sketched_so
from .spectral_norm import power_iteration

# Parameters of equal matrix shape are copied together up to this many elements. On CPU that pays for tiny
# matrices alone (measured from 2^14 to 2^20); on an accelerator launches cost more than copies of small ones.
_TOGETHER = {"cpu": 1 << 14, "cuda": 1 << 22}


class Group(NamedTuple):
    """Penalties that were evaluated together.

    Attributes:
        places (`list[int]`): places in `matrices` of the matrices.
        values (`torch.Tensor` of shape `(len(places),)`): their penalties.
        vectors (`torch.Tensor` of shape `(len(places), smaller side)`, *optional*): where SRIP ended.
    """

    places: list[int]
    values: Tensor
    vectors: Tensor | None = None


def random_vectors(
    kind: str, matrices: Sequence[WeightMatrix], probes: int, generator: torch.Generator | None
) -> list[Tensor] | None:
    """For each matrix the random vectors `(k, smaller side)` of its penalty, drawn at once; `None` if it needs none."""
    device = matrices[0].parameter.device if generator is None else generator.device
    sizes = [min(matrix.shape) for matrix in matrices]
    if kind == "srip":
        drawn, probes = torch.randn(sum(sizes), generator=generator, device=device), 1
    elif kind == "sketched_so":
        drawn = random_signs((probes * sum(sizes),), device, generator)
    else:
        return None
    return [part.view(probes, -1) for part in drawn.split([probes * size for size in sizes])]


def evaluate(
    kind: str,
    matrices: Sequence[WeightMatrix],
    weights: dict[int, Tensor],
    random: Sequence[Tensor] | None,
    iterations: int,
) -> Iterator[Group]:
    """Evaluates group after group, as they are asked for.

    Args:
        kind (`str`): the penalty.
        matrices (sequence of [`WeightMatrix`]): all that are selected.
        weights (`dict[int, torch.Tensor]`): the parameters to evaluate, by the place of their first matrix.
        random (sequence of `torch.Tensor`, *optional*): of all matrices, from [`random_vectors`].
        iterations (`int`): power iterations of SRIP.
    """
    places = {i: list(range(i, i + matrices[i].count)) for i in weights}
    cut = [i for i, weight in weights.items() if is_sharded(weight) and is_row_sharded(weight)]
    shards = [RowShard(matrices[i], weights[i]) for i in cut]
    drawn = [torch.stack([random[j] for j in places[i]]) for i in cut] if random else None
    for i, found in zip(cut, sharded.evaluate(kind, shards, drawn, iterations), strict=True):
        yield Group(places[i], found.values, found.vectors)
    here = {i: weight for i, weight in weights.items() if i not in cut}
    for indices, W in _batches(matrices, here, places):
        vectors = torch.stack([random[i].to(W.device) for i in indices]) if random else None
        if kind == "srip":
            yield Group(indices, *power_iteration(W, vectors.squeeze(1), iterations))
        elif kind == "sketched_so":
            yield Group(indices, sketched_so(W, vectors.shape[1], vectors))
        else:
            yield Group(indices, getattr(penalties, kind)(W))


def _batches(
    matrices: Sequence[WeightMatrix], weights: dict[int, Tensor], places: dict[int, list[int]]
) -> Iterator[tuple[list[int], Tensor]]:
    """Places in `matrices` with those matrices, of shape `(len(places), input, output)`."""
    waiting: dict[tuple, tuple[list[int], list[Tensor]]] = {}
    for position, weight in weights.items():
        matrix = matrices[position]
        stack = matrix.layout(full_tensor(weight), matrix.count)
        limit = _TOGETHER.get(stack.device.type, _TOGETHER["cuda"])
        if 2 * stack.numel() > limit:  # no room for a second one
            yield places[position], stack
            continue
        # Gathered weights are not shared out as others are.
        key = (stack.shape[1:], stack.dtype, stack.device, is_sharded(weight))
        batch, stacks = waiting.setdefault(key, ([], []))
        if len(batch) * stack[0].numel() + stack.numel() > limit:
            yield batch, torch.cat(stacks)
            batch, stacks = waiting[key] = ([], [])
        batch += places[position]
        stacks.append(stack)
    for batch, stacks in waiting.values():
        yield batch, torch.cat(stacks)
