"""Sketched SO: an unbiased estimate of SO from a few random vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from ..matrices import (
    Products,
    WholeProducts,
    full_precision,
    like,
    product_like,
    refuse_second_derivative,
    rows,
)
from ..sharded import RowShard, ShardedProducts, ShardedValue, join_vectors, split_by_parameter
from .base import Penalty, register_penalty


@register_penalty
class SketchedSO(Penalty):
    """An unbiased estimate of SO, `‖(G − I)Z‖_F² / k`, with `k` columns of `Z` of random signs.

    As `E[zzᵀ] = I`, `E‖(G − I)z‖² = ‖G − I‖_F²` (Hutchinson's estimator of the trace of `(G − I)²`), and the mean of
    its gradient is that of SO. With `A = (G − I)²` the variance is `2(‖A‖_F² − Σ A_ii²) / k`: random signs minimize it
    among vectors of independent entries. `G` is never formed, so that value and gradient cost `5k` products of a vector
    with `W`, instead of the `2·min(input, output)` of the exact ones.

    The gradient, in closed form, has rank `2k`: a single one is far from that of SO, and only the mean over many steps
    is close to it. Plain gradient descent averages over steps; Adam also divides by the size of the noise, so that the
    same γ has a weaker effect than with exact SO, especially with few probes. A second derivative raises
    `RuntimeError`.

    Args:
        probes (`int`, defaults to 16): The number `k` of random vectors, ≥ 1.

    Raises:
        ValueError: `probes` < 1.

    Source: Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", Commun. Stat. Simul. Comput. 19,
    1990, applied to SO of Bansal et al., NeurIPS 2018.
    """

    name = "sketched_so"
    title = "soft orthogonality, SO, estimated from random vectors"
    default_gamma = 1e-6
    is_noisy = True

    def __init__(self, probes: int = 16):
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        self.num_vectors = probes

    def value(self, W: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return the estimate of `‖G − I‖_F²` of each matrix; the rows of `vectors` are those of `Zᵀ`."""
        return _SketchedSoftOrthogonality.apply(W, vectors)

    def draw(self, count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Return random signs: 1 or −1 with equal probability."""
        return torch.randint(2, (count,), generator=generator, device=device, dtype=torch.float32).mul_(2).sub_(1)

    def cost(self, shape: tuple[int, int]) -> int:
        """Return the cost of matrix–vector products."""
        return shape[0] * shape[1]

    def sharded(self, shards: Sequence[RowShard], vectors: Sequence[Tensor] | None = None) -> list[ShardedValue]:
        """Return values and gradients by products with sharded matrices, all of them at once."""
        assert vectors is not None
        X, joined = ShardedProducts(shards), join_vectors(vectors)
        residuals, images = _sketch(X, joined)
        gradients = X.gradients(*_gradient_factors(X, joined, residuals, images))
        values = [torch.linalg.vector_norm(r).square() / len(r) for r in residuals.split(X.sizes, -1)]
        return split_by_parameter(shards, values, gradients)


class _SketchedSoftOrthogonality(Function):
    @staticmethod
    def forward(ctx, W: Tensor, vectors: Tensor) -> Tensor:
        with full_precision(W):
            residuals, images = _sketch(WholeProducts(rows(W).to(vectors.dtype)), vectors)
            ctx.save_for_backward(W, vectors, residuals, images)
            return torch.linalg.vector_norm(residuals, dim=(-2, -1)).square() / vectors.shape[-2]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative()
        W, *saved = ctx.saved_tensors
        with full_precision(W):
            X = rows(W).to(saved[0].dtype)
            left, right = _gradient_factors(WholeProducts(X), *saved)
            return like(W, product_like(X, (left * grad[..., None, None]).mT, right)), None


def _sketch(X: Products, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residuals `(XXᵀ − I)z` of the vectors `z`, and the images `Xᵀz`."""
    images = X.image(vectors)
    return X.product(images) - vectors, images


def _gradient_factors(X: Products, vectors: Tensor, residuals: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return `L` and `R` of `2k` rows; the gradient of the estimate with respect to `X` is `LᵀR`."""
    # d‖(XXᵀ − I)z‖² = 2⟨u, (dX Xᵀ + X dXᵀ)z⟩ with u the residual: 2(u zᵀ + z uᵀ)X.
    left = torch.cat([residuals, vectors], -2) * (2 / vectors.shape[-2])
    return left, torch.cat([images, X.image(residuals)], -2)
