"""Matrix–vector products with the matrices of sharded parameters."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from .row_shard import RowShard, sum_over


class SharedProducts:
    """Products with the matrices of several sharded parameters in step: one sum over processes for all of them.

    `X`, the smaller side as rows, is `R` or `Rᵀ`. Vectors are rows, `k` at a time; those of all matrices follow each
    other in one tensor of shape `(k, sum of lengths)`. Those with as many entries as `X` has rows are whole, images of
    `Rᵀ` are this process's entries of them.
    """

    def __init__(self, shards: list[RowShard]):
        self.group = shards[0].group
        self.rows: list[Tensor] = []
        self.places: list[slice] = []
        self.across: list[bool] = []
        self.sizes: list[int] = []
        for shard in shards:
            inputs, outputs = shard.matrix.shape
            here = {block.index: block for block in shard.blocks}
            for index in range(shard.matrix.count):
                block = here.get(index)
                R = shard.weight.to_local().new_empty(0, shard.columns) if block is None else block.rows
                start = 0 if block is None else block.start
                self.rows.append(R.to(shard.dtype))
                self.places.append(slice(start, start + len(R)))
                # As penalties read a matrix: X is W unless it has more inputs than outputs.
                self.across.append((inputs <= outputs) == shard.turned)
                self.sizes.append(min(shard.matrix.shape))
        each = zip(self.rows, self.across, strict=True)
        self.image_sizes = [len(R) if across else R.shape[1] for R, across in each]

    def image(self, v: Tensor) -> Tensor:
        each = list(self._each(v, self.sizes))
        sums = iter(sum_over(self.group, [x[:, place] @ R for R, place, across, x in each if not across]))
        return torch.cat([x @ R.mT if across else next(sums) for R, _, across, x in each], -1)

    def product(self, y: Tensor) -> Tensor:
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
        each = v.split(self.sizes, -1)
        return torch.cat([torch.linalg.vector_norm(x, dim=-1, keepdim=True).expand_as(x) for x in each], -1)

    def gradients(self, left: Tensor, right: Tensor) -> list[Tensor]:
        """This process's rows of each matrix's gradient, for that of `X` being `left.mT @ right`."""
        rights = right.split(self.image_sizes, -1)
        each = zip(self._each(left, self.sizes), rights, strict=True)
        return [b.mT @ a if across else a[:, place].mT @ b for (_, place, across, a), b in each]

    def _each(self, vectors: Tensor, sizes: list[int]) -> Iterator[tuple[Tensor, slice, bool, Tensor]]:
        return zip(self.rows, self.places, self.across, vectors.split(sizes, -1), strict=True)
