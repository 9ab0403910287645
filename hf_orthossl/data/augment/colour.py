"""Change colours and sharpness of a batch of views, by different random amounts per image, as torchvision does."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .filters import blur
from .recipes import ViewSpec

# Luma weights of ITU-R 601, as in Pillow; torchvision rounds the first and last to 0.2989 and 0.1140.
_LUMA = (0.299, 0.587, 0.114)


# Uniform random numbers per image: the gate of jitter, its 4 amounts and 4 sort keys; the gates of grayscale, blur and
# solarize; σ.
DRAWS = 13


class Step(NamedTuple):
    """An operation on some images of a batch.

    Args:
        operation (`Callable`): Maps images and, if there are any, values to images; it may overwrite the images.
        gates (`list[bool]`): Whether to change each image; on the host, so that nothing waits for the device.
        values (`Tensor` of shape `(B, …)`, *optional*): The amount of the change of each image.
    """

    operation: Callable[..., Tensor]
    gates: list[bool]
    values: Tensor | None = None

    def __call__(self, images: Tensor, first: int = 0) -> Tensor:
        """Apply the operation to the images of the batch from position `first` on, which may be overwritten."""
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


def photometric_steps(
    uniform: Tensor, spec: ViewSpec, device: torch.device, amounts: Tensor | None = None
) -> list[Step]:
    """Return jitter, grayscale, blur and solarization, in the order of BYOL and solo-learn, as a list of steps.

    For images that are no RGB, `amounts` is given and `spec` comes from [`~recipes.for_channels`], so that saturation,
    hue and grayscale are off. Jitter is then brightness and contrast of each channel c by itself, in a random order per
    image: `x_c ← min(f_c · x_c, 1)` with `f_c` from [max(0, 1 − b), 1 + b], and
    `x_c ← clamp(g_c · x_c + (1 − g_c) · mean(x_c), 0, 1)` with `g_c` from [max(0, 1 − k), 1 + k], for brightness b and
    contrast k. For one channel these are the brightness and contrast of a grey image.

    Args:
        uniform (`Tensor` of shape `(B, 13)`): Independent uniform random numbers in [0, 1), on the CPU.
        spec ([`ViewSpec`]): The probabilities and strengths.
        device (`torch.device`): The device of the images, which are in [0, 1], and RGB without `amounts`.
        amounts (`Tensor` of shape `(B, 2, C)`, *optional*): Further such numbers, the amounts of brightness and of
            contrast of each channel.

    Returns:
        `list[Step]`: The operations.
    """
    low, high = spec.blur_sigma
    sigma = (low + (high - low) * uniform[:, 12]).to(device, non_blocking=True)
    others: tuple[tuple[Callable[..., Tensor], Tensor, Tensor | None], ...] = (
        (grayscale, uniform[:, 9] < spec.grayscale, None),
        (lambda images, values: blur(images, values, high), uniform[:, 10] < spec.blur, sigma),
        (lambda images: solarize(images, spec.solarize_threshold), uniform[:, 11] < spec.solarize, None),
    )
    gates = uniform[:, 0] < spec.jitter
    if amounts is None:
        steps = _jitter(gates, uniform[:, 1:5], uniform[:, 5:9], spec, device)
    else:
        steps = _channel_jitter(gates, amounts, uniform[:, 5:7], spec, device)
    return steps + [Step(operation, gates.tolist(), values) for operation, gates, values in others]


def _jitter(gates: Tensor, amounts: Tensor, keys: Tensor, spec: ViewSpec, device: torch.device) -> list[Step]:
    """Return brightness, contrast, saturation and hue, in a random order for each image, as in torchvision."""
    # Each operation with the range of its values.
    operations: tuple[tuple[Callable[..., Tensor], float, float], ...] = (
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


def _channel_jitter(gates: Tensor, amounts: Tensor, keys: Tensor, spec: ViewSpec, device: torch.device) -> list[Step]:
    """Return brightness and contrast of each channel by itself, in a random order for each image."""
    operations = ((_brighten_channels, spec.brightness), (_contrast_channels, spec.contrast))
    order = keys.argsort(1)
    values = []
    for number, (_, strength) in enumerate(operations):
        low, high = max(0.0, 1 - strength), 1 + strength
        values.append((low + (high - low) * amounts[:, number]).to(device, non_blocking=True))
    return [
        Step(operation, (gates & (order[:, turn] == number)).tolist(), values[number])
        for turn in range(2)
        for number, (operation, strength) in enumerate(operations)
        if strength > 0
    ]


def _brighten_channels(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the channels of images `(B, C, H, W)` in [0, 1] by factors `(B, C)` of at least 0, in place."""
    return images.mul_(factors[..., None, None]).clamp_(max=1)


def _contrast_channels(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the contrast of each channel of images `(B, C, H, W)` around its mean by factors `(B, C)`, in place."""
    factors, means = factors[..., None, None], images.mean((2, 3), keepdim=True)
    return images.mul_(factors).add_(means.mul_(1 - factors)).clamp_(0, 1)


def brighten(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply images `(B, 3, H, W)` in [0, 1] by factors `(B,)` of at least 0, in place."""
    return images.mul_(factor.view(-1, 1, 1, 1)).clamp_(max=1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the contrast of images `(B, 3, H, W)` around their mean gray by factors `(B,)`, in place."""
    return _away_from(luma(images.mean((2, 3), keepdim=True)), images, factor)


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the saturation of images `(B, 3, H, W)` around the gray of each pixel by factors `(B,)`, in place."""
    return _away_from(luma(images), images, factor)


def grayscale(images: Tensor) -> Tensor:
    """Remove the colour of images `(B, 3, H, W)`, in place."""
    return images.copy_(luma(images))


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert values of at least `threshold` in images `(B, 3, H, W)` in [0, 1], in place."""
    return torch.where(images < threshold, images, 1 - images, out=images)


def turn_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shift the hues of each image by a share of the colour circle, in place: to HSV and back in closed form.

    Args:
        images (`Tensor` of shape `(B, 3, H, W)`): RGB in [0, 1]; overwritten.
        shift (`Tensor` of shape `(B,)`): The share of the colour circle, in [−0.5, 0.5].

    Returns:
        `Tensor` of shape `(B, 3, H, W)`: `images`.
    """
    red, green, blue = images.unbind(1)
    value, lowest = images.amax(1), images.amin(1)
    chroma = value - lowest
    # The hue in sixths of a turn from red, still multiplied by the chroma. Masks are numbers, because `lerp` with 0 and
    # 1 selects one of its sides exactly, in a quarter of the time of `where` on the CPU.
    hue = (red - green).add_(chroma, alpha=4)
    hue.lerp_((blue - red).add_(chroma, alpha=2), _mask(green, value)).lerp_(green - blue, _mask(red, value))
    hue.div_(chroma.clamp_min(torch.finfo(hue.dtype).tiny)).add_(6 * shift.view(-1, 1, 1))
    hue.sub_((hue / 6).floor_(), alpha=6)
    # With c the distance of the hue from a channel's corner, clamped to [1, 2], green and blue are value − chroma ·
    # (c − 1). Red lies at both ends of the scale, so for red c is the distance from the opposite corner, and its value
    # is lowest + chroma · (c − 1).
    low, high = lowest.sub_(chroma), value.add_(chroma)
    for channel, corner, start, sign in ((red, 3, low, 1), (green, 2, high, -1), (blue, 4, high, -1)):
        distance = torch.sub(hue, corner, out=channel).abs_().clamp_(1, 2)
        torch.addcmul(start, chroma, distance, value=sign, out=channel)
    return images


def luma(images: Tensor) -> Tensor:
    """Return the gray `(B, 1, H, W)` of images `(B, 3, H, W)`."""
    red, green, blue = images.split(1, 1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _away_from(gray: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    factor = factor.view(-1, 1, 1, 1)
    return images.mul_(factor).add_(gray.mul_(1 - factor)).clamp_(0, 1)


def _mask(channel: Tensor, value: Tensor) -> Tensor:
    return torch.eq(channel, value, out=torch.empty_like(value))
