"""Batch norm over the batch of all processes, on CPUs and GPUs."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm as CudaSyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from .collectives import world_size
from .gather import pooled_moments


class _Normalization(torch.autograd.Function):
    """Compute (x − mean)/√(variance + ε)·weight + bias, with the gradient through statistics of all processes' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        epsilon: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + epsilon), count)
        weight, bias = (None if p is None else p.to(mean.dtype) for p in (weight, bias))
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        others = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        normalized = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        gradient = gradient.to(mean.dtype)
        along_bias, along_weight = gradient.sum(others), (gradient * normalized).sum(others)
        sums = torch.cat([along_bias, along_weight])
        dist.all_reduce(sums)
        mean_bias, mean_weight = (sums / count).view(2, *shape)
        factor = scale if weight is None else scale * weight.to(mean.dtype)
        gradient_x = (gradient - mean_bias - normalized * mean_weight) * factor.view(shape)
        if weight is None:
            return gradient_x.to(x.dtype), None, None, None, None, None, None
        return (
            gradient_x.to(x.dtype),
            along_weight.to(weight.dtype),
            along_bias.to(weight.dtype),
            None,
            None,
            None,
            None,
        )


class _Synchronized(_BatchNorm):
    """Mixin that adds synchronized statistics to a batch norm class, which must follow it among the base classes."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of shape `(B, C, …)`, normalized with the statistics of all processes in train mode."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        tracked = self.track_running_stats
        batches = self.num_batches_tracked if tracked else None
        if batches is not None:
            batches.add_(1)
        momentum = self.momentum
        if momentum is None:  # the running statistics are then the mean over all batches so far
            momentum = 1.0 / int(batches) if batches is not None else 0.0
        running_mean, running_var = (self.running_mean, self.running_var) if tracked else (None, None)
        if x.is_cuda:
            group = dist.group.WORLD
            size = dist.get_world_size(group)
            y = CudaSyncBatchNorm.apply(
                x, self.weight, self.bias, running_mean, running_var, self.eps, momentum, group, size
            )
        else:
            y = self._normalize(x, running_mean, running_var, momentum)
        return self._finish(y)

    def _normalize(self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float) -> Tensor:
        with torch.no_grad():
            precise = x if x.dtype == torch.float64 else x.float()
            variance, mean = torch.var_mean(precise, [0, *range(2, x.ndim)], correction=0)
        mean, variance, count = pooled_moments(mean, variance, x.numel() // x.shape[1])
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
        return _Normalization.apply(x, self.weight, self.bias, mean, variance, count, self.eps)

    def _finish(self, y: Tensor) -> Tensor:
        return y


class SyncBatchNorm1d(_Synchronized, nn.BatchNorm1d):
    """Apply `nn.BatchNorm1d` with the statistics of all processes."""


class SyncBatchNorm2d(_Synchronized, nn.BatchNorm2d):
    """Apply `nn.BatchNorm2d` with the statistics of all processes."""


class SyncBatchNorm3d(_Synchronized, nn.BatchNorm3d):
    """Apply `nn.BatchNorm3d` with the statistics of all processes."""


class SyncBatchNormAct2d(_Synchronized, BatchNormAct2d):
    """Apply timm's batch norm with activation, with the statistics of all processes."""

    def _finish(self, y: Tensor) -> Tensor:
        return self.act(self.drop(y))


_SYNCHRONIZED: dict[type[_BatchNorm], type[_Synchronized]] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
    nn.BatchNorm3d: SyncBatchNorm3d,
    BatchNormAct2d: SyncBatchNormAct2d,
}


def synchronize_batchnorm(model: nn.Module) -> nn.Module:
    """Make every batch norm of a model use the batch of all processes in train mode, in place.

    A batch that is divided among processes is then normalized, forward and backward, as one process would normalize the
    whole batch; the running statistics are those of the whole batch and equal on all processes. In eval mode and on a
    single process the layers compute the same as before. Parameters, buffers, their names and hooks do not change, so
    that the function may be called before or after the optimizer is built, and checkpoints fit either way.
    `nn.SyncBatchNorm` computes the same and is used on GPUs; it does not support CPUs, and its conversion loses the
    activation in timm's `BatchNormAct2d`.

    Args:
        model (`nn.Module`): Changed in place; layers that are already synchronized do not change.

    Returns:
        `nn.Module`: The same model.

    Raises:
        ValueError: If the model has a kind of batch norm that cannot be synchronized.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or is_synchronized(module):
            continue
        if type(module) not in _SYNCHRONIZED:
            raise ValueError(
                f"sync_batchnorm: {name} is a {type(module).__name__}, which cannot be synchronized over processes: "
                "pass --sync_batchnorm false, or choose another backbone"
            )
        module.__class__ = _SYNCHRONIZED[type(module)]
    return model


def is_synchronized(module: nn.Module) -> bool:
    """Return whether a layer is a batch norm over the batch of all processes, this package's or torch's."""
    return isinstance(module, _Synchronized | nn.SyncBatchNorm)
