"""Batches that span processes, with the gradient flowing back to the process each row came from."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..processes import world_size


def gather(rows: Tensor) -> Tensor:
    """Rows `(B, d)` of all processes as `(P·B, d)`, in rank order, differentiable.

    A loss computed on the gathered batch by every process has, after the gradient average of data parallelism,
    exactly the gradient of one process holding the whole batch.
    """
    return _Gather.apply(rows) if world_size() > 1 else rows


def gather_step(micro_batches: list[Tensor]) -> Tensor:
    """Rows of a whole optimizer step, in the order in which one process without accumulation has them.

    Micro-batch j of process p holds batch j·P + p of the step, so that micro-batches come before processes.

    Args:
        micro_batches (`list[Tensor]`): This process's rows `(B, d)` of each micro-batch.
    """
    return torch.cat([gather(rows) for rows in micro_batches])


@torch.no_grad()
def mean_over_processes(value: Tensor) -> Tensor:
    """Average of a tensor over processes, without gradient."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value


@torch.no_grad()
def pooled_moments(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the numbers of all processes, from those of each, without gradient.

    Deviations from each process's own mean are pooled, not squares: nothing cancels where the mean is large (Chan,
    Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979, eq. 2.1).

    Args:
        mean, variance (`Tensor` of shape `(d,)`): Of this process's numbers, the variance without correction.
        count (`int`): How many numbers each is made of, at least 1; it may differ between processes.

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: Mean, variance without correction, and count `()` over all processes.
    """
    counts = mean.new_full((1,), count)
    if world_size() == 1:
        return mean, variance, counts[0]
    everyone = gather(torch.cat([mean, variance, counts])[None])
    means, variances, counts = everyone.split([len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(dim=0) / total
    variance = (counts * (variances + (means - mean).square())).sum(dim=0) / total
    return mean, variance, total


class _Gather(torch.autograd.Function):
    """Where a process's rows go to every process, their gradient is the sum of what all of these send back."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(world_size() * rows.shape[0], *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(gradient.shape[0] // world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own
