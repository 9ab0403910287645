"""Orthogonality penalties of one weight matrix, or of a batch of matrices of equal shape.

Every function takes `W` of shape `(..., input, output)` and returns the penalty of each matrix, of shape
`(...)`. `G` is the Gram matrix of the smaller side: `WᵀW` when input > output, else `WWᵀ` (He, Du, Ma;
NeurIPS 2024, §3). All arithmetic is float32 (float64 for float64 weights), also under autocast and for
half-precision weights; the gradient comes back in the weight's own dtype. The factor γ is the caller's.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from .power import gradient_factors, iterate

# Rows per block of the half Gram matrix on CPU; narrower blocks starve the matrix product, wider ones save
# less.
_BLOCK = 128


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
    _check(W)
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
    _check(W)
    X = _rows(W)
    X = X.to(compute_dtype(W))
    with torch.no_grad(), full_precision(W):
        largest = _gram_minus_identity(X.detach()).abs_().flatten(-2).argmax(-1)
        i, j = largest // X.shape[-2], largest % X.shape[-2]
    left, right = (X.take_along_dim(index[..., None, None], dim=-2).squeeze(-2) for index in (i, j))
    return ((left * right).sum(-1) - (i == j).to(X.dtype)).abs()


def srip(
    W: Tensor, iterations: int = 2, start: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Spectral restricted isometry property, `σ_max(G − I)`, by power iteration from a normal random vector.

    With `x_0 = start` and `x_k = (G − I) x_{k−1}`, the penalty is `‖x_n‖ / ‖x_{n−1}‖` for `n = iterations`;
    the paper's u and v are `x_1` and `x_2`. It is a lower bound of `σ_max` that grows towards it with `n`.
    `G` is never formed: every product is two matrix–vector products.

    The gradient is that of the estimate, as autograd through all `n` products gives it (the paper's code does
    not detach any), the start vector being a constant. It is computed in closed form, as one product of rank
    `2n`. A matrix that is orthonormal to the last bit has penalty and gradient 0. A second derivative is not
    offered: asking for one raises `RuntimeError`.

    Args:
        W (`torch.Tensor` of shape `(..., input, output)`): the matrices.
        iterations (`int`, *optional*, defaults to `2`): number of products with `G − I`, ≥ 1.
        start (`torch.Tensor` of shape `(..., min(input, output))`, *optional*): start vectors, of any
            non-zero length; drawn from a normal distribution when not given.
        generator (`torch.Generator`, *optional*): source of the start vectors; torch's own when not given.

    Returns:
        `torch.Tensor` of shape `(...)`, ≥ 0. Not squared (Bansal et al.'s code squares it).

    Raises:
        ValueError: if `W` has fewer than two dimensions, `iterations` < 1, or `start` has another shape.

    Source: Bansal et al., NeurIPS 2018; two iterations and the smaller side as He, Du, Ma, NeurIPS
    2024.
    """
    _check(W)
    if start is None:
        device = W.device if generator is None else generator.device
        start = torch.randn(*W.shape[:-2], min(W.shape[-2:]), generator=generator, device=device)
    return power_iteration(W, start, iterations)[0]


def power_iteration(W: Tensor, start: Tensor, iterations: int = 2) -> tuple[Tensor, Tensor]:
    """[`srip`] together with the vector it ended at, from which a later call may go on.

    Args:
        W (`torch.Tensor` of shape `(..., input, output)`): the matrices.
        start (`torch.Tensor` of shape `(..., min(input, output))`): start vectors.
        iterations (`int`, *optional*, defaults to `2`): number of products with `G − I`, ≥ 1.

    Returns:
        the penalties, of shape `(...)`, and unit vectors of the shape of `start`, which carry no gradient
        (`start` normalized, where the penalty is 0).

    Raises:
        ValueError: as [`srip`].
    """
    _check(W)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    expected = (*W.shape[:-2], min(W.shape[-2:]))
    if tuple(start.shape) != expected:
        raise ValueError(f"start has shape {tuple(start.shape)}; matrices {tuple(W.shape)} need {expected}")
    return _PowerIteration.apply(W, start.to(W.device, compute_dtype(W)), iterations)


class _SoftOrthogonality(Function):
    @staticmethod
    def forward(ctx, W: Tensor) -> Tensor:
        with full_precision(W):
            E = _gram_minus_identity(_rows(W).to(compute_dtype(W)))
            ctx.save_for_backward(W, E)
            return torch.linalg.vector_norm(E, dim=(-2, -1)).square()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        refuse_second_derivative()
        W, E = ctx.saved_tensors
        with full_precision(W):
            X = _rows(W).to(E.dtype)
            scaled = E * (4 * grad)[..., None, None]
            # Written in the weight's own memory order, so that accumulation into .grad needs no copy.
            product = scaled @ X if X.stride(-1) == 1 else (X.mT @ scaled).mT
            return _like(W, product)


class _PowerIteration(Function):
    @staticmethod
    def forward(ctx, W: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        with full_precision(W):
            units, images, norms = iterate(_Whole(_rows(W).to(start.dtype)), start, iterations)
            last = torch.where(norms[-1] > 0, units[-1], units[0])
        ctx.save_for_backward(W, *units, *images, *norms)
        ctx.mark_non_differentiable(last)
        return norms[-1].squeeze(-1), last

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative()
        W, *saved = ctx.saved_tensors
        n = len(saved) // 3
        units, images, norms = saved[: n + 1], saved[n + 1 : 2 * n + 1], saved[2 * n + 1 :]
        with full_precision(W):
            X = _rows(W).to(units[0].dtype)
            L, R = gradient_factors(_Whole(X), units, images, norms)
            L = L * grad[..., None, None]
            product = L @ R.mT if X.stride(-1) == 1 else (R @ L.mT).mT
            return _like(W, product), None, None


class _Whole:
    """Products with matrices `X` of shape `(..., rows, columns)` that are all here."""

    def __init__(self, X: Tensor):
        self.X = X

    def image(self, v: Tensor) -> Tensor:
        return _times(self.X.mT, v)

    def product(self, y: Tensor) -> Tensor:
        return _times(self.X, y)

    def norm(self, v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v, dim=-1, keepdim=True)


def _check(W: Tensor) -> None:
    if W.dim() < 2:
        raise ValueError(f"W must be a matrix or a batch of matrices (..., input, output), got {tuple(W.shape)}")


def refuse_second_derivative() -> None:
    """Raises `RuntimeError` in a backward pass that is itself to be differentiated."""
    # Autograd would take the saved intermediates for constants and give a wrong second derivative in silence.
    if torch.is_grad_enabled():
        raise RuntimeError("so, dso and srip have no second derivative: differentiate without create_graph=True")


def compute_dtype(W: Tensor) -> torch.dtype:
    """float32, float64 for float64 weights."""
    return torch.promote_types(W.dtype, torch.float32)


def full_precision(W: Tensor) -> torch.autocast:
    """Autocast turned off where `W` is."""
    return torch.autocast(W.device.type, enabled=False)


def _rows(W: Tensor) -> Tensor:
    """The smaller side as rows, so that `G = XXᵀ`; a view."""
    return W if W.shape[-2] <= W.shape[-1] else W.mT


def _like(W: Tensor, X: Tensor) -> Tensor:
    """Back from [`_rows`], in the weight's dtype."""
    return (X if W.shape[-2] <= W.shape[-1] else X.mT).to(W.dtype)


def _times(A: Tensor, v: Tensor) -> Tensor:
    # As a row vector: batched products with a single column are fifteen times slower on CPU.
    return (v.unsqueeze(-2) @ A.mT).squeeze(-2)


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
