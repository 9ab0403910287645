"""In which memory order a backbone takes its images."""

import torch
from torch import nn

# Input channels from which oneDNN's backward pass of a strided 1×1 convolution stays within its memory: its block on
# AVX-512, the widest (https://github.com/uxlfoundation/oneDNN/issues/6035, seen here with torch 2.15).
SAFE_CHANNELS = 16


def memory_formats(backbone: nn.Module) -> dict[str, torch.memory_format]:
    """The memory format of the images by type of device; contiguous where a device is not named.

    Feature maps are kept channels-last where a backbone has more than a patch embedding of 2-dimensional convolutions:
    convolutions then need no reordering, and batch norm and activations go along memory. Weights stay as they are, as
    convolutions reorder them anyway, and with them checkpoints, shards and the penalty's matrices.
    """
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    if len(convolutions) < 2:
        return {}
    formats = {"cuda": torch.channels_last}
    if not any(_overflows(convolution) for convolution in convolutions):
        formats["cpu"] = torch.channels_last
    return formats


def _overflows(convolution: nn.Conv2d) -> bool:
    """Whether the gradient of these weights, channels-last on the CPU, may be written beyond its memory."""
    pointwise = set(convolution.kernel_size) == {1} and max(convolution.stride) > 1
    return pointwise and convolution.in_channels // convolution.groups < SAFE_CHANNELS
