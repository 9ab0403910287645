"""Stationary points, the Hessian at the origin, and the collapse thresholds of a setting."""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .covariance_pair import CovariancePair
from .minimum import direction_values, eigenvalues_at_minimum
from .objective import Objective


@dataclass(frozen=True)
class StationaryPoint:
    """A point at which the gradient vanishes, up to rotations of the outputs.

    Attributes:
        directions (`tuple[int, ...]`): The surviving directions, counted from the largest correlation of B_eff and Σ.
        eigenvalues (`Tensor`): Eigenvalues of M along them, shape `(len(directions),)`.
        weights (`Tensor`): One such W, shape `(dim, D)`.
        value (`float`): The loss.
        index (`int`): The number of directions in the space of W in which the loss curves downwards.
        kind (`str`): `"minimum"` if the index is 0, else `"saddle"`.
    """

    directions: tuple[int, ...]
    eigenvalues: Tensor
    weights: Tensor
    value: float
    index: int
    kind: str


@dataclass(frozen=True)
class OriginHessian:
    """The second derivative of the loss at W = 0.

    Attributes:
        eigenvalues (`Tensor`): Shape `(D,)`, ascending; with `dim` outputs the Hessian has each of them `dim` times.
        negative (`int`): The number of negative eigenvalues: the directions that leave the origin.
        kind (`str`): `"minimum"` (complete collapse is a minimum), `"saddle"`, or `"flat"` if no eigenvalue is
            negative but some are 0.
    """

    eigenvalues: Tensor
    negative: int
    kind: str


@dataclass(frozen=True)
class CollapseThreshold:
    """The value of one setting at which each direction collapses, as the setting grows.

    Attributes:
        setting (`str`): `"alpha"`, `"weight_decay"` or `"temperature"`.
        values (`Tensor`): Shape `(rank,)`, descending, infinite if no value causes it: a direction has collapsed if the
            setting is at least this. For `alpha` and `temperature` in the order of the canonical directions; weight
            decay mixes directions, and its i-th value is the one from which at most i of them survive.
        complete (`float`): The value at which the last direction collapses.
    """

    setting: str
    values: Tensor
    complete: float


def stationary_points(
    objective: Objective, pair: CovariancePair, dim: int, limit: int | None
) -> Iterator[StationaryPoint]:
    """Yield the stationary point of each set of at most `dim` directions of positive correlation, lowest loss first."""
    if objective.loss == "normalized":
        raise ValueError("stationary points have no derivation with loss='normalized': pass another loss")
    if objective.gamma:
        raise ValueError(f"stationary points have no derivation with gamma = {objective.gamma}: pass 0")
    if objective.bias == "learnable" and objective.uses_dot_products:
        raise ValueError("stationary points have no derivation with bias='learnable': pass 'none' or 'centred'")
    positive = int((pair.correlations > 0).sum())
    correlations = pair.correlations[:positive]
    eigenvalues = eigenvalues_at_minimum(objective, correlations)
    values = direction_values(objective, correlations, eigenvalues).tolist()
    return _ordered(pair, dim, limit, eigenvalues, values)


def hessian_at_origin(objective: Objective, pair: CovariancePair) -> OriginHessian:
    """Return the Hessian at W = 0: eigenvalues −2c·b − 4γ, with b the eigenvalues of B_eff."""
    if objective.loss == "normalized":
        raise ValueError("loss='normalized' has no Hessian at the origin: normalized features are never 0")
    if objective.bias == "learnable" and objective.uses_dot_products:
        raise ValueError("bias='learnable' has no derivation of the Hessian at the origin: pass 'none' or 'centred'")
    # At second order the penalty adds −γ·2‖W‖².
    eigenvalues = -2 * objective.slope * torch.linalg.eigvalsh(pair.effective).flip(0) - 4 * objective.gamma
    rounding = 1e-12 * max(float(eigenvalues.abs().max()), 2 * objective.slope * float(pair.views.abs().max()))
    negative = int((eigenvalues < -rounding).sum())
    without_saddle = "minimum" if bool((eigenvalues > rounding).all()) else "flat"
    return OriginHessian(eigenvalues, negative, "saddle" if negative else without_saddle)


def collapse_threshold(setting: str, objective: Objective, pair: CovariancePair) -> CollapseThreshold:
    """Return the values of `setting` at which directions collapse; `objective` and `pair` have it at its default."""
    known = ("alpha", "temperature") if objective.loss == "normalized" else ("alpha", "weight_decay")
    if setting not in known:
        raise ValueError(
            f"setting must be {' or '.join(map(repr, known))} with loss='{objective.loss}', got {setting!r}"
        )
    if objective.gamma:
        raise ValueError(f"collapse thresholds have no derivation with gamma = {objective.gamma}: pass 0")
    if setting == "weight_decay":
        axes = pair.spectrum[1][:, pair.spectrum[0] > 0]
        # Sylvester: Σ^-½ X Σ^-½ has as many positive eigenvalues as X.
        survivors = torch.linalg.eigvalsh(axes.T @ pair.effective @ axes).flip(0).clamp_min(0)
        values = 2 * objective.slope * survivors
        return CollapseThreshold(setting, values, float(values[0]))
    if objective.weight_decay:
        raise ValueError(f"the alpha threshold has no derivation with weight_decay = {objective.weight_decay}: pass 0")
    correlations = pair.correlations.clamp(max=1)
    if objective.loss == "normalized":
        # If temperature is the setting, the correlations of B_eff include alpha already.
        other = objective.temperature if setting == "alpha" else 1.0
        return CollapseThreshold(setting, 1 / (other * _correlation_gaps(correlations)), math.inf)
    values = 1 / (1 - correlations)
    return CollapseThreshold(setting, values, float(values[0]))


def surviving_dimensions(objective: Objective, correlations: Tensor, dim: int) -> int:
    """Return how many of `correlations` `(n,)`, descending, normalized features keep with `dim` outputs."""
    gaps = _correlation_gaps(correlations[:dim])
    return int((objective.temperature * objective.alpha * gaps < 1).sum())


def _correlation_gaps(correlations: Tensor) -> Tensor:
    """Return Σ_{i≤r} (k_i − k_r) for each r, shape `(n,)`, ascending from 0."""
    counts = torch.arange(1, len(correlations) + 1, dtype=correlations.dtype, device=correlations.device)
    return (correlations.cumsum(0) - counts * correlations).clamp_min(0)


def _ordered(
    pair: CovariancePair, dim: int, limit: int | None, eigenvalues: Tensor, values: list[float]
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
    """Return the number of downward directions at a stationary point.

    An unused output can start to represent any of the missing directions; a used one can rotate from its direction to a
    missing one with a larger correlation, along which the curvature of the loss is their difference.
    """
    missing = [k for i, k in enumerate(correlations) if i not in subset]
    rotations = sum(k > correlations[i] for i in subset for k in missing)
    return (dim - len(subset)) * len(missing) + rotations


def _subsets(values: list[float], most: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Yield subsets of at most `most` of the ascending, negative `values` with their sums, lowest sum first."""
    heap = [(sum(values[:size]), tuple(range(size))) for size in range(min(most, len(values)) + 1)]
    heapq.heapify(heap)
    seen = {subset for _, subset in heap}
    while heap:
        value, subset = heapq.heappop(heap)
        yield value, subset
        # Any subset is reached from the first of its size by moving one member to the next position at a time.
        for place, member in enumerate(subset):
            moved = (*subset[:place], member + 1, *subset[place + 1 :])
            if member + 1 < len(values) and member + 1 not in subset and moved not in seen:
                seen.add(moved)
                heapq.heappush(heap, (sum(values[i] for i in moved), moved))
