"""Diagonalize B_eff and Σ together, and check that two matrices are covariances of the same views."""

from functools import cached_property

import torch
from torch import Tensor

from ..arguments import ArrayLike, as_tensor


class CovariancePair:
    """B_eff and Σ in the span of Σ: the eigenvalues k of Σ^-½ B_eff Σ^-½ and the filters that diagonalize both.

    Args:
        effective (`Tensor`): B_eff of shape `(D, D)`, indefinite in general.
        views (`Tensor`): Σ of shape `(D, D)`, positive semi-definite.
        tol (`float`): Eigenvalues of Σ below `tol` times the largest count as 0.
        known (`tuple[Tensor, Tensor]`, *optional*): Correlations `(rank,)`, descending, and filters `(rank, D)`, if
            already known.
    """

    def __init__(
        self, effective: Tensor, views: Tensor, tol: float, known: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.effective, self.views, self.tol = effective, views, tol
        if known is not None:
            self._canonical = known

    @cached_property
    def _decomposition(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.views)
        return values, vectors

    @property
    def lowest_variance(self) -> float:
        """Return the smallest eigenvalue of Σ, which is negative if Σ is not a covariance."""
        return float(self._decomposition[0][0])

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Return Σ's eigenvalues, ascending and 0 if below the tolerance, and its eigenvectors as columns."""
        variances, axes = self._decomposition
        return torch.where(variances > self.tol * variances[-1].clamp_min(0), variances, 0.0), axes

    @cached_property
    def effective_in_axes(self) -> Tensor:
        """Return B_eff in the axes of Σ, shape `(D, D)`."""
        axes = self.spectrum[1]
        return axes.T @ self.effective @ axes

    @cached_property
    def _canonical(self) -> tuple[Tensor, Tensor]:
        variances, axes = self.spectrum
        nonzero = variances > 0
        whitening = axes[:, nonzero] / variances[nonzero].sqrt()
        whitened = whitening.T @ self.effective @ whitening
        correlations, rotation = torch.linalg.eigh(0.5 * (whitened + whitened.T))
        return correlations.flip(0), (whitening @ rotation).T.flip(0)

    @property
    def correlations(self) -> Tensor:
        """Return the eigenvalues k, shape `(rank,)`, descending."""
        return self._canonical[0]

    @property
    def filters(self) -> Tensor:
        """Return the filters, shape `(rank, D)`: filters·Σ·filtersᵀ = I, filters·B_eff·filtersᵀ = diag(k)."""
        return self._canonical[1]

    @property
    def rank(self) -> int:
        """Return the number of dimensions in which views vary."""
        return len(self.correlations)


def check_covariances(B: ArrayLike, Sigma: ArrayLike, slack: float) -> tuple[Tensor, Tensor]:
    """Return B and Σ as symmetric float64 tensors on Σ's device.

    Args:
        B (`Tensor` or array): Shape `(D, D)`.
        Sigma (`Tensor` or array): Shape `(D, D)`.
        slack (`float`): The asymmetry allowed, relative to the largest entry.

    Raises:
        TypeError: A matrix is not an array of numbers.
        ValueError: A matrix is not square, finite and symmetric, the two differ in size, or Σ is 0.
    """
    matrices = []
    for name, value in (("B", B), ("Sigma", Sigma)):
        matrix = as_tensor(name, value, 2, shape="a square matrix (D, D)").detach()
        if matrix.shape[0] != matrix.shape[1] or not matrix.numel():
            raise ValueError(f"{name} has shape {tuple(matrix.shape)}: pass a square matrix (D, D)")
        matrix = matrix if matrix.is_floating_point() else matrix.double()
        asymmetry = float((matrix - matrix.T).abs().max())
        if asymmetry > slack * float(matrix.abs().max()):
            raise ValueError(f"{name} is not symmetric: entries (i, j) and (j, i) differ by up to {asymmetry:.3g}")
        matrices.append(matrix)
    surviving, views = matrices
    if surviving.shape != views.shape:
        raise ValueError(
            f"B has shape {tuple(surviving.shape)} and Sigma {tuple(views.shape)}: pass matrices of the same size"
        )
    views = views.double()
    surviving = surviving.to(views)
    if not bool(views.any()):
        raise ValueError("Sigma is zero: the views do not vary")
    return 0.5 * (surviving + surviving.T), 0.5 * (views + views.T)


def check_spans(pair: CovariancePair, slack: float) -> None:
    """Check that Σ and B are positive semi-definite and that B does not exceed Σ, up to `slack`.

    Raises:
        ValueError: One of these conditions does not hold.
    """
    variances, axes = pair.spectrum
    if pair.lowest_variance < -slack * float(variances[-1]):
        raise ValueError(
            f"Sigma is not positive semi-definite: it has an eigenvalue {pair.lowest_variance:.3g}; pass a covariance"
        )
    empty = axes[:, variances == 0]
    outside = float((empty.T @ pair.effective @ empty).diagonal().abs().max()) if empty.shape[1] else 0.0
    if outside > slack * float(variances[-1]):
        raise ValueError(
            f"B is not below Sigma: it has a variance of {outside:.3g} in a direction in which views have none; pass "
            "covariances of the same views"
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
