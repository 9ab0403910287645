"""Every point where the gradient vanishes: any set of directions that want to live, the rest dead."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .minima import direction_values, eigenvalues_at_minimum
from .objective import Objective
from .pairs import CovariancePair


@dataclass(frozen=True)
class StationaryPoint:
    """
    A point where the gradient vanishes, up to rotations of the outputs.

    Attributes:
        directions (`tuple`): The living directions, counted from the largest correlation of B_eff and Σ.
        eigenvalues (`torch.Tensor`): Of M along them, shape `(len(directions),)`.
        weights (`torch.Tensor`): One such W, shape `(dim, D)`.
        value (`float`): The loss.
        index (`int`): The number of directions in the space of W along which the loss bends down.
        kind (`str`): `"minimum"` where the index is 0, else `"saddle"`.
    """

    directions: tuple[int, ...]
    eigenvalues: torch.Tensor
    weights: torch.Tensor
    value: float
    index: int
    kind: str


def stationary_points(
    objective: Objective, pair: CovariancePair, dim: int, limit: int | None
) -> Iterator[StationaryPoint]:
    """Subsets of the directions with a positive correlation, at most `dim` in each, lowest loss first."""
    if objective.loss == "normalized":
        raise ValueError("stationary points have no derivation with loss='normalized'")
    if objective.gamma:
        raise ValueError(f"stationary points have no derivation with gamma = {objective.gamma}: pass 0")
    if objective.bias == "learnable" and objective.uses_dot_products:
        raise ValueError("stationary points have no derivation with bias='learnable': pass 'none' or 'centred'")
    if limit is not None and limit < 1:
        raise ValueError(f"limit = {limit} must be at least 1")
    positive = int((pair.correlations > 0).sum())
    correlations = pair.correlations[:positive]
    eigenvalues = eigenvalues_at_minimum(objective, correlations)
    values = direction_values(objective, correlations, eigenvalues).tolist()
    return _ordered(pair, dim, limit, eigenvalues, values)


def _ordered(
    pair: CovariancePair, dim: int, limit: int | None, eigenvalues: torch.Tensor, values: list[float]
) -> Iterator[StationaryPoint]:
    correlations = pair.correlations.tolist()
    for count, (value, subset) in enumerate(_subsets(values, dim)):
        if count == limit:
            return
        living = list(subset)
        weights = pair.views.new_zeros(dim, len(pair.views))
        weights[: len(living)] = eigenvalues[living].sqrt()[:, None] * pair.filters[living]
        index = _index(correlations[: len(values)], subset, dim)
        kind = "saddle" if index else "minimum"
        yield StationaryPoint(subset, eigenvalues[living], weights, value, index, kind)


def _index(correlations: list[float], subset: tuple[int, ...], dim: int) -> int:
    """
    An idle output can start to read any of the missing directions; a busy one can turn from its direction to a missing
    one with a larger correlation, where it bends the loss by their difference.
    """
    missing = [k for i, k in enumerate(correlations) if i not in subset]
    turns = sum(k > correlations[i] for i in subset for k in missing)
    return (dim - len(subset)) * len(missing) + turns


def _subsets(values: list[float], most: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Subsets of at most `most` of the ascending, negative `values` with their sums, lowest sum first."""
    heap = [(sum(values[:size]), tuple(range(size))) for size in range(min(most, len(values)) + 1)]
    heapq.heapify(heap)
    seen = {subset for _, subset in heap}
    while heap:
        value, subset = heapq.heappop(heap)
        yield value, subset
        # Any subset is reached from the first of its size by moving one member to the next place at a time.
        for place, member in enumerate(subset):
            moved = (*subset[:place], member + 1, *subset[place + 1 :])
            if member + 1 < len(values) and member + 1 not in subset and moved not in seen:
                seen.add(moved)
                heapq.heappush(heap, (sum(values[i] for i in moved), moved))
