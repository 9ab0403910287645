"""Finds the minimum of one loss for one pair of covariances, and what it keeps of the canonical directions."""

import torch

from .minima import Minimum, critical_correlation, direction_values, eigenvalues_at_minimum
from .objective import Objective
from .orthogonal import minimize_with_penalty
from .pairs import CovariancePair


def find_minimum(
    objective: Objective,
    pair: CovariancePair,
    dim: int,
    *,
    mean: torch.Tensor,
    patterns: torch.Tensor,
    correlations: torch.Tensor | None,
) -> Minimum:
    """
    The global minimum with `dim` outputs.

    Args:
        objective (`Objective`): Which loss.
        pair (`CovariancePair`): B_eff and Σ as the loss sees them.
        dim (`int`): Outputs.
        mean (`torch.Tensor`): E[x], shape `(D,)`.
        patterns (`torch.Tensor`): The canonical directions of B and the views, shape `(rank, D)`.
        correlations (`torch.Tensor`, *optional*): Theirs, shape `(rank,)`, if `pair` has the same directions.
    """
    if objective.gamma:
        found = minimize_with_penalty(objective, pair, dim)
        eigenvalues, axes = _spectrum(found.weights, patterns, found.surviving)
        return _minimum(objective, found.weights, found.value, eigenvalues, axes, mean, exact=found.exact)

    constant = objective.bias == "learnable" and objective.uses_dot_products
    count = min(dim - constant, pair.rank)
    kept = pair.correlations[:count]
    eigenvalues = eigenvalues_at_minimum(objective, kept) if count else kept
    value = float(direction_values(objective, kept, eigenvalues).sum())
    weights = patterns.new_zeros(dim, patterns.shape[1])
    weights[:count] = eigenvalues.sqrt()[:, None] * pair.filters[:count]
    centre = patterns.new_zeros(dim)
    if constant:
        # A constant output is a direction that every view agrees on: k = 1.
        one = kept.new_ones(1)
        eigenvalue = eigenvalues_at_minimum(objective, one)
        centre[count] = float(eigenvalue.sqrt())
        value += float(direction_values(objective, one, eigenvalue))

    surviving = int((eigenvalues > 0).sum())
    critical = None
    if correlations is not None:
        axes = torch.eye(len(patterns)).to(patterns)[:surviving]
        critical = critical_correlation(objective, correlations[:count]) if count else None
    elif objective.bias == "none" and bool(mean.any()):
        eigenvalues, axes = _spectrum(weights, patterns, surviving)
    else:
        axes = pair.filters[:surviving] @ patterns.T
    return _minimum(objective, weights, value, eigenvalues[:surviving], axes, mean, centre=centre, critical=critical)


def _spectrum(weights: torch.Tensor, patterns: torch.Tensor, surviving: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The positive eigenvalues of the representation's covariance, and its axes among the canonical directions."""
    _, lengths, axes = torch.linalg.svd(weights @ patterns.T, full_matrices=False)
    # An output that reads a constant input is not 0, but its variance is.
    surviving = min(surviving, int((lengths**2 > 1e-13 * lengths.max() ** 2).sum()))
    return lengths[:surviving] ** 2, axes[:surviving]


def _minimum(
    objective: Objective,
    weights: torch.Tensor,
    value: float,
    eigenvalues: torch.Tensor,
    axes: torch.Tensor,
    mean: torch.Tensor,
    *,
    centre: torch.Tensor | None = None,
    critical: float | None = None,
    exact: bool = True,
) -> Minimum:
    """`axes` are orthonormal rows, shape `(surviving, rank)`; `centre` is the mean of the representation."""
    surviving = len(eigenvalues)
    captured = axes.square().sum(0).clamp(0, 1)
    alive = torch.zeros_like(captured, dtype=torch.bool)
    alive[captured.topk(surviving).indices] = True
    offset = weights.new_zeros(len(weights)) if centre is None else centre
    if objective.bias != "none":
        offset = offset - weights @ mean
    return Minimum(
        objective=objective,
        eigenvalues=torch.nn.functional.pad(eigenvalues, (0, len(weights) - surviving)),
        weights=weights,
        offset=offset,
        value=value,
        surviving=surviving,
        captured=captured,
        alive=alive,
        critical_correlation=critical,
        exact=exact,
        dropped=weights.shape[1] - axes.shape[1],
    )
