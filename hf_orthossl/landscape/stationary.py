"""Stationary points, the Hessian at the origin, and the settings at which directions die."""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .covariance_pair import CovariancePair
from .minimum import direction_values, eigenvalues_at_minimum
from .objective import Objective


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


@dataclass(frozen=True)
class OriginHessian:
    """
    The loss's second derivative at W = 0.

    Attributes:
        eigenvalues (`torch.Tensor`): Shape `(D,)`, ascending; with `dim` outputs the Hessian has each `dim` times.
        negative (`int`): How many are below 0: the directions that leave the origin.
        kind (`str`): `"minimum"`: complete collapse is one; `"saddle"`; or `"flat"`, with zeros and nothing below.
    """

    eigenvalues: torch.Tensor
    negative: int
    kind: str


@dataclass(frozen=True)
class CollapseThreshold:
    """
    When each direction dies as one setting grows.

    Attributes:
        setting (`str`): `"alpha"`, `"weight_decay"` or `"temperature"`.
        values (`torch.Tensor`):
            Shape `(rank,)`, descending, infinite where none does it: a direction is dead where the setting is at least
            this. Of `alpha` and `temperature` in the order of the canonical directions; weight decay mixes directions,
            and its i-th value is where no more than i of them are left.
        complete (`float`): Where the last one dies.
    """

    setting: str
    values: torch.Tensor
    complete: float


def hessian_at_origin(objective: Objective, pair: CovariancePair) -> OriginHessian:
    """Eigenvalues −2c·b − 4γ, b those of B_eff in pixel space."""
    if objective.loss == "normalized":
        raise ValueError("loss='normalized' has no Hessian at the origin: normalized features are never 0")
    if objective.bias == "learnable" and objective.uses_dot_products:
        raise ValueError("bias='learnable' has no derivation of the Hessian at the origin: pass 'none' or 'centred'")
    # −γ·2‖W‖² is what the penalty adds at second order.
    eigenvalues = -2 * objective.slope * torch.linalg.eigvalsh(pair.effective).flip(0) - 4 * objective.gamma
    rounding = 1e-12 * max(float(eigenvalues.abs().max()), 2 * objective.slope * float(pair.views.abs().max()))
    negative = int((eigenvalues < -rounding).sum())
    calm = "minimum" if bool((eigenvalues > rounding).all()) else "flat"
    return OriginHessian(eigenvalues, negative, "saddle" if negative else calm)


def collapse_threshold(setting: str, objective: Objective, pair: CovariancePair) -> CollapseThreshold:
    """`pair` and `objective` hold the other settings, and the one asked for at its default."""
    known = ("alpha", "temperature") if objective.loss == "normalized" else ("alpha", "weight_decay")
    if setting not in known:
        raise ValueError(f"setting='{setting}' kills nothing with loss='{objective.loss}': pass one of {known}")
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
        # The correlations of B_eff hold an alpha that is not asked for.
        held = objective.temperature if setting == "alpha" else 1.0
        return CollapseThreshold(setting, 1 / (held * correlation_gaps(correlations)), math.inf)
    values = 1 / (1 - correlations)
    return CollapseThreshold(setting, values, float(values[0]))


def surviving_dimensions(objective: Objective, correlations: torch.Tensor, dim: int) -> int:
    """How many of `correlations`, descending, normalized features keep with `dim` outputs."""
    gaps = correlation_gaps(correlations[:dim])
    return int((objective.temperature * objective.alpha * gaps < 1).sum())


def correlation_gaps(correlations: torch.Tensor) -> torch.Tensor:
    """Σ_{i≤r} (k_i − k_r) for each r, shape `(n,)`, ascending from 0."""
    counts = torch.arange(1, len(correlations) + 1, dtype=correlations.dtype, device=correlations.device)
    return (correlations.cumsum(0) - counts * correlations).clamp_min(0)
