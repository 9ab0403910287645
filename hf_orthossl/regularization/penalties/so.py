"""SO, soft orthogonality: `‖G − I‖_F²`."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from ..matrices import (
    compute_dtype,
    frobenius_norm,
    full_precision,
    gram_minus_identity,
    largest_eigenvalue_bound,
    like,
    product_like,
    refuse_second_derivative,
    rows,
)
from ..sharded import RowShard, ShardedValue, sum_over
from .base import Penalty, register_penalty


@register_penalty
class SO(Penalty):
    """Soft orthogonality, `‖G − I‖_F²`, with `G` the Gram matrix of the smaller side.

    It is ≥ 0, and 0 exactly when the smaller side is orthonormal. The gradient is the closed form `4·W(WᵀW − I)`
    (input > output) or `4·(WWᵀ − I)W`: one Gram matrix in the forward pass and one product in the backward pass, where
    autograd needs two. The Gram matrix is stored in between. A second derivative raises `RuntimeError`.

    Source: Bansal, Chen, Wang, "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?", NeurIPS
    2018; on the smaller side, and γ for ResNet-18, He, Du, Ma, NeurIPS 2024.
    """

    name = "so"
    title = "soft orthogonality, SO"
    default_gamma = 1e-6
    default_strength = 0.05

    def value(self, W: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return `‖G − I‖_F²` of each matrix."""
        return SoftOrthogonality.apply(W, None)

    def decoupled_step(self, G: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return `‖G − I‖_F²` and `s·(G − I)`: the step `X ← X − s·(G − I)X` is a quarter of the gradient, times `s`.

        `s` is λ, or `1 / (2·max(1, ‖G‖_∞))` if that is smaller, with the largest absolute row sum `‖G‖_∞`. Then every
        singular value σ approaches 1, from its own side and at most to 1. It becomes `σ' = σ·(1 − s·(σ² − 1))`, so that
        `1 − σ' = (1 − σ)·(1 − s·σ·(σ + 1))`, and the last factor lies in [0, 1]: no eigenvalue of G exceeds `‖G‖_∞`, so
        that `σ·(σ + 1) ≤ 2·max(1, σ²) ≤ 2·max(1, ‖G‖_∞) ≤ 1/s`. In particular nothing diverges, changes its sign or is
        rounded beyond 1 by more than the arithmetic. The bound allows up to λ = 1/2 at orthonormal rows. It holds back
        large matrices with random entries for the first few steps: λ = 0.05 is reached below `‖G‖_∞ = 10`.

        Source: the step of Cissé et al., "Parseval Networks", ICML 2017 (eq. 8), `W ← (1 + β)W − βWWᵀW`; at 1/2 the
        iteration of Björck and Bowie, SIAM J. Numer. Anal. 8, 1971.
        """
        step = (0.5 / largest_eigenvalue_bound(G).clamp(min=1)).clamp(max=strength)
        G.diagonal(dim1=-2, dim2=-1).sub_(1)
        return frobenius_norm(G).square(), G.mul_(step[..., None, None])

    def sharded(self, shards: Sequence[RowShard], vectors: Sequence[Tensor] | None = None) -> list[ShardedValue]:
        """Return values and gradients by communicating either Gram matrices or weights, whichever are smaller."""
        parts, gradients = [], []
        for shard in shards:
            # Elements to communicate: two n × n for the sum of Gram matrices, m × n for the whole weight.
            evaluate = _by_sum if 2 * shard.columns < shard.rows else _by_gathering
            part, gradient = evaluate(shard)
            parts.append(part)
            gradients.append(gradient)
        results = []
        for shard, squares, gradient in zip(shards, sum_over(shards[0].group, parts), gradients, strict=True):
            # ‖RRᵀ − I‖² and ‖RᵀR − I‖² have the same gradient and differ by rows − columns.
            values = (squares - max(0, shard.rows - shard.columns)).to(shard.dtype)
            results.append(ShardedValue(values, gradient))
        return results


class SoftOrthogonality(Function):
    """`‖G − I − reference‖_F²` of each matrix, with its gradient in closed form; `None` for a reference of zeros."""

    @staticmethod
    def forward(ctx, W: Tensor, reference: Tensor | None) -> Tensor:
        """Return the values, and store the difference for the gradient."""
        with full_precision(W):
            E = gram_minus_identity(rows(W).to(compute_dtype(W)))
            if reference is not None:
                E -= reference
            ctx.save_for_backward(W, E)
            return frobenius_norm(E).square()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        """Return `4·W(WᵀW − I − reference)` or `4·(WWᵀ − I − reference)W`, times the gradient of each value."""
        refuse_second_derivative()
        W, E = ctx.saved_tensors
        with full_precision(W):
            X = rows(W).to(E.dtype)
            factor = (4 * grad)[..., None, None]
            if X.shape[-1] <= 2 * X.shape[-2]:  # little larger than the Gram matrix, and saves copying it
                return like(W, product_like(X, E, X).mul_(factor)), None
            return like(W, product_like(X, E * factor, X)), None


def _by_sum(shard: RowShard) -> tuple[Tensor, list[Tensor]]:
    """Return this process's part of `‖RRᵀ − I‖²`, and its gradient, by the sum of all processes' `RᵀR`."""
    n = shard.columns
    E = shard.weight.to_local().new_zeros(shard.matrix.count, n, n, dtype=shard.dtype)
    blocks = [block.rows.to(shard.dtype) for block in shard.blocks]
    for block, R in zip(shard.blocks, blocks, strict=True):
        E[block.index] = R.mT @ R
    dist.all_reduce(E, group=shard.group)
    E.diagonal(dim1=-2, dim2=-1).sub_(1)
    squares = torch.linalg.vector_norm(E, dim=(-2, -1), dtype=torch.float64).square() + shard.rows - n
    if dist.get_rank(shard.group):
        squares.zero_()
    return squares, [4 * (R @ E[block.index]) for block, R in zip(shard.blocks, blocks, strict=True)]


def _by_gathering(shard: RowShard) -> tuple[Tensor, list[Tensor]]:
    """Return `‖RRᵀ − I‖²` of this process's rows, and its gradient, by the whole `R`."""
    whole = shard.gather()
    squares = whole.new_zeros(shard.matrix.count, dtype=torch.float64)
    gradients = []
    for block in shard.blocks:
        R = whole[block.index]
        E = R[block.start : block.start + len(block.rows)] @ R.mT
        E.diagonal(block.start).sub_(1)
        squares[block.index] = torch.linalg.vector_norm(E, dtype=torch.float64).square()
        gradients.append(4 * (E @ R))
    return squares, gradients
