"""Gaussian blur of a batch, every image with a width of its own."""

import math

import torch
from torch import Tensor

from .separable import Taps, separable


def blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian blur with a σ per image, mirrored at the edges: torchvision's `gaussian_blur`.

    Args:
        images (`Tensor` of shape `(B, 3, H, W)`): RGB.
        sigma (`Tensor` of shape `(B,)`): In pixels.
        largest (`float`): Upper end of the σ in this batch; the kernel reaches three times as far, where it has
            0.3 % of its weight left, or as far as the image does.
    """
    radius = min(math.ceil(3 * largest), min(images.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.softmax(-0.5 * (offsets / sigma.view(-1, 1)).square(), 1)
    columns, rows = (_taps(kernels, offsets, side) for side in images.shape[-2:])
    return separable(images, columns, rows)


def _taps(kernels: Tensor, offsets: Tensor, side: int) -> Taps:
    sources = (torch.arange(side, device=offsets.device).view(-1, 1) + offsets).abs_()
    sources = torch.minimum(sources, 2 * (side - 1) - sources)
    shape = (len(kernels), side, len(offsets))
    return Taps(sources.expand(shape), kernels.unsqueeze(1).expand(shape))
