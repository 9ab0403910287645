"""Penalties of parameters whose entries processes share (`DTensor`, as FSDP2 makes them).

Every process gets the whole value, and its own entries' part of the whole gradient. All communication is in the
forward pass, which works the gradient out at once: the backward pass meets no collective of FSDP's, and nothing
larger than this process's entries is kept for it. One parameter at a time is gathered, at most.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from . import penalties
from .matrices import full_precision, refuse_second_derivative
from .power import gradient_factors, iterate
from .row_shard import RowShard, sum_over
from .sharded_products import SharedProducts
from .sketch import sketch, sketch_gradient_factors


class Evaluated(NamedTuple):
    """The penalties of one parameter's matrices, `(count,)`, and where SRIP ended, `(count, smaller side)`."""

    values: Tensor
    vectors: Tensor | None = None


def evaluate(
    kind: str, shards: Sequence[RowShard], random: Sequence[Tensor] | None = None, iterations: int = 2
) -> list[Evaluated]:
    """Penalties of sharded parameters; to be called by all processes of their meshes, in the same order.

    Args:
        kind (`str`): `"so"`, `"sketched_so"`, `"srip"`, `"dso"` or `"mc"`.
        shards (sequence of [`RowShard`]): the parameters.
        random (sequence of `torch.Tensor` of shape `(count, k, smaller side)`, *optional*): sketched SO's random
            vectors and, with `k = 1`, SRIP's start; those of the first process of the mesh hold for all.
        iterations (`int`, *optional*, defaults to `2`): power iterations of SRIP.
    """
    families = defaultdict(list)
    for i, shard in enumerate(shards):
        families[shard.mesh, shard.mesh_dim, shard.dtype, shard.weight.device].append(i)
    found: list[Evaluated] = [None] * len(shards)
    for family in families.values():
        members = [shards[i] for i in family]
        with torch.no_grad(), full_precision(members[0].weight):
            if kind in ("srip", "sketched_so"):
                X = SharedProducts(members)
                vectors = _joined(members, [random[i] for i in family])
                results = _srip(X, vectors, iterations) if kind == "srip" else _sketched_so(X, vectors)
                results = _by_parameter(members, *results)
            elif kind == "mc":
                results = [(*_mc(shard), None) for shard in members]
            else:
                results = _so(members, double=kind == "dso")
        for i, shard, (values, gradients, vectors) in zip(family, members, results, strict=True):
            indices = [block.index for block in shard.blocks]
            values = _Known.apply(values, indices, gradients, *(block.rows for block in shard.blocks))
            found[i] = Evaluated(values, vectors)
    return found


class _Known(Function):
    """Values whose gradients with respect to `rows` are known; rows `i` belong to value `indices[i]`."""

    @staticmethod
    def forward(ctx, values: Tensor, indices: list[int], gradients: list[Tensor], *rows: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.indices, ctx.dtypes = indices, [r.dtype for r in rows]
        return values.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        each = zip(ctx.saved_tensors, ctx.indices, ctx.dtypes, strict=True)
        return None, None, None, *((gradient * grad[i]).to(dtype) for gradient, i, dtype in each)


def _so(shards: list[RowShard], double: bool) -> list[tuple[Tensor, list[Tensor], None]]:
    parts, gradients = [], []
    for shard in shards:
        # Elements that travel: two n × n for the sum of Gram matrices, m × n for the whole.
        soft = _by_sum if 2 * shard.columns < shard.rows else _by_gathering
        part, gradient = soft(shard)
        parts.append(part)
        gradients.append(gradient)
    results = []
    for shard, squares, gradient in zip(shards, sum_over(shards[0].group, parts), gradients, strict=True):
        # ‖RRᵀ − I‖² and ‖RᵀR − I‖² have one gradient and differ by rows − columns.
        values = (squares - max(0, shard.rows - shard.columns)).to(shard.dtype)
        if double:
            values = 2 * values + abs(shard.rows - shard.columns)
            gradient = [2 * g for g in gradient]
        results.append((values, gradient, None))
    return results


def _by_sum(shard: RowShard) -> tuple[Tensor, list[Tensor]]:
    """`‖RRᵀ − I‖²`, this process's part, and its gradient, by the sum of all processes' `RᵀR`."""
    n = shard.columns
    E = shard.weight.to_local().new_zeros(shard.matrix.count, n, n, dtype=shard.dtype)
    rows = [block.rows.to(shard.dtype) for block in shard.blocks]
    for block, R in zip(shard.blocks, rows, strict=True):
        E[block.index] = R.mT @ R
    dist.all_reduce(E, group=shard.group)
    E.diagonal(dim1=-2, dim2=-1).sub_(1)
    squares = torch.linalg.vector_norm(E, dim=(-2, -1), dtype=torch.float64).square() + shard.rows - n
    if dist.get_rank(shard.group):
        squares.zero_()
    return squares, [4 * (R @ E[block.index]) for block, R in zip(shard.blocks, rows, strict=True)]


def _by_gathering(shard: RowShard) -> tuple[Tensor, list[Tensor]]:
    """`‖RRᵀ − I‖²`, this process's rows of it, and its gradient, by the whole `R`."""
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


def _mc(shard: RowShard) -> tuple[Tensor, list[Tensor]]:
    with torch.enable_grad():
        whole = shard.weight.detach().full_tensor().requires_grad_()
        values = penalties.mc(shard.matrix.layout(whole, shard.matrix.count))
        (gradient,) = torch.autograd.grad(values.sum(), whole)
    own = gradient[shard.start : shard.start + len(shard.weight.to_local())]
    return values.detach(), [block.rows.to(shard.dtype) for block in shard.cut(own)]


def _joined(shards: list[RowShard], random: list[Tensor]) -> Tensor:
    """The vectors of all matrices as [`SharedProducts`] takes them, the same on all processes."""
    local = shards[0].weight.to_local()
    vectors = torch.cat([v.movedim(1, 0).flatten(1).to(local.device, shards[0].dtype) for v in random], -1)
    for mesh_dim in range(shards[0].mesh.ndim):
        dist.broadcast(vectors, group=shards[0].mesh.get_group(mesh_dim), group_src=0)
    return vectors


def _srip(X: SharedProducts, start: Tensor, iterations: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of each matrix: the value, this process's rows of the gradient, the last vector."""
    units, images, norms = iterate(X, start, iterations)
    gradients = X.gradients(*gradient_factors(X, units, images, norms))
    values = [norm[0, 0] for norm in norms[-1].split(X.sizes, -1)]
    last = torch.where(norms[-1] > 0, units[-1], units[0])[0].split(X.sizes)
    return values, gradients, last


def _sketched_so(X: SharedProducts, vectors: Tensor) -> tuple[list[Tensor], list[Tensor], None]:
    """Of each matrix: the value and this process's rows of the gradient."""
    residuals, images = sketch(X, vectors)
    gradients = X.gradients(*sketch_gradient_factors(X, vectors, residuals, images))
    values = [torch.linalg.vector_norm(r).square() / len(r) for r in residuals.split(X.sizes, -1)]
    return values, gradients, None


def _by_parameter(
    shards: list[RowShard], values: list[Tensor], gradients: list[Tensor], vectors: list[Tensor] | None
) -> list[tuple[Tensor, list[Tensor], Tensor | None]]:
    results, first = [], 0
    for shard in shards:
        own = slice(first, first := first + shard.matrix.count)
        gradient = [gradients[own][block.index] for block in shard.blocks]
        results.append((torch.stack(values[own]), gradient, torch.stack(vectors[own]) if vectors else None))
    return results
