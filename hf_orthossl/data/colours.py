"""Changes of colour, in place, every image of a batch by an amount of its own: torchvision's, as planes of pixels."""

import torch
from torch import Tensor

# Of ITU-R 601, as Pillow has them; torchvision's end in 0.2989 and 0.1140.
_LUMA = (0.299, 0.587, 0.114)


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
