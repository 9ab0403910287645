"""Products of vectors with matrices, for matrices that are here or on many processes."""

from typing import Protocol

import torch
from torch import Tensor


class Products(Protocol):
    """Products with one or several matrices `X`; vectors are rows, `k` at a time, of shape `(..., k, length)`.

    Rows, since batched products with a single column are fifteen times slower on CPU.
    """

    def image(self, v: Tensor) -> Tensor:
        """`vX`, the vectors `Xᵀv`."""

    def product(self, y: Tensor) -> Tensor:
        """`yXᵀ`, the vectors `Xy`."""

    def norm(self, v: Tensor) -> Tensor:
        """`‖v‖` of each matrix's vectors, of a shape that broadcasts to that of `v`."""


class WholeProducts:
    """Products with matrices `X` of shape `(..., rows, columns)` that are all here."""

    def __init__(self, X: Tensor):
        self.X = X

    def image(self, v: Tensor) -> Tensor:
        return v @ self.X

    def product(self, y: Tensor) -> Tensor:
        return y @ self.X.mT

    def norm(self, v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v, dim=-1, keepdim=True)
