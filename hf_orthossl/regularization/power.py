"""Power iteration with `XXᵀ − I` and the gradient of its estimate, for matrices here or on many processes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .products import Products


def iterate(X: Products, start: Tensor, iterations: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Goes `n` times from `v` to `(XXᵀ − I)v`, normalized.

    Returns:
        the `n + 1` unit vectors, the `n` images `Xᵀv` of all but the last, and the `n` lengths before
        normalization, whose last one is the estimate of `σ_max(XXᵀ − I)`.
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


def gradient_factors(
    X: Products, units: Sequence[Tensor], images: Sequence[Tensor], norms: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """`L` and `R` of `2n` rows, the gradient of the estimate with respect to `X` being `LᵀR`.

    Args:
        X ([`Products`]): the matrices.
        units, images, norms (sequences of `torch.Tensor`): what [`iterate`] gave for one start vector.
    """
    n = len(norms)
    left, right = [], []
    # The adjoint of x_k. Only directions matter: σ does not change when an x_k is scaled, so normalizing
    # between the products is a constant to the gradient.
    adjoint = units[n]
    for k in range(n, 0, -1):
        z = X.image(adjoint)
        # d‖…‖ through A = XXᵀ − I: (a bᵀ + b aᵀ) X, with Xᵀa and Xᵀb at hand.
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
