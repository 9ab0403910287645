"""The global minimum of a loss: one eigenvalue of the representation per canonical direction."""

from dataclasses import dataclass

import torch

from .covariance_pair import CovariancePair
from .objective import Objective


@dataclass(frozen=True)
class Minimum:
    """
    The global minimum of a landscape.

    Attributes:
        objective (`Objective`): The loss it is the minimum of.
        eigenvalues (`torch.Tensor`):
            Of the covariance WΣWᵀ of the representation, shape `(dim,)`, descending, 0 where dead. With `"normalized"`
            their scale is free: they sum to 1 without the penalty, and follow it otherwise.
        weights (`torch.Tensor`): One minimizer W of shape `(dim, D)`; any rotation QW is another.
        offset (`torch.Tensor`): The bias that belongs to `weights`, shape `(dim,)`: f = Wx + offset.
        value (`float`): The loss at the minimum.
        surviving (`int`): The number of positive eigenvalues.
        captured (`torch.Tensor`):
            Of each canonical direction, shape `(rank,)`, the share in [0, 1] of its variance that can be read linearly
            from the representation. 0 or 1 unless weight decay, the penalty or a mean mixes directions.
        alive (`torch.Tensor`): The `surviving` directions that are captured most, as a mask of shape `(rank,)`.
        critical_correlation (`float`, *optional*):
            A direction dies where its canonical correlation is at most this, whatever `dim` is. `None` where the
            canonical correlation alone does not decide: with weight decay, the penalty or a mean.
        exact (`bool`): Whether from a closed form; otherwise minimized numerically in float64.
        dropped (`int`): Dimensions in which the views do not vary, left out of `captured` and `alive`.
    """

    objective: Objective
    eigenvalues: torch.Tensor
    weights: torch.Tensor
    offset: torch.Tensor
    value: float
    surviving: int
    captured: torch.Tensor
    alive: torch.Tensor
    critical_correlation: float | None
    exact: bool
    dropped: int


def simplex_projection(point: torch.Tensor) -> torch.Tensor:
    """
    The nearest point of the simplex {m ≥ 0, Σm = 1}.

    Args:
        point (`torch.Tensor`): Shape `(n,)`, n ≥ 1, in any order.

    Returns:
        `torch.Tensor`: shape `(n,)`.

    Raises:
        `ValueError`: if `point` is empty or not a vector.
    """
    if point.ndim != 1 or not len(point):
        raise ValueError(f"point has shape {tuple(point.shape)}: pass a vector of at least one number")
    return (point - _simplex_shift(point)).clamp_min(0)


def _simplex_shift(point: torch.Tensor) -> torch.Tensor:
    """θ such that Σ max(0, point − θ) = 1."""
    ordered = point.sort(descending=True).values
    counts = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    shifts = (ordered.cumsum(0) - 1) / counts
    return shifts[int((ordered > shifts).sum()) - 1]


def eigenvalues_at_minimum(objective: Objective, correlations: torch.Tensor) -> torch.Tensor:
    """
    The eigenvalue of M along each direction, all of which the encoder has an output for.

    Args:
        objective (`Objective`): Which loss, without its penalty.
        correlations (`torch.Tensor`):
            Shape `(n,)`: eigenvalues k of Σ^-½ B_eff Σ^-½, B_eff = Σ − alpha·C − (weight_decay / 2c)·I; at most 1.

    Returns:
        `torch.Tensor`: shape `(n,)`, at least 0.

    Raises:
        `ValueError`: if the loss falls without end: InfoNCE along a direction that augmentation leaves alone (k = 1).
    """
    if objective.loss == "normalized":
        return simplex_projection(objective.temperature * correlations)
    if objective.loss == "infonce":
        if bool((correlations >= 1 - 1e-12).any()):
            raise ValueError(
                "loss='infonce' has no minimum along a direction that augmentation leaves alone (canonical correlation "
                "1): pass weight_decay > 0, or views that change every direction"
            )
        # ½(t + t²) = 1 − k at t = 1 / (1 + m/T)
        inverse = -0.5 + (0.25 + 2 * (1 - correlations)).sqrt()
        return objective.temperature * (1 / inverse - 1).clamp_min(0)
    return objective.slope * correlations.clamp_min(0) / (2 * objective.curvature)


def direction_values(objective: Objective, correlations: torch.Tensor, eigenvalues: torch.Tensor) -> torch.Tensor:
    """What each direction adds to the loss, shape `(n,)`, where M has `eigenvalues` along `correlations`."""
    return -objective.slope * correlations * eigenvalues + objective.convex_part(eigenvalues)


def critical_correlation(objective: Objective, correlations: torch.Tensor) -> float:
    """The canonical correlation k (without alpha) at and below which a direction dies; `correlations` are `(n,)`."""
    survives_above = 0.0
    if objective.loss == "normalized":
        effective = 1 - objective.alpha * (1 - correlations)
        survives_above = float(_simplex_shift(objective.temperature * effective)) / objective.temperature
    return 1 - (1 - survives_above) / objective.alpha


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
        eigenvalues, axes = spectrum_and_axes(weights, patterns, surviving)
    else:
        axes = pair.filters[:surviving] @ patterns.T
    return make_minimum(
        objective, weights, value, eigenvalues[:surviving], axes, mean, centre=centre, critical=critical
    )


def spectrum_and_axes(
    weights: torch.Tensor, patterns: torch.Tensor, surviving: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The positive eigenvalues of the representation's covariance, and its axes among the canonical directions."""
    _, lengths, axes = torch.linalg.svd(weights @ patterns.T, full_matrices=False)
    # An output that reads a constant input is not 0, but its variance is.
    surviving = min(surviving, int((lengths**2 > 1e-13 * lengths.max() ** 2).sum()))
    return lengths[:surviving] ** 2, axes[:surviving]


def make_minimum(
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
