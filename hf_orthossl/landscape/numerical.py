"""Minimizes the penalized landscape by L-BFGS where it has no closed form."""

import torch

from .losses import gaussian_uniformity
from .objective import Objective
from .pairs import CovariancePair

_STARTS = 4
_STEPS = 3000
# From this many weights on a run takes minutes, and the informed first start has to do.
_LARGE = 2**16
# Squared singular values, relative to the natural scale: dead ones end near 1e-16.
_DEAD = 1e-9


def minimize_numerically(objective: Objective, pair: CovariancePair, dim: int) -> tuple[torch.Tensor, float, int]:
    """
    The best of several L-BFGS runs in float64: one from the minimum without a bound on the rank, others from anywhere.

    Returns:
        W of shape `(dim, D)`, the loss there, and the rank of WΣWᵀ.
    """
    variances, axes = pair.spectrum
    pull = objective.slope * pair.effective_in_axes
    rows = min(dim, len(axes))
    curvature = objective.curvature
    if objective.loss == "normalized":
        curvature = curvature / float(variances.sum()) ** 2
    bend = curvature * torch.outer(variances, variances) + objective.gamma
    # In these units the quartic part of the loss is about 1 in every direction, and so is its minimum.
    natural = float(((pull.diagonal().abs() + 2 * objective.gamma) / (2 * bend.diagonal().sqrt())).max())
    units = natural**0.5 * bend.diagonal() ** -0.25

    def loss(scaled: torch.Tensor) -> torch.Tensor:
        return _penalized_loss(objective, scaled * units, pull, variances) / natural**2

    # Without a bound on the rank, or on the scale, there is one basin.
    one_basin = rows == len(axes) and objective.loss != "normalized"
    starts = 1 if one_basin or rows * len(axes) > _LARGE else _STARTS
    generator = torch.Generator().manual_seed(0)
    unbound = (pull + 2 * objective.gamma * torch.eye(len(axes)).to(pull)) / (2 * bend)
    lengths, turns = torch.linalg.eigh(unbound)
    first = lengths.flip(0)[:rows].clamp_min(0).sqrt()[:, None] * turns.T.flip(0)[:rows] / units
    best, lowest = first, float("inf")
    for start in range(starts):
        noise = torch.randn(rows, len(axes), generator=generator, dtype=torch.float64).to(pull)
        scaled = (first if start == 0 else 0.0) + (0.01 if start == 0 else 1.0) * noise / len(axes) ** 0.5
        scaled = _descend(loss, scaled)
        value = float(loss(scaled))
        if value < lowest:
            best, lowest = scaled, value
    weights = axes.new_zeros(dim, len(axes))
    weights[:rows] = (best * units) @ axes.T
    lengths = torch.linalg.svdvals(best[:, variances > 0]) ** 2
    surviving = int((lengths > _DEAD).sum())
    return weights, lowest * natural**2 + objective.gamma * (dim - rows), surviving


def _descend(loss, start: torch.Tensor) -> torch.Tensor:
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=_STEPS,
        max_eval=2 * _STEPS,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(point)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return point.detach()


def _penalized_loss(
    objective: Objective, weights: torch.Tensor, pull: torch.Tensor, variances: torch.Tensor
) -> torch.Tensor:
    """The loss in the axes of Σ; `pull` is c·B_eff there."""
    covariance = (weights * variances) @ weights.T
    linear = -((weights @ pull) * weights).sum()
    identity = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    penalty = objective.gamma * (weights @ weights.T - identity).square().sum()
    if objective.loss == "infonce":
        scaled = covariance / objective.temperature
        return linear + scaled.trace() + gaussian_uniformity(scaled) + penalty
    quadratic = objective.curvature * covariance.square().sum()
    if objective.loss == "normalized":
        trace = covariance.trace()
        linear, quadratic = linear / trace, quadratic / trace**2
    return linear + quadratic + penalty
