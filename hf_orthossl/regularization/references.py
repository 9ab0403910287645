"""Keep what a penalty needs of the weights at the start, as buffers of a module, which checkpoints hold."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from .penalties import Penalty
from .selection import WeightMatrix


class References(nn.Module, Mapping[int, Tensor]):  # type: ignore[misc]  # nn.Module has no __eq__ of its own
    """The references of the matrices of a regularizer, by the index of the first matrix of each parameter.

    A model that registers this module has them in its state dict, moves them with its weights, and restores them
    exactly when a run is resumed. Elsewhere, save `regularizer.references.state_dict()` with the weights.

    Args:
        penalty ([`Penalty`]): A penalty with `has_reference`.
        matrices (sequence of [`WeightMatrix`]): The matrices, as they are at the start; sharded ones are gathered, so
            that all processes must take part.
    """

    def __init__(self, penalty: Penalty, matrices: Sequence[WeightMatrix]):
        super().__init__()
        self.names: dict[int, str] = {}
        for i, matrix in enumerate(matrices):
            if not matrix.index:
                # A dot would end the name of a buffer.
                name = matrix.path.replace(".", "/")
                self.names[i] = name
                with torch.no_grad():
                    self.register_buffer(name, penalty.reference(matrix.stack()))

    def __getitem__(self, index: int) -> Tensor:
        return self.get_buffer(self.names[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    __hash__ = nn.Module.__hash__
    __eq__ = nn.Module.__eq__
