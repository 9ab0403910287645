"""The strength of the orthogonality penalty that revives dead directions."""

from dataclasses import replace

import torch

from .objective import Objective
from .orthogonal import common_axes, full_rank_solution, minimize_with_penalty
from .pairs import CovariancePair


def smallest_reviving_gamma(
    objective: Objective, pair: CovariancePair, patterns: torch.Tensor, direction: int | None
) -> float:
    """Where the direction, or the last of all, comes alive as γ grows; `patterns` are the canonical directions."""
    if objective.loss == "normalized":
        raise ValueError("no penalty is needed with loss='normalized': lower the temperature to revive a direction")
    # Fails here where the penalty has no derivation.
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


def _closed_threshold(
    objective: Objective, pair: CovariancePair, patterns: torch.Tensor, direction: int | None
) -> float | None:
    """−c·b/2 along common axes: the slope of the loss in p at p = 0 is −c·b − 2γ."""
    axes = common_axes(pair)
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
    """Whether every direction of Σ's span lives at the minimum of a quadratic loss with at least D outputs."""
    varies = pair.spectrum[0] > 0
    solution = full_rank_solution(objective, pair)[varies][:, varies]
    return int(torch.linalg.cholesky_ex(solution).info) == 0


def captured_share(weights: torch.Tensor, patterns: torch.Tensor, surviving: int | None = None) -> torch.Tensor:
    """Of each canonical direction, shape `(rank,)`, the share that the `surviving` largest axes of Wx capture."""
    if not len(weights):
        return patterns.new_zeros(len(patterns))
    axes = torch.linalg.svd(weights @ patterns.T, full_matrices=False)[2]
    return axes[:surviving].square().sum(0).clamp(0, 1)
