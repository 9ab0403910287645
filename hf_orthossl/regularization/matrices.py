"""Matrix helpers of the penalties: read `(..., input, output)` with the smaller side as rows, in full precision."""

from typing import Protocol

import torch
from torch import Tensor

# Rows per block of the half Gram matrix on the CPU: narrower blocks slow down the product, wider ones save less.
_BLOCK = 64


def check_matrices(W: Tensor) -> None:
    """Raise `ValueError` unless `W` is a matrix or a batch of matrices."""
    if not isinstance(W, Tensor) or W.dim() < 2:
        given = tuple(W.shape) if isinstance(W, Tensor) else type(W).__name__
        raise ValueError(f"W must be a matrix or a batch of matrices (..., input, output), got {given}")


def refuse_second_derivative() -> None:
    """Raise `RuntimeError` in a backward pass with `create_graph=True`."""
    # Autograd would treat the saved intermediates as constants and silently return a wrong second derivative.
    if torch.is_grad_enabled():
        raise RuntimeError("this penalty has no second derivative: differentiate without create_graph=True")


def compute_dtype(W: Tensor) -> torch.dtype:
    """Return the dtype of a penalty's arithmetic: float32, or float64 for float64 weights."""
    return torch.promote_types(W.dtype, torch.float32)


def full_precision(W: Tensor) -> torch.autocast:
    """Return a context that turns autocast off on the device of `W`."""
    return torch.autocast(W.device.type, enabled=False)


def rows(W: Tensor) -> Tensor:
    """Return `X`, the smaller side of `W` as rows, so that `G = XXᵀ`; a view."""
    return W if W.shape[-2] <= W.shape[-1] else W.mT


def like(W: Tensor, X: Tensor) -> Tensor:
    """Return `X`, which has the shape of `rows(W)`, in the shape and dtype of `W`."""
    return (X if W.shape[-2] <= W.shape[-1] else X.mT).to(W.dtype)


def product_like(X: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ right` in the memory order of `X`, so that accumulation into `.grad` needs no copy."""
    return left @ right if X.stride(-1) == 1 else (right.mT @ left.mT).mT


def frobenius_norm(X: Tensor) -> Tensor:
    """Return the Frobenius norm `(...)` of each matrix `(..., rows, columns)`.

    Row by row on the CPU, whose float32 sum over the millions of entries of a large matrix loses digits: it adds in
    sequence. An accelerator adds in a tree of short sums, and there each further operation is a launch.
    """
    if X.device.type == "cpu":
        return torch.linalg.vector_norm(torch.linalg.vector_norm(X, dim=-1), dim=-1)
    return torch.linalg.vector_norm(X, dim=(-2, -1))


def gram(X: Tensor) -> Tensor:
    """Return `XXᵀ`, of shape `(..., n, n)` for `X` of shape `(..., n, m)`."""
    n = X.shape[-2]
    if X.device.type != "cpu" or n <= _BLOCK:
        return X @ X.mT
    # G is symmetric: compute block rows from the diagonal on and mirror them. On an accelerator this does not pay off.
    G = X.new_empty(*X.shape[:-1], n)
    for i in range(0, n, _BLOCK):
        j = min(i + _BLOCK, n)
        G[..., i:j, i:] = X[..., i:j, :] @ X[..., i:, :].mT
        G[..., j:, i:j] = G[..., i:j, j:].mT
    return G


def gram_minus_identity(X: Tensor) -> Tensor:
    """Return `XXᵀ − I`, of shape `(..., n, n)` for `X` of shape `(..., n, m)`."""
    E = gram(X)
    E.diagonal(dim1=-2, dim2=-1).sub_(1)
    return E


def largest_eigenvalue_bound(G: Tensor) -> Tensor:
    """Return `‖G‖_∞`, the largest absolute row sum of each symmetric matrix, of shape `(...)`.

    No eigenvalue is larger (Gershgorin), and with `n` rows it is at most `√n` times the largest. It is exact for the
    identity.
    """
    return torch.linalg.vector_norm(G, ord=1, dim=-1).amax(-1)


class Products(Protocol):
    """Products with one or several matrices `X`; vectors are rows, `k` at a time, of shape `(..., k, length)`.

    They are rows because batched products with a single column are fifteen times slower on the CPU.
    """

    def image(self, v: Tensor) -> Tensor:
        """Return `vX`, the vectors `Xᵀv`."""
        ...

    def product(self, y: Tensor) -> Tensor:
        """Return `yXᵀ`, the vectors `Xy`."""
        ...

    def norm(self, v: Tensor) -> Tensor:
        """Return `‖v‖` of the vectors of each matrix, in a shape that broadcasts to that of `v`."""
        ...


class WholeProducts:
    """Products with whole matrices `X` of shape `(..., rows, columns)`."""

    def __init__(self, X: Tensor):
        self.X = X

    def image(self, v: Tensor) -> Tensor:
        """Return `vX`."""
        return v @ self.X

    def product(self, y: Tensor) -> Tensor:
        """Return `yXᵀ`."""
        return y @ self.X.mT

    def norm(self, v: Tensor) -> Tensor:
        """Return `‖v‖` of each vector, of shape `(..., k, 1)`."""
        return torch.linalg.vector_norm(v, dim=-1, keepdim=True)
