"""Scaled SO: orthogonality up to the scale of each matrix."""

import torch
from torch import Tensor

from ..matrices import compute_dtype, frobenius_norm, full_precision, rows
from .base import Penalty, get_penalty, register_penalty


@register_penalty
class ScaledSO(Penalty):
    """Soft orthogonality up to a factor, `n²·‖G‖_F² / tr(G)² − n`, for the smaller side `n`.

    It is ≥ 0, and 0 exactly when all eigenvalues of `G` are equal, whatever their value: it makes a matrix use all its
    directions equally and leaves the scale to the loss, to weight decay and to normalization layers, which make the
    scale of most weights meaningless. It is invariant to the scale of `W`. A zero matrix, whose
    eigenvalues are equal, has penalty and gradient 0.

    With `Y = √n·W / ‖W‖_F`, whose eigenvalues have mean 1, it is `‖YYᵀ − I‖_F²`, the SO of `Y`: `tr(YYᵀ) = n`, so that
    `‖YYᵀ − I‖_F² = ‖YYᵀ‖_F² − n`. It is computed in this form, which loses no digits near 0. The gradient with respect
    to `W` is orthogonal to `W`, and a second derivative raises `RuntimeError`, as that of SO.

    Source: SO of Bansal et al., NeurIPS 2018, of the matrix scaled to a mean eigenvalue of 1; the same quotient of
    moments as in Ledoit and Wolf, "Some Hypothesis Tests for the Covariance Matrix When the Dimension Is Large Compared
    to the Sample Size", Ann. Stat. 30, 2002 (sphericity, after John, 1971). γ is that of SO, whose value it
    equals at mean eigenvalue 1.
    """

    name = "scaled_so"
    title = "soft orthogonality up to scale, scaled SO"
    default_gamma = 1e-6

    def value(self, W: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return `n²·‖G‖_F² / tr(G)² − n` of each matrix."""
        with full_precision(W):
            X = rows(W).to(compute_dtype(W))
            # Divide by the largest entry: squares of tiny or huge entries would leave the range of float32. It is a
            # constant to the gradient, since the penalty does not depend on the scale.
            largest = X.detach().abs().amax((-2, -1), keepdim=True)
            X = X / torch.where(largest > 0, largest, 1.0)
            norm = frobenius_norm(X)[..., None, None]
            nonzero = norm > 0
            Y = X * (X.shape[-2] ** 0.5 / torch.where(nonzero, norm, 1.0))
            return get_penalty("so")().value(Y) * nonzero[..., 0, 0]
