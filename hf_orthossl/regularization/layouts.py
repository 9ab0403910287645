"""How a parameter's entries are read as matrices of shape `(input, output)`, whole or in part."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Layout = Callable[[Tensor, int], Tensor]


def output_first(weight: Tensor, count: int) -> Tensor:
    """`(count · output, *input)` → `(count, input, output)`: linear layers, convolutions."""
    return weight.reshape(count, weight.shape[0] // count, -1).mT


def input_first(weight: Tensor, count: int) -> Tensor:
    """`(input, count · output)` → `(count, input, output)`: Hugging Face's `Conv1D`."""
    return weight.unflatten(1, (count, -1)).movedim(1, 0)


def transposed_convolution(weight: Tensor, count: int) -> Tensor:
    """`(C_in, C_out/groups, *kernel)` → `(groups, C_in/groups · kernel, C_out/groups)`."""
    return weight.reshape(count, weight.shape[0] // count, weight.shape[1], -1).mT.flatten(1, 2)


class Block(NamedTuple):
    """Consecutive rows of `R`, one of a parameter's matrices, where `R` is `Wᵀ` if `output_first`, else `W`.

    Attributes:
        index (`int`): which of the parameter's matrices.
        start (`int`): the first row's place in `R`.
        rows (`torch.Tensor` of shape `(rows, columns of R)`): differentiable with respect to the part.
    """

    index: int
    start: int
    rows: Tensor


def blocks(layout: Layout, part: Tensor, count: int, shape: tuple[int, int], start: int, length: int) -> list[Block]:
    """What a part of a parameter holds of its matrices.

    Args:
        layout (`Callable`): one of this module's three.
        part (`torch.Tensor`): the entries `start`, `start + 1`, … of the parameter along its first dimension.
        count (`int`): how many matrices the whole parameter holds.
        shape (`tuple[int, int]`): `(input, output)` of each.
        start (`int`): the part's first entry.
        length (`int`): entries of the whole parameter along its first dimension.

    Returns:
        `list[Block]`, at most one for each matrix; one without rows for an empty part.
    """
    if not len(part):
        return [Block(0, 0, part.reshape(0, shape[0] if layout is output_first else shape[1]))]
    if layout is input_first:
        return [Block(index, start, rows) for index, rows in enumerate(layout(part, count).unbind())]
    stop, each = start + len(part), length // count
    found = []
    for index in range(start // each, (stop - 1) // each + 1):
        first, last = max(start, index * each), min(stop, (index + 1) * each)
        W = layout(part[first - start : last - start], 1)[0]
        rows = W.mT if layout is output_first else W
        found.append(Block(index, (first - index * each) * (len(rows) // (last - first)), rows))
    return found
