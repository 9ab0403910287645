"""One process's entries of a parameter that is cut along its first dimension, as rows of its matrices."""

import torch
import torch.distributed as dist
from torch import Tensor

from .layouts import Block, blocks, output_first
from .matrices import compute_dtype
from .selection import WeightMatrix


class RowShard:
    """This process's entries of one parameter, as rows of its matrices `R`: `Wᵀ`, or `W` where inputs come first.

    Args:
        matrix ([`WeightMatrix`]): any of the parameter's matrices.
        weight (`DTensor`): the parameter, sharded along its first dimension, see [`is_row_sharded`].
    """

    def __init__(self, matrix: WeightMatrix, weight: Tensor):
        (mesh_dim,) = _cut_dimensions(weight)
        self.matrix, self.weight = matrix, weight
        self.mesh, self.mesh_dim = weight.device_mesh, mesh_dim
        self.group = self.mesh.get_group(mesh_dim)
        # As torch.chunk cuts: the last processes may hold fewer entries, or none.
        length, local = len(weight), weight.to_local()
        each = -(-length // self.mesh.size(mesh_dim))
        self.start = min(self.mesh.get_local_rank(mesh_dim) * each, length)
        self.blocks = self.cut(local)
        self.turned = matrix.layout is output_first
        self.rows, self.columns = matrix.shape[::-1] if self.turned else matrix.shape
        self.dtype = compute_dtype(weight)

    def cut(self, local: Tensor) -> list[Block]:
        """Entries in the place of this process's, as rows."""
        matrix = self.matrix
        return blocks(matrix.layout, local, matrix.count, matrix.shape, self.start, len(self.weight))

    def gather(self) -> Tensor:
        """All matrices `R` of the parameter, of shape `(count, rows, columns)`."""
        stack = self.matrix.layout(self.weight.full_tensor(), self.matrix.count)
        return (stack.mT if self.turned else stack).to(self.dtype)


def is_row_sharded(weight: Tensor) -> bool:
    """Whether a `DTensor` is cut along its first dimension over one dimension of its mesh and nowhere else."""
    return len(_cut_dimensions(weight)) == 1


def sum_over(group: dist.ProcessGroup, tensors: list[Tensor]) -> list[Tensor]:
    """Sums of tensors over processes, of all at once."""
    if not tensors:
        return []
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _cut_dimensions(weight: Tensor) -> list[int]:
    """The dimensions of the mesh that cut the weight's first dimension; none if anything else cuts it too."""
    cut = [i for i, placement in enumerate(weight.placements) if not placement.is_replicate()]
    # Not so the placement of FSDP on top of tensor parallelism, which deals the entries in another order.
    return cut if all(weight.placements[i].is_shard(0) for i in cut) else []
