"""Gather batches over processes, with the gradient sent back to the process of each row."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .collectives import world_size


def all_gather(rows: Tensor) -> Tensor:
    """Return the rows `(B, D)` of all P processes as `(P·B, D)`, in rank order and with gradient.

    A loss computed on the gathered batch by every process has, after the gradient average of data parallelism,
    exactly the gradient of one process holding the whole batch.
    """
    return _Gather.apply(rows) if world_size() > 1 else rows


def all_gather_step(micro_batches: list[Tensor]) -> Tensor:
    """Return the rows of a whole optimizer step, in the order of a single process without accumulation.

    Micro-batch j of process p holds batch j·P + p of the step, so that micro-batches come before processes.

    Args:
        micro_batches (`list[Tensor]`): The rows `(B, D)` of this process, one tensor for each micro-batch.
    """
    return torch.cat([all_gather(rows) for rows in micro_batches])


@torch.no_grad()
def pooled_moments(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance over all processes, given those of each process, without gradient.

    Deviations from each process's own mean are pooled, not squares, so that no digits cancel when the mean is large.

    Source: Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979,
    eq. 2.1.

    Args:
        mean (`Tensor` of shape `(D,)`): The mean on this process.
        variance (`Tensor` of shape `(D,)`): The variance on this process, without correction.
        count (`int`): The number of values in each mean, at least 1; it may differ between processes.

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: Mean, variance without correction, and count `()` over all processes.
    """
    counts = mean.new_full((1,), count)
    if world_size() == 1:
        return mean, variance, counts[0]
    gathered = all_gather(torch.cat([mean, variance, counts])[None])
    means, variances, counts = gathered.split([len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(dim=0) / total
    variance = (counts * (variances + (means - mean).square())).sum(dim=0) / total
    return mean, variance, total


class _Gather(torch.autograd.Function):
    """Gather the rows of all processes; the gradient of a row is the sum of its gradients on all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(world_size() * rows.shape[0], *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(gradient.shape[0] // world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own
