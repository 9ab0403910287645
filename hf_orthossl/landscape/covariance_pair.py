"""A pair of covariances diagonalized together, and the checks on those that come from outside."""

from functools import cached_property

import torch


class CovariancePair:
    """
    B_eff and Σ in the span of Σ: the eigenvalues k of Σ^-½ B_eff Σ^-½ and the filters that diagonalize both.

    Args:
        effective (`torch.Tensor`): B_eff of shape `(D, D)`, of any sign.
        views (`torch.Tensor`): Σ of shape `(D, D)`, positive semi-definite.
        tol (`float`): Eigenvalues of Σ below `tol` of the largest count as 0.
        known (`tuple`, *optional*): Correlations, descending, and filters where they are known.
    """

    def __init__(
        self,
        effective: torch.Tensor,
        views: torch.Tensor,
        tol: float,
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self.effective, self.views, self.tol = effective, views, tol
        if known is not None:
            self._canonical = known

    @cached_property
    def _decomposition(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.linalg.eigh(self.views)

    @property
    def lowest_variance(self) -> float:
        """The smallest eigenvalue of Σ, negative if it is no covariance."""
        return float(self._decomposition[0][0])

    @cached_property
    def spectrum(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ's eigenvalues, ascending, those below the tolerance set to 0, and its eigenvectors as columns."""
        variances, axes = self._decomposition
        return torch.where(variances > self.tol * variances[-1].clamp_min(0), variances, 0.0), axes

    @cached_property
    def effective_in_axes(self) -> torch.Tensor:
        """B_eff in the axes of Σ, shape `(D, D)`."""
        axes = self.spectrum[1]
        return axes.T @ self.effective @ axes

    @cached_property
    def _canonical(self) -> tuple[torch.Tensor, torch.Tensor]:
        variances, axes = self.spectrum
        kept = variances > 0
        whitening = axes[:, kept] / variances[kept].sqrt()
        whitened = whitening.T @ self.effective @ whitening
        correlations, turns = torch.linalg.eigh(0.5 * (whitened + whitened.T))
        return correlations.flip(0), (whitening @ turns).T.flip(0)

    @property
    def correlations(self) -> torch.Tensor:
        """Shape `(rank,)`, descending."""
        return self._canonical[0]

    @property
    def filters(self) -> torch.Tensor:
        """Shape `(rank, D)`: filters·Σ·filtersᵀ = I, filters·B_eff·filtersᵀ = diag(correlations)."""
        return self._canonical[1]

    @property
    def rank(self) -> int:
        return len(self.correlations)


def check_covariances(B: torch.Tensor, Sigma: torch.Tensor, slack: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both as symmetric float64 on one device; `ValueError` for anything that is not a pair of covariances."""
    for name, matrix in (("B", B), ("Sigma", Sigma)):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
            raise ValueError(f"{name} has shape {tuple(matrix.shape)}: pass a square matrix")
        if not bool(matrix.isfinite().all()):
            raise ValueError(f"{name} has entries that are not finite")
        asymmetry = float((matrix - matrix.T).abs().max())
        if asymmetry > slack * float(matrix.abs().max()):
            raise ValueError(
                f"{name} is not symmetric: entries differ from their mirror images by up to {asymmetry:.3g}"
            )
    if B.shape != Sigma.shape:
        raise ValueError(f"B has shape {tuple(B.shape)} and Sigma {tuple(Sigma.shape)}: pass two of the same size")
    Sigma = Sigma.detach().double()
    B = B.detach().to(Sigma)
    if not bool(Sigma.any()):
        raise ValueError("Sigma is zero: the views do not vary")
    return 0.5 * (B + B.T), 0.5 * (Sigma + Sigma.T)


def check_spans(pair: CovariancePair, slack: float) -> None:
    """`ValueError` unless Σ is positive semi-definite, B is too, and B does not pass Σ, up to `slack`."""
    variances, axes = pair.spectrum
    if pair.lowest_variance < -slack * float(variances[-1]):
        raise ValueError(
            f"Sigma is not positive semi-definite: it has an eigenvalue {pair.lowest_variance:.3g}; pass a covariance"
        )
    empty = axes[:, variances == 0]
    outside = float((empty.T @ pair.effective @ empty).diagonal().abs().max()) if empty.shape[1] else 0.0
    if outside > slack * float(variances[-1]):
        raise ValueError(
            f"B is not below Sigma: it has a variance of {outside:.3g} where views have none; pass covariances of the "
            "same views"
        )
    low, high = float(pair.correlations[-1]), float(pair.correlations[0])
    if high > 1 + slack:
        raise ValueError(
            f"B is not below Sigma: a canonical correlation is {high:.6g} > 1; pass covariances of the same views, or "
            "a larger slack if they are estimates"
        )
    if low < -slack:
        raise ValueError(
            f"B is not positive semi-definite: a canonical correlation is {low:.6g} < 0; clip the negative "
            "eigenvalues of an estimate, or pass a larger slack"
        )


def check_mean(mean: torch.Tensor | None, Sigma: torch.Tensor) -> torch.Tensor:
    """Returns E[x] of shape `(D,)` beside Σ, 0 where none is given."""
    if mean is None:
        return Sigma.new_zeros(len(Sigma))
    if mean.shape != Sigma.shape[:1]:
        raise ValueError(f"mean has shape {tuple(mean.shape)}: pass ({len(Sigma)},)")
    if not bool(mean.isfinite().all()):
        raise ValueError("mean has entries that are not finite")
    return mean.detach().to(Sigma)
