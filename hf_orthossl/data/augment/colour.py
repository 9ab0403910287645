"""What is done to the colours and sharpness of a batch of views, every image with its own numbers."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .filters import blur
from .recipes import ViewSpec

# Of ITU-R 601, as Pillow has them; torchvision's end in 0.2989 and 0.1140.
_LUMA = (0.299, 0.587, 0.114)


# Uniform numbers per image: jitter's gate, 4 amounts and 4 sort keys; gates of grayscale, blur and solarize; σ.
DRAWS = 13


class Step(NamedTuple):
    """One operation, on some images of a batch.

    Args:
        operation (`Callable`): From images and, where there are any, values to images; it may overwrite its own.
        gates (`list[bool]`): Which images, known without waiting for the device.
        values (`Tensor` of shape `(B,)`, *optional*): One number per image.
    """

    operation: Callable[..., Tensor]
    gates: list[bool]
    values: Tensor | None = None

    def __call__(self, images: Tensor, first: int = 0) -> Tensor:
        """Does it to images that stand in the batch from place `first` on; they may be overwritten."""
        part = slice(first, first + len(images))
        rows = [row for row, gate in enumerate(self.gates[part]) if gate]
        if not rows:
            return images
        values = [] if self.values is None else [self.values[part]]
        if len(rows) == len(images):
            return self.operation(images, *values)
        chosen = torch.tensor(rows).to(images.device, non_blocking=True)
        changed = self.operation(images.index_select(0, chosen), *(value.index_select(0, chosen) for value in values))
        return images.index_copy_(0, chosen, changed)


def photometric_steps(uniform: Tensor, spec: ViewSpec, device: torch.device) -> list[Step]:
    """Jitter, grayscale, blur and solarization, in this order (that of BYOL and of solo-learn), to be called in turn.

    Args:
        uniform (`Tensor` of shape `(B, 13)`): Independent uniform numbers in [0, 1), on the CPU.
        spec ([`ViewSpec`]): Probabilities and strengths.
        device (`torch.device`): Where the images are, RGB in [0, 1].
    """
    low, high = spec.blur_sigma
    sigma = (low + (high - low) * uniform[:, 12]).to(device, non_blocking=True)
    others = (
        (grayscale, uniform[:, 9] < spec.grayscale, None),
        (lambda images, values: blur(images, values, high), uniform[:, 10] < spec.blur, sigma),
        (lambda images: solarize(images, spec.solarize_threshold), uniform[:, 11] < spec.solarize, None),
    )
    steps = _jitter(uniform[:, 0] < spec.jitter, uniform[:, 1:5], uniform[:, 5:9], spec, device)
    return steps + [Step(operation, gates.tolist(), values) for operation, gates, values in others]


def _jitter(gates: Tensor, amounts: Tensor, keys: Tensor, spec: ViewSpec, device: torch.device) -> list[Step]:
    """Brightness, contrast, saturation and hue, in an order of its own for every image, as torchvision's."""
    # With the ranges of their values.
    operations = (
        (brighten, max(0.0, 1 - spec.brightness), 1 + spec.brightness),
        (contrast, max(0.0, 1 - spec.contrast), 1 + spec.contrast),
        (saturate, max(0.0, 1 - spec.saturation), 1 + spec.saturation),
        (turn_hue, -spec.hue, spec.hue),
    )
    order = keys.argsort(1)
    values = [
        (low + (high - low) * amounts[:, number]).to(device, non_blocking=True)
        for number, (_, low, high) in enumerate(operations)
    ]
    return [
        Step(operation, (gates & (order[:, turn] == number)).tolist(), values[number])
        for turn in range(4)
        for number, (operation, low, high) in enumerate(operations)
        if low < high
    ]


def brighten(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies images `(B, 3, H, W)` in [0, 1] by factors `(B,)`, at least 0; returns them, overwritten."""
    return images.mul_(factor.view(-1, 1, 1, 1)).clamp_(max=1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Moves images `(B, 3, H, W)` away from their mean gray by factors `(B,)`; returns them, overwritten."""
    return _away_from(luma(images.mean((2, 3), keepdim=True)), images, factor)


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Moves pixels of images `(B, 3, H, W)` away from their own gray by factors `(B,)`; returns them, overwritten."""
    return _away_from(luma(images), images, factor)


def grayscale(images: Tensor) -> Tensor:
    """Drops the colour of images `(B, 3, H, W)`; returns them, overwritten."""
    return images.copy_(luma(images))


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Inverts what is at least `threshold` in images `(B, 3, H, W)` in [0, 1]; returns them, overwritten."""
    return torch.where(images < threshold, images, 1 - images, out=images)


def turn_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns every image's hues by its own share of the colour circle: to HSV and back in closed form.

    Args:
        images (`Tensor` of shape `(B, 3, H, W)`): RGB in [0, 1]; overwritten.
        shift (`Tensor` of shape `(B,)`): In [−0.5, 0.5].
    """
    red, green, blue = images.unbind(1)
    value, lowest = images.amax(1), images.amin(1)
    chroma = value - lowest
    # In sixths of a turn from red, so far times the chroma. Masks are numbers: on the CPU, `lerp` with them takes a
    # quarter of the time of `where`, and picks one of its sides exactly.
    hue = (red - green).add_(chroma, alpha=4)
    hue.lerp_((blue - red).add_(chroma, alpha=2), _mask(green, value)).lerp_(green - blue, _mask(red, value))
    hue.div_(chroma.clamp_min(torch.finfo(hue.dtype).tiny)).add_(6 * shift.view(-1, 1, 1))
    hue.sub_((hue / 6).floor_(), alpha=6)
    # With c its distance from a channel's corner, cut off at [1, 2]: value − chroma · (c − 1). From red's opposite, as
    # red itself lies at both ends of the scale: lowest + chroma · (c − 1).
    low, high = lowest.sub_(chroma), value.add_(chroma)
    for channel, corner, start, sign in ((red, 3, low, 1), (green, 2, high, -1), (blue, 4, high, -1)):
        distance = torch.sub(hue, corner, out=channel).abs_().clamp_(1, 2)
        torch.addcmul(start, chroma, distance, value=sign, out=channel)
    return images


def luma(images: Tensor) -> Tensor:
    """The gray `(B, 1, H, W)` of images `(B, 3, H, W)`."""
    red, green, blue = images.split(1, 1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _away_from(gray: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    factor = factor.view(-1, 1, 1, 1)
    return images.mul_(factor).add_(gray.mul_(1 - factor)).clamp_(0, 1)


def _mask(channel: Tensor, value: Tensor) -> Tensor:
    return torch.eq(channel, value, out=torch.empty_like(value))
