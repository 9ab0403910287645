"""Scaled SO: orthogonality up to the scale of each matrix."""

import torch
from torch import Tensor

from ..matrices import compute_dtype, frobenius_norm, full_precision, largest_eigenvalue_bound, rows
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
    default_strength = 0.05

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

    def decoupled_step(self, G: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the penalty `p` and `s·(H − c·I)`, with `H = n·G / tr(G)` and `c = ‖H‖_F² / n = 1 + p/n`.

        The gradient is `4·n / tr(G) · (H − c·I)X`. The step `X ← X − s·(H − c·I)X` is a quarter of it times the mean
        eigenvalue `tr(G) / n`, which leaves out the scale: W times a factor makes a step times that factor, and λ means
        the same for matrices of any width and scale. The step is orthogonal to X, so that `‖X‖_F` grows only with s².

        `s` is λ, or `1 / (3·‖H‖_∞ − 1)` if that is smaller, so that every ratio of two singular values approaches 1 and
        no two change their order. A singular value y of X, with the mean of y² scaled to 1, becomes
        `y' = y·(1 + s·c − s·y²)`. The factor is larger for smaller y, so ratios shrink; and for `y ≥ z`,
        `y' − z' = (y − z)·(1 + s·c − s·(y² + y·z + z²))`, where the last factor is ≥ 0, because `c ≥ 1` and no
        eigenvalue of H exceeds `‖H‖_∞`: `s·(y² + y·z + z² − c) ≤ s·(3·‖H‖_∞ − 1) ≤ 1`. The bound allows up to λ = 1/2
        where all singular values are equal. A zero matrix stays as it is.
        """
        diagonal, n = G.diagonal(dim1=-2, dim2=-1), G.shape[-1]
        mean = diagonal.mean(-1)
        nonzero = mean > 0
        G.div_(torch.where(nonzero, mean, 1.0)[..., None, None])
        step = (1 / (3 * largest_eigenvalue_bound(G) - 1)).clamp(max=strength) * nonzero
        diagonal.sub_(1)
        value = frobenius_norm(G).square() * nonzero
        diagonal.sub_((value / n)[..., None])
        return value, G.mul_(step[..., None, None])
