"""The global minimum of a loss: one eigenvalue of the representation's covariance per canonical direction."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import ArrayLike, as_tensor
from .covariance_pair import CovariancePair
from .objective import Objective


@dataclass(frozen=True)
class Minimum:
    """The global minimum of a landscape.

    Attributes:
        objective ([`Objective`]): The loss that is minimized.
        eigenvalues (`Tensor`): Eigenvalues of the representation's covariance WΣWᵀ, shape `(dim,)`, descending, 0 for
            outputs that have collapsed. With `"normalized"` their scale is arbitrary: without the penalty they sum to
            1, otherwise the penalty determines it.
        weights (`Tensor`): One minimizer W of shape `(dim, D)`; any rotation QW is another.
        offset (`Tensor`): The bias that belongs to `weights`, shape `(dim,)`: f = Wx + offset.
        value (`float`): The loss at the minimum.
        surviving (`int`): The number of positive eigenvalues.
        captured (`Tensor`): The share in [0, 1] of each canonical direction's variance that can be read linearly from
            the representation, shape `(rank,)`. 0 or 1 unless weight decay, the penalty or a mean mixes directions.
        alive (`Tensor`): The `surviving` directions that are captured most, as a mask of shape `(rank,)`.
        critical_correlation (`float`, *optional*): A direction collapses if its canonical correlation is at most this,
            whatever `dim` is. `None` if the canonical correlation alone does not decide: with weight decay, the
            penalty or a mean.
        exact (`bool`): Whether the minimum is a closed form; otherwise it was found numerically in float64.
        dropped (`int`): The number of dimensions in which views do not vary, omitted from `captured` and `alive`.
    """

    objective: Objective
    eigenvalues: Tensor
    weights: Tensor
    offset: Tensor
    value: float
    surviving: int
    captured: Tensor
    alive: Tensor
    critical_correlation: float | None
    exact: bool
    dropped: int


def simplex_projection(point: ArrayLike) -> Tensor:
    """Return the nearest point of the simplex {m ≥ 0, Σm = 1}.

    Args:
        point (`Tensor` or array): Shape `(n,)`, n ≥ 1, in any order.

    Returns:
        `Tensor`: Shape `(n,)`.

    Raises:
        TypeError: `point` is not an array of numbers.
        ValueError: `point` is empty, not a vector or not finite.

    Example:
        >>> simplex_projection([0.9, 0.5, -1.0])
        tensor([0.7000, 0.3000, 0.0000], dtype=torch.float64)
    """
    vector = as_tensor("point", point, 1, shape="(n,)")
    if not len(vector):
        raise ValueError("point has shape (0,): pass a vector of at least one number")
    vector = vector if vector.is_floating_point() else vector.double()
    return (vector - _simplex_shift(vector)).clamp_min(0)


def _simplex_shift(point: Tensor) -> Tensor:
    """Return θ such that Σ max(0, point − θ) = 1."""
    ordered = point.sort(descending=True).values
    counts = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    shifts = (ordered.cumsum(0) - 1) / counts
    return shifts[int((ordered > shifts).sum()) - 1]


def eigenvalues_at_minimum(objective: Objective, correlations: Tensor) -> Tensor:
    """Return the eigenvalue of M along each direction, if the encoder has an output for each of them.

    Args:
        objective ([`Objective`]): The loss; its penalty is ignored.
        correlations (`Tensor`): Shape `(n,)`: eigenvalues k of Σ^-½ B_eff Σ^-½, B_eff = Σ − alpha·C −
            (weight_decay / 2c)·I; at most 1.

    Returns:
        `Tensor`: Shape `(n,)`, at least 0.

    Raises:
        ValueError: The loss is unbounded below: InfoNCE along a direction that augmentation does not change (k = 1).
    """
    if objective.loss == "normalized":
        return simplex_projection(objective.temperature * correlations)
    if objective.loss == "infonce":
        if bool((correlations >= 1 - 1e-12).any()):
            raise ValueError(
                "loss='infonce' has no minimum along a direction that augmentation does not change (canonical "
                "correlation 1): pass weight_decay > 0, or views that change every direction"
            )
        # ½(t + t²) = 1 − k at t = 1 / (1 + m/T)
        inverse = -0.5 + (0.25 + 2 * (1 - correlations)).sqrt()
        return objective.temperature * (1 / inverse - 1).clamp_min(0)
    return objective.slope * correlations.clamp_min(0) / (2 * objective.curvature)


def direction_values(objective: Objective, correlations: Tensor, eigenvalues: Tensor) -> Tensor:
    """Return the loss `(n,)` that each direction adds, where M has `eigenvalues` `(n,)` along `correlations` `(n,)`."""
    return -objective.slope * correlations * eigenvalues + objective.convex_part(eigenvalues)


def critical_correlation(objective: Objective, correlations: Tensor) -> float:
    """Return the canonical correlation k (without alpha) at and below which a direction of `correlations` collapses."""
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
    mean: Tensor,
    patterns: Tensor,
    correlations: Tensor | None,
) -> Minimum:
    """Return the global minimum with `dim` outputs and without the penalty, a closed form.

    Args:
        objective ([`Objective`]): The loss.
        pair ([`CovariancePair`]): B_eff and Σ of the loss.
        dim (`int`): The number of outputs.
        mean (`Tensor`): E[x], shape `(D,)`.
        patterns (`Tensor`): The canonical directions of B and Σ, shape `(rank, D)`.
        correlations (`Tensor`, *optional*): Their canonical correlations, shape `(rank,)`, if `pair` has the same
            directions.
    """
    constant = objective.bias == "learnable" and objective.uses_dot_products
    count = min(dim - constant, pair.rank)
    leading = pair.correlations[:count]
    eigenvalues = eigenvalues_at_minimum(objective, leading) if count else leading
    value = float(direction_values(objective, leading, eigenvalues).sum())
    weights = patterns.new_zeros(dim, patterns.shape[1])
    weights[:count] = eigenvalues.sqrt()[:, None] * pair.filters[:count]
    centre = patterns.new_zeros(dim)
    if constant:
        # In a constant output all views agree, so k = 1.
        one = leading.new_ones(1)
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
    positive = eigenvalues[:surviving]
    return make_minimum(objective, weights, value, positive, axes, mean, centre=centre, critical=critical)


def spectrum_and_axes(weights: Tensor, patterns: Tensor, surviving: int) -> tuple[Tensor, Tensor]:
    """Return the positive eigenvalues of the representation's covariance, and its axes among canonical directions."""
    _, lengths, axes = torch.linalg.svd(weights @ patterns.T, full_matrices=False)
    # The output for a constant input is not 0, but its variance is.
    surviving = min(surviving, int((lengths**2 > 1e-13 * lengths.max() ** 2).sum()))
    return lengths[:surviving] ** 2, axes[:surviving]


def make_minimum(
    objective: Objective,
    weights: Tensor,
    value: float,
    eigenvalues: Tensor,
    axes: Tensor,
    mean: Tensor,
    *,
    centre: Tensor | None = None,
    critical: float | None = None,
    exact: bool = True,
) -> Minimum:
    """Return the minimum that a solver found, with the directions that survive.

    Args:
        objective ([`Objective`]): The loss.
        weights (`Tensor`): W of shape `(dim, D)`.
        value (`float`): The loss there.
        eigenvalues (`Tensor`): The positive eigenvalues of WΣWᵀ, shape `(surviving,)`.
        axes (`Tensor`): The representation's axes among the canonical directions, orthonormal rows `(surviving, rank)`.
        mean (`Tensor`): E[x], shape `(D,)`.
        centre (`Tensor`, *optional*): The mean of the representation, shape `(dim,)`, defaults to 0.
        critical (`float`, *optional*): The critical canonical correlation.
        exact (`bool`, defaults to `True`): Whether the solution is a closed form.
    """
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
