"""Read weights whose rows are sharded over processes (FSDP2's `DTensor`), and multiply by them.

Every process receives the whole value of a penalty, and the gradient of its rows. All communication is in the forward
pass, which also computes the gradient: the backward pass does not interfere with FSDP's collectives, and stores nothing
larger than this process's rows.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from ..distributed.sharding import full_tensor
from .matrices import compute_dtype, refuse_second_derivative
from .selection import Block, WeightMatrix, blocks, output_first

if TYPE_CHECKING:  # importing it takes a second
    from torch.distributed.tensor import DTensor


class ShardedValue(NamedTuple):
    """The penalties of one sharded parameter.

    Attributes:
        values (`torch.Tensor` of shape `(count,)`): The penalty of each of its matrices, equal on all processes.
        gradients (`list[torch.Tensor]`): The gradient of each block of this process, of the shape of its rows.
    """

    values: Tensor
    gradients: list[Tensor]


class RowShard:
    """This process's entries of one parameter, as rows of its matrices `R`: `Wᵀ`, or `W` if inputs come first.

    Args:
        matrix ([`WeightMatrix`]): Any of the parameter's matrices.
        weight (`DTensor`): The parameter, sharded along its first dimension, see [`is_row_sharded`].
        reference (`torch.Tensor`, *optional*): What the penalty kept of the matrices at the start, whole.

    Attributes:
        local (`torch.Tensor`): This process's entries.
        blocks (`list[Block]`): This process's rows, at most one block for each matrix.
        rows (`int`): The rows of each `R`.
        columns (`int`): The columns of each `R`.
        across (`bool`): Whether `X`, the smaller side as rows, is `Rᵀ` and not `R`.
        dtype (`torch.dtype`): The dtype of the arithmetic.
        group (`ProcessGroup`): The processes that hold the rows.
        reference (`torch.Tensor`, *optional*): What the penalty kept of the matrices at the start, whole.
    """

    def __init__(self, matrix: WeightMatrix, weight: "DTensor", reference: Tensor | None = None):
        (mesh_dim,) = _sharding_dimensions(weight)
        self.matrix, self.weight, self.reference = matrix, weight, reference
        self.mesh, self.mesh_dim = weight.device_mesh, mesh_dim
        self.group = self.mesh.get_group(mesh_dim)
        # As in torch.chunk, the last processes may hold fewer entries, or none.
        length, self.local = len(weight), weight.to_local()
        each = -(-length // self.mesh.size(mesh_dim))
        self.start = min(self.mesh.get_local_rank(mesh_dim) * each, length)
        self.blocks = self.cut(self.local)
        self.transposed = matrix.layout is output_first
        # As in the penalties, X is W unless it has more inputs than outputs.
        self.across = (matrix.shape[0] <= matrix.shape[1]) == self.transposed
        self.rows, self.columns = matrix.shape[::-1] if self.transposed else matrix.shape
        self.dtype = compute_dtype(weight)

    def cut(self, local: Tensor) -> list[Block]:
        """Return blocks of rows from a tensor of the shape of this process's entries."""
        matrix = self.matrix
        return blocks(matrix.layout, local, matrix.count, matrix.shape, self.start, len(self.weight))

    def gather(self) -> Tensor:
        """Return all matrices `R` of the parameter, of shape `(count, rows, columns)`."""
        stack = self.matrix.layout(full_tensor(self.weight.detach()), self.matrix.count)
        return (stack.mT if self.transposed else stack).to(self.dtype)

    def grams(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the Gram matrices `XXᵀ` of all matrices on every process, each of which computes a part of their sum.

        Args:
            parts (sequence of `torch.Tensor`): This process's blocks, in `dtype`.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: The Gram matrices, of shape `(count, n, n)`, and, if `X` is `R`, the
            whole `R`, which had to be gathered; else `None`.
        """
        n = min(self.rows, self.columns)
        if self.across:
            whole = None
            G = self.local.new_zeros(self.matrix.count, n, n, dtype=self.dtype, requires_grad=False)
            for block, R in zip(self.blocks, parts, strict=True):
                G[block.index] = R.mT @ R
        else:
            whole = self.gather()
            part = whole.tensor_split(dist.get_world_size(self.group), dim=-1)[dist.get_rank(self.group)]
            G = part @ part.mT
        dist.all_reduce(G, group=self.group)
        return G, whole


class ShardedProducts:
    """Products with the matrices of several sharded parameters, with one reduction over processes for all of them.

    `X`, the smaller side as rows, is `R` or `Rᵀ`. Vectors are rows, `k` at a time; those of all matrices are
    concatenated in one tensor of shape `(k, sum of lengths)`. Vectors with as many entries as `X` has rows are whole;
    of images of `Rᵀ`, each process holds a shard.

    Args:
        shards (sequence of [`RowShard`]): The parameters, of one group of processes.

    Attributes:
        sizes (`list[int]`): The rows of each `X`, matrix by matrix.
    """

    def __init__(self, shards: Sequence[RowShard]):
        self.group = shards[0].group
        self.rows: list[Tensor] = []
        self.places: list[slice] = []
        self.across: list[bool] = []
        self.sizes: list[int] = []
        for shard in shards:
            own = {block.index: block for block in shard.blocks}
            for index in range(shard.matrix.count):
                block = own.get(index)
                R = shard.weight.to_local().new_empty(0, shard.columns) if block is None else block.rows
                start = 0 if block is None else block.start
                self.rows.append(R.to(shard.dtype))
                self.places.append(slice(start, start + len(R)))
                self.across.append(shard.across)
                self.sizes.append(min(shard.matrix.shape))
        each = zip(self.rows, self.across, strict=True)
        self.image_sizes = [len(R) if across else R.shape[1] for R, across in each]

    def image(self, v: Tensor) -> Tensor:
        """Return `vX` of each matrix."""
        each = list(self._each(v, self.sizes))
        sums = iter(sum_over(self.group, [x[:, place] @ R for R, place, across, x in each if not across]))
        return torch.cat([x @ R.mT if across else next(sums) for R, _, across, x in each], -1)

    def product(self, y: Tensor) -> Tensor:
        """Return `yXᵀ` of each matrix."""
        whole = y.new_zeros(len(y), sum(self.sizes))
        parts = whole.split(self.sizes, -1)
        for part, (R, place, across, x) in zip(parts, self._each(y, self.image_sizes), strict=True):
            if across:
                part.copy_(x @ R)
            else:
                part[:, place] = x @ R.mT
        dist.all_reduce(whole, group=self.group)
        return whole

    def norm(self, v: Tensor) -> Tensor:
        """Return `‖v‖` of the vectors of each matrix, repeated to the shape of `v`."""
        each = v.split(self.sizes, -1)
        return torch.cat([torch.linalg.vector_norm(x, dim=-1, keepdim=True).expand_as(x) for x in each], -1)

    def gradients(self, left: Tensor, right: Tensor) -> list[Tensor]:
        """Return this process's rows of the gradient of each matrix, where that of `X` is `left.mT @ right`."""
        rights = right.split(self.image_sizes, -1)
        each = zip(self._each(left, self.sizes), rights, strict=True)
        return [b.mT @ a if across else a[:, place].mT @ b for (_, place, across, a), b in each]

    def _each(self, vectors: Tensor, sizes: list[int]) -> Iterator[tuple[Tensor, slice, bool, Tensor]]:
        return zip(self.rows, self.places, self.across, vectors.split(sizes, -1), strict=True)


def is_row_sharded(weight: "DTensor") -> bool:
    """Return whether a `DTensor` is sharded only along its first dimension, over one dimension of its mesh."""
    return len(_sharding_dimensions(weight)) == 1


def sum_over(group: dist.ProcessGroup, tensors: list[Tensor]) -> list[Tensor]:
    """Return the sums of tensors over processes, with a single all-reduce."""
    if not tensors:
        return []
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def join_vectors(vectors: Sequence[Tensor]) -> Tensor:
    """Concatenate the vectors of several parameters for [`ShardedProducts`], to shape `(k, sum of lengths)`.

    Args:
        vectors (sequence of `torch.Tensor` of shape `(count, k, length)`): One for each parameter.
    """
    return torch.cat([v.movedim(1, 0).flatten(1) for v in vectors], -1)


def split_by_parameter(
    shards: Sequence[RowShard], values: Sequence[Tensor], gradients: Sequence[Tensor]
) -> list[ShardedValue]:
    """Return the values and gradients of all matrices, grouped by parameter."""
    results, first = [], 0
    for shard in shards:
        own = slice(first, first := first + shard.matrix.count)
        gradient = [gradients[own][block.index] for block in shard.blocks]
        results.append(ShardedValue(torch.stack([*values[own]]), gradient))
    return results


def with_known_gradient(shard: RowShard, result: ShardedValue) -> Tensor:
    """Return the values of a sharded parameter, with the known gradients attached to this process's rows."""
    indices = [block.index for block in shard.blocks]
    return _KnownGradient.apply(result.values, indices, result.gradients, *(block.rows for block in shard.blocks))


class _KnownGradient(Function):
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


def _sharding_dimensions(weight: "DTensor") -> list[int]:
    """Return the mesh dimensions that shard the weight's first dimension; empty if another one is sharded too."""
    dimensions = [i for i, placement in enumerate(weight.placements) if not placement.is_replicate()]
    # This excludes FSDP on top of tensor parallelism, which distributes the entries in another order.
    return dimensions if all(weight.placements[i].is_shard(0) for i in dimensions) else []
