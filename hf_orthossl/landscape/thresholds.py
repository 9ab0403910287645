"""Where directions die: the origin's Hessian, and the setting from which each direction is dead."""

import math
from dataclasses import dataclass

import torch

from .objective import Objective
from .pairs import CovariancePair


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
