"""Separable linear filters, different for each image of a batch: the basis of resizing, and Gaussian blur."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Taps(NamedTuple):
    """A linear map from lines of n pixels to lines of m pixels for each of B images.

    Every new pixel is a weighted sum of k old pixels.

    Args:
        sources (`Tensor` of shape `(B, m, k)`, int64): The positions of the old pixels, in [0, n).
        weights (`Tensor` of shape `(B, m, k)`, floating point): Their weights.
    """

    sources: Tensor
    weights: Tensor


def separable(images: Tensor, columns: Taps, rows: Taps) -> Tensor:
    """Map every column of every image, and then every row.

    On CUDA these are two batched products with matrices whose elements are mostly 0. On the CPU the few relevant pixels
    are summed, whole rows at a time, between two transpositions. This takes less than half the time of torch's
    antialiased `interpolate`, or of a convolution, at 224 pixels.

    Args:
        images (`Tensor` of shape `(B, C, H, W)`): Floating-point images.
        columns ([`Taps`]): The map of the columns, from H to h pixels.
        rows ([`Taps`]): The map of the rows, from W to w pixels.

    Returns:
        `Tensor` of shape `(B, C, h, w)`.
    """
    return _by_sums(images, columns, rows) if images.device.type == "cpu" else _by_products(images, columns, rows)


def blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each image with a Gaussian of a different σ, reflecting at the edges as torchvision's `gaussian_blur`.

    Args:
        images (`Tensor` of shape `(B, C, H, W)`): The images.
        sigma (`Tensor` of shape `(B,)`): The σ of each image, in pixels.
        largest (`float`): The upper bound of σ. The kernel is cut off at three times this value, which
            omits 0.3 % of its weight, or at the edge of the image.

    Returns:
        `Tensor` of shape `(B, C, H, W)`.
    """
    radius = min(math.ceil(3 * largest), min(images.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.softmax(-0.5 * (offsets / sigma.view(-1, 1)).square(), 1)
    columns, rows = (_blur_taps(kernels, offsets, side) for side in images.shape[-2:])
    return separable(images, columns, rows)


def _blur_taps(kernels: Tensor, offsets: Tensor, side: int) -> Taps:
    sources = (torch.arange(side, device=offsets.device).view(-1, 1) + offsets).abs_()
    sources = torch.minimum(sources, 2 * (side - 1) - sources)
    shape = (len(kernels), side, len(offsets))
    return Taps(sources.expand(shape), kernels.unsqueeze(1).expand(shape))


def _by_products(images: Tensor, columns: Taps, rows: Taps) -> Tensor:
    batch, channels, height, width = images.shape
    narrow = torch.bmm(images.reshape(batch, channels * height, width), _matrices(rows, width).mT)
    return torch.matmul(_matrices(columns, height).unsqueeze(1), narrow.view(batch, channels, height, -1))


def _matrices(taps: Taps, pixels: int) -> Tensor:
    zeros = taps.weights.new_zeros(*taps.weights.shape[:2], pixels)
    return zeros.scatter_add_(2, taps.sources, taps.weights)


def _by_sums(images: Tensor, columns: Taps, rows: Taps) -> Tensor:
    return _transpose(_sum_rows(_transpose(_sum_rows(images, columns)), rows))


def _sum_rows(images: Tensor, taps: Taps) -> Tensor:
    batch, channels, height, width = images.shape
    first = height * torch.arange(batch * channels).view(batch, channels, 1, 1)
    sources = (first + taps.sources.unsqueeze(1)).flatten(0, 2)
    weights = taps.weights.unsqueeze(1).expand(-1, channels, -1, -1).flatten(0, 2)
    sums = functional.embedding_bag(sources, images.reshape(-1, width), mode="sum", per_sample_weights=weights)
    return sums.view(batch, channels, -1, width)


def _transpose(images: Tensor) -> Tensor:
    """Return `images.mT.contiguous()`, computed by `channel_shuffle` of groups of pixels in a third of the time."""
    batch, channels, height, width = images.shape
    pixels = images.view(-1, 1, 1, height * width).permute(0, 3, 1, 2)
    return functional.channel_shuffle(pixels, height).reshape(batch, channels, width, height)
