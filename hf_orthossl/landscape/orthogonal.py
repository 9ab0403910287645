"""The minimum of the landscape with the orthogonality penalty γ‖WWᵀ − I‖²."""

from dataclasses import dataclass

import torch

from .numerical import minimize_numerically
from .objective import Objective
from .pairs import CovariancePair


@dataclass(frozen=True)
class PenalizedMinimum:
    """W of shape `(dim, D)`, the loss, the rank of WΣWᵀ, and whether they are from a closed form."""

    weights: torch.Tensor
    value: float
    surviving: int
    exact: bool


def minimize_with_penalty(objective: Objective, pair: CovariancePair, dim: int) -> PenalizedMinimum:
    """
    Minimum over W of −c·Tr[B_eff P] + Σψ(eigenvalues of Σ^½PΣ^½) + γ‖WWᵀ − I‖², where P = WᵀW.

    Apart from the constant γ·(dim − D) it is convex in P, but for the scale-free `"normalized"`, so that only the bound
    on the rank of P can trap a search. Where that bound holds W back, one output may read a mixture of two directions
    even if B_eff and Σ commute.
    """
    commuting = _in_common_axes(objective, pair, dim)
    if commuting is not None:
        return commuting
    everywhere = _alive_everywhere(objective, pair, dim)
    if everywhere is not None:
        return everywhere
    return PenalizedMinimum(*minimize_numerically(objective, pair, dim), exact=False)


def common_axes(pair: CovariancePair) -> torch.Tensor | None:
    """Columns that diagonalize both B_eff and Σ, or `None` where they do not commute."""
    effective, views = pair.effective, pair.views
    product = effective @ views
    size = float(torch.linalg.matrix_norm(effective) * torch.linalg.matrix_norm(views))
    if float((product - product.T).abs().max()) > 1e-10 * size:
        return None
    # A sum with an odd weight tells apart directions that either matrix alone does not.
    weight = 0.618 * float(views.abs().max()) / max(float(effective.abs().max()), 1e-300)
    return torch.linalg.eigh(views + weight * effective)[1]


def _in_common_axes(objective: Objective, pair: CovariancePair, dim: int) -> PenalizedMinimum | None:
    """One squared singular value p for each common axis, if there are outputs for all that are positive."""
    if objective.loss == "normalized":
        return None
    axes = common_axes(pair)
    if axes is None:
        return None
    variances = (axes * (pair.views @ axes)).sum(0)
    variances = torch.where(variances > pair.tol * variances.max(), variances, 0.0)
    pull = objective.slope * (axes * (pair.effective @ axes)).sum(0)
    gamma = objective.gamma
    if objective.loss == "infonce":
        squared = _root(objective, variances, pull)
    else:
        squared = (pull + 2 * gamma).clamp_min(0) / (2 * (objective.curvature * variances**2 + gamma))
    alive = squared > 0
    if int(alive.sum()) > dim:
        return None
    terms = -pull * squared + objective.convex_part(variances * squared) + gamma * (squared**2 - 2 * squared)
    weights = axes.new_zeros(dim, len(axes))
    weights[: int(alive.sum())] = (squared.sqrt() * axes).T[alive]
    surviving = int((alive & (variances > 0)).sum())
    return PenalizedMinimum(weights, float(terms.sum()) + gamma * dim, surviving, exact=True)


def _root(objective: Objective, variances: torch.Tensor, pull: torch.Tensor) -> torch.Tensor:
    """p ≥ 0 where the slope σ²ψ′(σ²p) − pull + 2γ(p − 1), which rises with p, is 0; 0 where it never is below."""
    low, high = torch.zeros_like(pull), (pull / (2 * objective.gamma) + 1).clamp_min(0)
    for _ in range(200):
        middle = 0.5 * (low + high)
        slope = variances * objective.convex_slope(variances * middle) - pull + 2 * objective.gamma * (middle - 1)
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return torch.where(pull + 2 * objective.gamma > 0, 0.5 * (low + high), 0.0)


def full_rank_solution(objective: Objective, pair: CovariancePair) -> torch.Tensor:
    """P, in the axes of Σ, where the gradient 2q·ΣPΣ + 2γ·P − c·B_eff − 2γ·I of a quadratic loss vanishes."""
    variances = pair.spectrum[0]
    pull = objective.slope * pair.effective_in_axes
    pull.diagonal().add_(2 * objective.gamma)
    return pull / (2 * (objective.curvature * torch.outer(variances, variances) + objective.gamma))


def _alive_everywhere(objective: Objective, pair: CovariancePair, dim: int) -> PenalizedMinimum | None:
    """The closed form of a quadratic loss that holds where it is positive definite."""
    if objective.loss not in ("quartic", "spectral") or dim < len(pair.views):
        return None
    variances, axes = pair.spectrum
    squared, turns = torch.linalg.eigh(full_rank_solution(objective, pair))
    if float(squared[0]) <= 0:
        return None
    weights = axes.new_zeros(dim, len(axes))
    weights[: len(axes)] = squared.sqrt()[:, None] * (axes @ turns).T
    pull = objective.slope * pair.effective_in_axes
    solution = (turns * squared) @ turns.T
    value = -(pull * solution).sum() + objective.curvature * (torch.outer(variances, variances) * solution**2).sum()
    value = value + objective.gamma * (solution.square().sum() - 2 * solution.trace())
    value = float(value) + objective.gamma * dim
    return PenalizedMinimum(weights, value, int((variances > 0).sum()), exact=True)
