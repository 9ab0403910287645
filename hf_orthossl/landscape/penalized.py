"""The minimum with the orthogonality penalty γ‖WWᵀ − I‖², and the γ that revives collapsed directions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .covariance_pair import CovariancePair
from .minimum import Minimum, make_minimum, spectrum_and_axes
from .objective import Objective, gaussian_uniformity

_STARTS = 4
_STEPS = 3000
# With more weights than this a run takes minutes, so only the first, informed start is used.
_LARGE = 2**16
# Squared singular values, relative to the natural scale: those of collapsed outputs end near 1e-16.
_DEAD = 1e-9


@dataclass(frozen=True)
class PenalizedMinimum:
    """A minimizer W of shape `(dim, D)`, the loss there, the rank of WΣWᵀ, and whether they are a closed form."""

    weights: Tensor
    value: float
    surviving: int
    exact: bool


def find_penalized_minimum(
    objective: Objective, pair: CovariancePair, dim: int, *, mean: Tensor, patterns: Tensor
) -> Minimum:
    """Return the global minimum with `dim` outputs and the penalty; arguments as in `minimum.find_minimum`."""
    solution = minimize_with_penalty(objective, pair, dim)
    eigenvalues, axes = spectrum_and_axes(solution.weights, patterns, solution.surviving)
    return make_minimum(objective, solution.weights, solution.value, eigenvalues, axes, mean, exact=solution.exact)


def minimize_with_penalty(objective: Objective, pair: CovariancePair, dim: int) -> PenalizedMinimum:
    """Minimize −c·Tr[B_eff P] + Σψ(eigenvalues of Σ^½PΣ^½) + γ‖WWᵀ − I‖² over W, where P = WᵀW.

    Except for the scale-free `"normalized"` loss, this is convex in P up to the constant γ·(dim − D), so that only the
    bound on the rank of P can cause local minima. If that bound is active, one output may read a mixture of two
    directions even if B_eff and Σ commute.
    """
    commuting = _in_common_axes(objective, pair, dim)
    if commuting is not None:
        return commuting
    everywhere = _alive_everywhere(objective, pair, dim)
    if everywhere is not None:
        return everywhere
    return PenalizedMinimum(*_minimize_numerically(objective, pair, dim), exact=False)


def smallest_reviving_gamma(
    objective: Objective, pair: CovariancePair, patterns: Tensor, direction: int | None
) -> float:
    """Return the γ from which one direction, or all of them, survive.

    Args:
        objective ([`Objective`]): The loss; its γ is ignored.
        pair ([`CovariancePair`]): B_eff and Σ of the loss.
        patterns (`Tensor`): The canonical directions, shape `(rank, D)`.
        direction (`int`, *optional*): The index of one direction; `None` for all.

    Raises:
        ValueError: The loss has no derivation with the penalty, or needs no penalty.
    """
    if objective.loss == "normalized":
        raise ValueError("no penalty is needed with loss='normalized': lower the temperature to revive a direction")
    # Raises if the penalty has no derivation.
    replace(objective, gamma=1.0)
    living = pair.filters[pair.correlations > 0]
    if direction is None:
        if len(living) == pair.rank:
            return 0.0
    elif captured_share(living, patterns)[direction] > 0.5:
        return 0.0
    closed = _closed_threshold(objective, pair, patterns, direction)
    if closed is not None:
        return closed

    dim = len(pair.views)
    quadratic = direction is None and objective.loss != "infonce"

    def revived(gamma: float) -> bool:
        trial = replace(objective, gamma=gamma)
        if quadratic:
            return _range_is_alive(trial, pair)
        minimum = minimize_with_penalty(trial, pair, dim)
        if direction is None:
            return minimum.surviving == pair.rank
        return bool(captured_share(minimum.weights, patterns, minimum.surviving)[direction] > 0.5)

    high = max(-0.5 * objective.slope * float(torch.linalg.eigvalsh(pair.effective)[0]), 1e-12)
    while not revived(high):
        high *= 2
    low = 0.0
    precision = 1e-9 if quadratic else 1e-3
    while high - low > precision * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if revived(middle) else (middle, high)
    return high


def captured_share(weights: Tensor, patterns: Tensor, surviving: int | None = None) -> Tensor:
    """Return the share `(rank,)` of each canonical direction that the `surviving` largest axes of Wx capture."""
    if not len(weights):
        return patterns.new_zeros(len(patterns))
    axes = torch.linalg.svd(weights @ patterns.T, full_matrices=False)[2]
    return axes[:surviving].square().sum(0).clamp(0, 1)


def _common_axes(pair: CovariancePair) -> Tensor | None:
    """Return columns that diagonalize both B_eff and Σ, or `None` if they do not commute."""
    effective, views = pair.effective, pair.views
    product = effective @ views
    size = float(torch.linalg.matrix_norm(effective) * torch.linalg.matrix_norm(views))
    if float((product - product.T).abs().max()) > 1e-10 * size:
        return None
    # A sum with an irregular weight separates directions that each matrix alone does not.
    weight = 0.618 * float(views.abs().max()) / max(float(effective.abs().max()), 1e-300)
    return torch.linalg.eigh(views + weight * effective)[1]


def _in_common_axes(objective: Objective, pair: CovariancePair, dim: int) -> PenalizedMinimum | None:
    """Return a squared singular value p per common axis, if there are outputs for all positive ones, else `None`."""
    if objective.loss == "normalized":
        return None
    axes = _common_axes(pair)
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


def _root(objective: Objective, variances: Tensor, pull: Tensor) -> Tensor:
    """Return p ≥ 0 at which the increasing slope σ²ψ′(σ²p) − pull + 2γ(p − 1) is 0; 0 if it is never negative."""
    low, high = torch.zeros_like(pull), (pull / (2 * objective.gamma) + 1).clamp_min(0)
    for _ in range(200):
        middle = 0.5 * (low + high)
        slope = variances * objective.convex_slope(variances * middle) - pull + 2 * objective.gamma * (middle - 1)
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return torch.where(pull + 2 * objective.gamma > 0, 0.5 * (low + high), 0.0)


def _full_rank_solution(objective: Objective, pair: CovariancePair) -> Tensor:
    """Return P, in the axes of Σ, at which the gradient 2q·ΣPΣ + 2γ·P − c·B_eff − 2γ·I of a quadratic loss vanishes."""
    variances = pair.spectrum[0]
    pull = objective.slope * pair.effective_in_axes
    pull.diagonal().add_(2 * objective.gamma)
    return pull / (2 * (objective.curvature * torch.outer(variances, variances) + objective.gamma))


def _alive_everywhere(objective: Objective, pair: CovariancePair, dim: int) -> PenalizedMinimum | None:
    """Return the closed form of a quadratic loss, which holds if it is positive definite."""
    if objective.loss not in ("quartic", "spectral") or dim < len(pair.views):
        return None
    variances, axes = pair.spectrum
    squared, rotation = torch.linalg.eigh(_full_rank_solution(objective, pair))
    if float(squared[0]) <= 0:
        return None
    weights = axes.new_zeros(dim, len(axes))
    weights[: len(axes)] = squared.sqrt()[:, None] * (axes @ rotation).T
    pull = objective.slope * pair.effective_in_axes
    solution = (rotation * squared) @ rotation.T
    total = -(pull * solution).sum() + objective.curvature * (torch.outer(variances, variances) * solution**2).sum()
    total = total + objective.gamma * (solution.square().sum() - 2 * solution.trace())
    value = float(total) + objective.gamma * dim
    return PenalizedMinimum(weights, value, int((variances > 0).sum()), exact=True)


def _minimize_numerically(objective: Objective, pair: CovariancePair, dim: int) -> tuple[Tensor, float, int]:
    """Run L-BFGS in float64, once from the minimum without a bound on the rank and then from random weights.

    Returns:
        `tuple[Tensor, float, int]`: The best W of shape `(dim, D)`, the loss there, and the rank of WΣWᵀ.
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

    def loss(scaled: Tensor) -> Tensor:
        return _penalized_loss(objective, scaled * units, pull, variances) / natural**2

    # Without a bound on the rank, and unless the loss is scale-free, there is a single basin.
    one_basin = rows == len(axes) and objective.loss != "normalized"
    starts = 1 if one_basin or rows * len(axes) > _LARGE else _STARTS
    generator = torch.Generator().manual_seed(0)
    unbound = (pull + 2 * objective.gamma * torch.eye(len(axes)).to(pull)) / (2 * bend)
    lengths, rotation = torch.linalg.eigh(unbound)
    first = lengths.flip(0)[:rows].clamp_min(0).sqrt()[:, None] * rotation.T.flip(0)[:rows] / units
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


def _descend(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
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

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(point)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return point.detach()


def _penalized_loss(objective: Objective, weights: Tensor, pull: Tensor, variances: Tensor) -> Tensor:
    """Return the loss in the axes of Σ, in which `pull` is c·B_eff."""
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


def _closed_threshold(
    objective: Objective, pair: CovariancePair, patterns: Tensor, direction: int | None
) -> float | None:
    """Return −c·b/2 along common axes: the slope of the loss in p at p = 0 is −c·b − 2γ."""
    axes = _common_axes(pair)
    if axes is None:
        return None
    if direction is None:
        variances = (axes * (pair.views @ axes)).sum(0)
        pulls = (axes * (pair.effective @ axes)).sum(0)[variances > pair.tol * variances.max()]
        return max(0.0, -0.5 * objective.slope * float(pulls.min()))
    pattern = patterns[direction] / patterns[direction].norm()
    image = pair.effective @ pattern
    pull = pattern @ image
    if float((image - pull * pattern).norm()) > 1e-8 * float(pair.effective.abs().max()):
        return None
    return max(0.0, -0.5 * objective.slope * float(pull))


def _range_is_alive(objective: Objective, pair: CovariancePair) -> bool:
    """Return whether every direction of Σ's span survives at the minimum of a quadratic loss with D or more outputs."""
    varies = pair.spectrum[0] > 0
    solution = _full_rank_solution(objective, pair)[varies][:, varies]
    return int(torch.linalg.cholesky_ex(solution).info) == 0
