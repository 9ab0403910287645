"""SRIP, the spectral norm of `G − I`, by power iteration."""

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
class SRIP(Penalty):
    """Spectral restricted isometry property, `σ_max(G − I)`, by power iteration from a normal random vector.

    With `x_0` the random vector and `x_k = (G − I) x_{k−1}`, the penalty is `‖x_n‖ / ‖x_{n−1}‖` for `n = iterations`;
    the paper's u and v are `x_1` and `x_2`. It is a lower bound of `σ_max` that grows towards it with `n`. It is not
    squared (Bansal et al.'s code squares it). `G` is never formed: every product is two matrix–vector products.

    The gradient is that of the estimate, as autograd computes it through all `n` products (the paper's code detaches
    none of them), with the random vector as a constant. It is computed in closed form, as one product of rank `2n`. An
    exactly orthonormal matrix has penalty and gradient 0. A second derivative raises `RuntimeError`.

    Args:
        iterations (`int`, defaults to 2): The number `n` of products with `G − I`, ≥ 1; 2 in the paper.

    Raises:
        ValueError: `iterations` < 1.

    Source: Bansal et al., NeurIPS 2018; two iterations and the smaller side, He, Du, Ma, NeurIPS 2024.
    """

    name = "srip"
    title = "spectral restricted isometry, SRIP"
    default_gamma = 1e-4
    num_vectors = 1

    def __init__(self, iterations: int = 2):
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.iterations = iterations

    def value(self, W: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return the estimate of `σ_max(G − I)` of each matrix, from `vectors` of shape `(..., 1, n)`."""
        return _PowerIteration.apply(W, vectors, self.iterations)

    def cost(self, shape: tuple[int, int]) -> int:
        """Return the cost of matrix–vector products."""
        return shape[0] * shape[1]

    def sharded(self, shards: Sequence[RowShard], vectors: Sequence[Tensor] | None = None) -> list[ShardedValue]:
        """Return values and gradients by products with sharded matrices, all of them at once."""
        assert vectors is not None
        X = ShardedProducts(shards)
        units, images, norms = _iterate(X, join_vectors(vectors), self.iterations)
        gradients = X.gradients(*_gradient_factors(X, units, images, norms))
        return split_by_parameter(shards, [norm[0, 0] for norm in norms[-1].split(X.sizes, -1)], gradients)


class _PowerIteration(Function):
    @staticmethod
    def forward(ctx, W: Tensor, start: Tensor, iterations: int) -> Tensor:
        with full_precision(W):
            units, images, norms = _iterate(WholeProducts(rows(W).to(start.dtype)), start, iterations)
        ctx.save_for_backward(W, *units, *images, *norms)
        return norms[-1][..., 0, 0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative()
        W, *saved = ctx.saved_tensors
        n = len(saved) // 3
        units, images, norms = saved[: n + 1], saved[n + 1 : 2 * n + 1], saved[2 * n + 1 :]
        with full_precision(W):
            X = rows(W).to(units[0].dtype)
            left, right = _gradient_factors(WholeProducts(X), units, images, norms)
            return like(W, product_like(X, (left * grad[..., None, None]).mT, right)), None, None


def _iterate(X: Products, start: Tensor, iterations: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Multiply a vector `n` times by `XXᵀ − I`, and normalize it each time.

    Returns:
        The `n + 1` unit vectors, the `n` images `Xᵀv` of all but the last, and the `n` lengths before normalization,
        the last of which is the estimate of `σ_max(XXᵀ − I)`.
    """
    v, _ = _normalize(X, start)
    units, images, norms = [v], [], []
    for _ in range(iterations):
        y = X.image(v)
        v, norm = _normalize(X, X.product(y) - v)
        units.append(v)
        images.append(y)
        norms.append(norm)
    return units, images, norms


def _gradient_factors(
    X: Products, units: Sequence[Tensor], images: Sequence[Tensor], norms: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return `L` and `R` of `2n` rows; the gradient of the estimate with respect to `X` is `LᵀR`.

    Args:
        X ([`Products`]): The matrices.
        units (sequence of `torch.Tensor`): Unit vectors from [`_iterate`], like `images` and `norms`.
        images (sequence of `torch.Tensor`): See `units`.
        norms (sequence of `torch.Tensor`): See `units`.
    """
    n = len(norms)
    left, right = [], []
    # The adjoint of x_k. Only directions matter: σ does not change when an x_k is scaled, so normalizing between the
    # products is a constant to the gradient.
    adjoint = units[n]
    for k in range(n, 0, -1):
        z = X.image(adjoint)
        # d‖…‖ through A = XXᵀ − I: (a bᵀ + b aᵀ) X, with Xᵀa and Xᵀb already computed.
        left += [adjoint, units[k - 1]]
        right += [images[k - 1], z]
        if k > 1:
            adjoint = X.product(z) - adjoint
            if k == n:
                adjoint = adjoint - norms[n - 1] * units[n - 1]
            adjoint = adjoint / torch.where(norms[k - 2] > 0, norms[k - 2], 1.0)
    return torch.cat(left, -2), torch.cat(right, -2)


def _normalize(X: Products, v: Tensor) -> tuple[Tensor, Tensor]:
    norm = X.norm(v)
    return v / torch.where(norm > 0, norm, 1.0), norm
