"""Class imbalance: how much of a rare class a self-supervised encoder keeps, against a supervised one."""

from dataclasses import dataclass

import torch

from .covariance_pair import CovariancePair, check_covariances
from .label_signal import class_offsets


@dataclass(frozen=True)
class Imbalance:
    """
    What class shares do to the directions of classes.

    Attributes:
        canonical_correlations (`torch.Tensor`): Of all directions, shape `(rank,)`, descending.
        class_correlations (`torch.Tensor`):
            Shape `(classes,)`: k = b/(b + c) along the filter that separates each class from the rest, with b the
            variance there between classes and c that of the noise. It saturates at 1, so that a rare class keeps its
            direction while p·‖μ_c − μ‖² is far above the noise.
        supervised (`torch.Tensor`):
            Shape `(classes,)`: the variance of each class indicator's least-squares fit, which is what supervision
            gives the class. It scales with the share p.
    """

    canonical_correlations: torch.Tensor
    class_correlations: torch.Tensor
    supervised: torch.Tensor


def imbalance(
    p: torch.Tensor, means: torch.Tensor, noise_covariance: torch.Tensor, *, tol: float = 1e-9, slack: float = 1e-6
) -> Imbalance:
    """
    Classes with shares p and means μ_c under noise: B = Σ p·(μ_c − μ)(μ_c − μ)ᵀ, Σ = B + noise.

    Args:
        p (`torch.Tensor`): Share of each class, shape `(classes,)`, at least two; scaled to a sum of 1.
        means (`torch.Tensor`): μ_c, shape `(classes, D)`.
        noise_covariance (`torch.Tensor`): Covariance of what augmentation moves, shape `(D, D)`.
        tol (`float`, *optional*, defaults to 1e-9): As [`LinearLandscape`].
        slack (`float`, *optional*, defaults to 1e-6): As [`LinearLandscape`].

    Returns:
        `Imbalance`: correlations of directions and of classes, and what supervision would give.

    Raises:
        `ValueError`: for shapes that do not fit, shares that are no shares, or a matrix that is no covariance.

    Source: Ziyin et al. (ICLR 2023), on the robustness of self-supervised learning to class imbalance.
    """
    shares, offsets = class_offsets(p, means.double())
    if noise_covariance.shape != (means.shape[1], means.shape[1]):
        raise ValueError(
            f"noise_covariance has shape {tuple(noise_covariance.shape)}: pass ({means.shape[1]}, {means.shape[1]})"
        )
    noise = noise_covariance.to(offsets)
    lowest = float(torch.linalg.eigvalsh(0.5 * (noise + noise.T))[0])
    if lowest < -slack * float(noise.abs().max()):
        raise ValueError(f"noise_covariance is not positive semi-definite: it has an eigenvalue {lowest:.3g}")
    between = offsets.T @ (shares[:, None] * offsets)
    between, views = check_covariances(between, between + noise, slack)
    pair = CovariancePair(between, views, tol)
    # Rows of whitened are the class offsets in canonical coordinates, where Σ is I and B is diag(k).
    correlations = pair.correlations.clamp(0, 1)
    whitened = offsets @ pair.filters.T
    lengths = whitened.square().sum(1)
    along = (whitened.square() * correlations).sum(1) / lengths.clamp_min(1e-300)
    return Imbalance(correlations, along, shares**2 * lengths)
