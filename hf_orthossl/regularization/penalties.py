"""Orthogonality penalties through the Gram matrix, of one weight matrix or of a batch of equal shape.

Every function takes `W` of shape `(..., input, output)` and returns the penalty of each matrix, of shape
`(...)`. `G` is the Gram matrix of the smaller side: `WᵀW` when input > output, else `WWᵀ` (He, Du, Ma;
NeurIPS 2024, §3). All arithmetic is float32 (float64 for float64 weights), also under autocast and for
half-precision weights; the gradient comes back in the weight's own dtype. The factor γ is the caller's.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from .matrices import check, compute_dtype, full_precision, like, product_like, refuse_second_derivative, rows

# Rows per block of the half Gram matrix on CPU; narrower blocks starve the matrix product, wider ones save
# less.
_BLOCK = 64


def so(W: Tensor) -> Tensor:
    """Soft orthogonality, `‖G − I‖_F²`.

    The gradient is the closed form `4·W(WᵀW − I)` (input > output) or `4·(WWᵀ − I)W`: one Gram matrix in the
    forward pass and one product in the backward pass, against autograd's one and two. The Gram matrix is kept
    in between. A second derivative is not offered: asking for one raises `RuntimeError`.

    Args:
        W (`torch.Tensor` of shape `(..., input, output)`): the matrices.

    Returns:
        `torch.Tensor` of shape `(...)`, ≥ 0; 0 exactly when the smaller side is orthonormal.

    Raises:
        ValueError: if `W` has fewer than two dimensions.

    Source: Bansal, Chen, Wang, "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?",
    NeurIPS 2018, on the smaller side as He, Du, Ma, NeurIPS 2024.
    """
    check(W)
    return _SoftOrthogonality.apply(W)


def dso(W: Tensor) -> Tensor:
    """Double soft orthogonality, `‖WᵀW − I‖_F² + ‖WWᵀ − I‖_F²`.

    It is computed as `2·so(W) + |input − output|`. Proof: `‖AAᵀ − I_n‖_F² = tr(AAᵀAAᵀ) − 2·tr(AAᵀ) + n`, and
    both traces are the same for `A = W` and `A = Wᵀ` (a trace is cyclic), so the two terms differ by `input −
    output` alone, the larger side's being the larger. The gradient is therefore exactly twice that of [`so`].

    Args:
        W (`torch.Tensor` of shape `(..., input, output)`): the matrices.

    Returns:
        `torch.Tensor` of shape `(...)`, ≥ `|input − output|`.

    Raises:
        ValueError: if `W` has fewer than two dimensions.

    Source: Bansal et al., NeurIPS 2018.
    """
    return 2 * so(W) + abs(W.shape[-2] - W.shape[-1])


def mc(W: Tensor) -> Tensor:
    """Mutual coherence, `‖G − I‖_∞ = max_ij |G_ij − δ_ij|`: the largest entry, not the largest row sum.

    Bansal et al. derive it from the mutual coherence `max_{i≠j} |⟨w_i, w_j⟩| / (‖w_i‖‖w_j‖)`, which only the
    entry-wise maximum bounds, and take the plain subgradient rather than a smoothed norm. So does this: the
    gradient is that of one largest entry, and touches the two columns it is the product of. Where several
    entries are equally large, any one of them gives a subgradient.

    Args:
        W (`torch.Tensor` of shape `(..., input, output)`): the matrices.

    Returns:
        `torch.Tensor` of shape `(...)`, ≥ 0.

    Raises:
        ValueError: if `W` has fewer than two dimensions.

    Source: Bansal et al., NeurIPS 2018.
    """
    check(W)
    X = rows(W)
    X = X.to(compute_dtype(W))
    with torch.no_grad(), full_precision(W):
        largest = _gram_minus_identity(X.detach()).abs_().flatten(-2).argmax(-1)
        i, j = largest // X.shape[-2], largest % X.shape[-2]
    left, right = (X.take_along_dim(index[..., None, None], dim=-2).squeeze(-2) for index in (i, j))
    return ((left * right).sum(-1) - (i == j).to(X.dtype)).abs()


class _SoftOrthogonality(Function):
    @staticmethod
    def forward(ctx, W: Tensor) -> Tensor:
        with full_precision(W):
            E = _gram_minus_identity(rows(W).to(compute_dtype(W)))
            ctx.save_for_backward(W, E)
            return torch.linalg.vector_norm(E, dim=(-2, -1)).square()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        refuse_second_derivative()
        W, E = ctx.saved_tensors
        with full_precision(W):
            X = rows(W).to(E.dtype)
            factor = (4 * grad)[..., None, None]
            if X.shape[-1] <= 2 * X.shape[-2]:  # little more than the Gram matrix, and no copy of it
                return like(W, product_like(X, E, X).mul_(factor))
            return like(W, product_like(X, E * factor, X))


def _gram_minus_identity(X: Tensor) -> Tensor:
    n = X.shape[-2]
    if X.device.type == "cpu" and n > _BLOCK:
        # G is symmetric: block rows from the diagonal on, mirrored. Too small for an accelerator.
        E = X.new_empty(*X.shape[:-1], n)
        for i in range(0, n, _BLOCK):
            j = min(i + _BLOCK, n)
            E[..., i:j, i:] = X[..., i:j, :] @ X[..., i:, :].mT
            E[..., j:, i:j] = E[..., i:j, j:].mT
    else:
        E = X @ X.mT
    E.diagonal(dim1=-2, dim2=-1).sub_(1)
    return E
