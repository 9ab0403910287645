"""Sketched SO: an unbiased estimate of `‖G − I‖_F²` from a few random vectors."""

import torch
from torch import Tensor
from torch.autograd import Function

from .matrices import check, compute_dtype, full_precision, like, product_like, refuse_second_derivative, rows
from .products import Products, WholeProducts


def sketched_so(
    W: Tensor, probes: int = 16, vectors: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """An unbiased estimate of [`so`], `‖(G − I)Z‖_F² / k`, with `k` columns of `Z` of random signs.

    As `E[zzᵀ] = I`, `E‖(G − I)z‖² = ‖G − I‖_F²` (Hutchinson's estimator of the trace of `(G − I)²`), and the mean of
    its gradient is SO's. With `A = (G − I)²` the variance is `2(‖A‖_F² − Σ A_ii²) / k`: signs have the least of all
    vectors of independent entries. `G` is never formed, so that value and gradient cost `5k` products of a vector with
    `W`, against `2·min(input, output)` for the exact ones.

    The gradient, in closed form, has rank `2k`: a single one is far from SO's, and only the mean over many steps is
    close to it. Plain gradient descent takes that mean; Adam divides by the size of the noise as well, so that the same
    γ acts more weakly than with exact SO, the more so the fewer probes.

    A second derivative is not offered: asking for one raises `RuntimeError`.

    Args:
        W (`torch.Tensor` of shape `(..., input, output)`): the matrices.
        probes (`int`, *optional*, defaults to `16`): number `k` of random vectors, ≥ 1.
        vectors (`torch.Tensor` of shape `(..., probes, min(input, output))`, *optional*): the rows of `Zᵀ`, constants
            to the gradient; random signs when not given.
        generator (`torch.Generator`, *optional*): source of the signs; torch's own when not given.

    Returns:
        `torch.Tensor` of shape `(...)`, ≥ 0; 0 when the smaller side is orthonormal.

    Raises:
        ValueError: if `W` has fewer than two dimensions, `probes` < 1, or `vectors` has another shape.

    Source: Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", Commun. Stat. Simul. Comput. 19,
    1990, applied to SO of Bansal et al., NeurIPS 2018.
    """
    check(W)
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    expected = (*W.shape[:-2], probes, min(W.shape[-2:]))
    if vectors is None:
        vectors = random_signs(expected, W.device if generator is None else generator.device, generator)
    if tuple(vectors.shape) != expected:
        raise ValueError(f"vectors has shape {tuple(vectors.shape)}; matrices {tuple(W.shape)} need {expected}")
    return _SketchedSoftOrthogonality.apply(W, vectors.to(W.device, compute_dtype(W)))


def random_signs(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Independent entries, 1 or −1 with equal probability, float32."""
    return torch.randint(2, shape, generator=generator, device=device, dtype=torch.float32).mul_(2).sub_(1)


def sketch(X: Products, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The residuals `(XXᵀ − I)z` of some vectors `z`, whose mean square length is the estimate, and images `Xᵀz`."""
    images = X.image(vectors)
    return X.product(images) - vectors, images


def sketch_gradient_factors(X: Products, vectors: Tensor, residuals: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """`L` and `R` of `2k` rows, the gradient of the estimate with respect to `X` being `LᵀR`.

    Args:
        X ([`Products`]): the matrices.
        vectors, residuals, images (`torch.Tensor`): what [`sketch`] took and gave.
    """
    # d‖(XXᵀ − I)z‖² = 2⟨u, (dX Xᵀ + X dXᵀ)z⟩ with u the residual: 2(u zᵀ + z uᵀ)X.
    left = torch.cat([residuals, vectors], -2) * (2 / vectors.shape[-2])
    return left, torch.cat([images, X.image(residuals)], -2)


class _SketchedSoftOrthogonality(Function):
    @staticmethod
    def forward(ctx, W: Tensor, vectors: Tensor) -> Tensor:
        with full_precision(W):
            residuals, images = sketch(WholeProducts(rows(W).to(vectors.dtype)), vectors)
            ctx.save_for_backward(W, vectors, residuals, images)
            return torch.linalg.vector_norm(residuals, dim=(-2, -1)).square() / vectors.shape[-2]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative()
        W, *saved = ctx.saved_tensors
        with full_precision(W):
            X = rows(W).to(saved[0].dtype)
            left, right = sketch_gradient_factors(WholeProducts(X), *saved)
            return like(W, product_like(X, (left * grad[..., None, None]).mT, right)), None
