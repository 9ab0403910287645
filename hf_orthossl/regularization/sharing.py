"""Sharing the penalty out: each process computes some matrices only, and averaging gradients makes it whole."""

import heapq
from collections.abc import Sequence

from torch import Tensor
from torch.autograd import Function


def cost(kind: str, shape: tuple[int, int], count: int = 1) -> int:
    """What the penalty of `count` matrices costs with its gradient, in multiply-adds up to a factor.

    Args:
        kind (`str`): `"so"`, `"sketched_so"`, `"srip"`, `"dso"` or `"mc"`.
        shape (`tuple[int, int]`): `(input, output)` of a matrix.
        count (`int`, *optional*, defaults to `1`): how many there are.
    """
    small, large = sorted(shape)
    return count * large * (small if kind in ("srip", "sketched_so") else small**2)


def shares(costs: Sequence[int], processes: int) -> list[list[int]]:
    """Splits items among processes, dearest first, each to the process that has least so far.

    The same on every process, so that nothing is communicated. The dearest share costs at most 4/3 of that of the best
    split (Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17, 1969).

    Args:
        costs (sequence of `int`): of each item, ≥ 0.
        processes (`int`): ≥ 1.

    Returns:
        `list[list[int]]`: the items of each process, in ascending order; empty where there are too few.
    """
    split: list[list[int]] = [[] for _ in range(processes)]
    loads = [(0, process) for process in range(processes)]
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, process = loads[0]
        split[process].append(item)
        heapq.heapreplace(loads, (load + costs[item], process))
    return [sorted(items) for items in split]


def touch(weights: Sequence[Tensor], zeros: Sequence[bool]) -> Tensor:
    """A scalar 0 that depends on weights without changing their gradients, for those another process computes.

    DDP waits for a gradient of every parameter, of any value: none at all, which costs nothing, will do. FSDP reduces
    what has a gradient, and every process must have the same.

    Args:
        weights (sequence of `torch.Tensor`): at least one.
        zeros (sequence of `bool`): for each weight, whether it gets a gradient of zeros rather than none.
    """
    return _Touch.apply(zeros, *weights)


class _Touch(Function):
    @staticmethod
    def forward(ctx, zeros: Sequence[bool], *weights: Tensor) -> Tensor:
        ctx.zeros = zeros
        ctx.like = [(weight.shape, weight.dtype, weight.device) for weight in weights]
        return weights[0].new_zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        made = zip(ctx.zeros, ctx.like, strict=True)
        return None, *(
            grad.new_zeros((), dtype=dtype, device=device).expand(shape) if zero else None
            for zero, (shape, dtype, device) in made
        )
