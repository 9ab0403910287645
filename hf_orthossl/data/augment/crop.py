"""Random resized crops: choose boxes, and crop a single image during decoding or a whole batch on the device."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .filters import Taps, separable
from .recipes import ViewSpec

# Boxes tried before the fallback, as in Inception's crop and torchvision's RandomResizedCrop.
TRIES = 10
# Uniform random numbers per crop box.
DRAWS = 2 * TRIES + 2

_SUPPORT = {"bicubic": 2, "bilinear": 1}
_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def crop_boxes(uniform: Tensor, height: int, width: int, spec: ViewSpec) -> Tensor:
    """Return boxes of random area and aspect ratio, distributed as those of torchvision's `RandomResizedCrop`.

    Args:
        uniform (`Tensor` of shape `(B, 22)`): Independent uniform random numbers in [0, 1).
        height (`int`): The height of the images, in pixels.
        width (`int`): The width of the images, in pixels.
        spec ([`ViewSpec`]): Its `scale` (share of the area) and `ratio` (width divided by height) are used.

    Returns:
        `Tensor` of shape `(B, 4)`, int64: top, left, height and width in pixels.

    Source:
        Szegedy et al. 2015, arXiv 1409.4842.
    """
    uniform = uniform.double()
    area = height * width * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * uniform[:, :TRIES])
    low, high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    ratio = torch.exp(low + (high - low) * uniform[:, TRIES : 2 * TRIES])
    widths = (area * ratio).sqrt().round()
    heights = (area / ratio).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    # The fallback: the largest centred box of a permitted ratio.
    clamped = min(max(width / height, spec.ratio[0]), spec.ratio[1])
    full_height = min(height, round(width / clamped))
    full_width = min(width, round(height * clamped))
    any_fits = fits.any(1)
    box_height = torch.where(any_fits, heights.gather(1, first)[:, 0], full_height)
    box_width = torch.where(any_fits, widths.gather(1, first)[:, 0], full_width)
    top = torch.where(any_fits, (uniform[:, -2] * (height - box_height + 1)).floor(), (height - full_height) // 2)
    left = torch.where(any_fits, (uniform[:, -1] * (width - box_width + 1)).floor(), (width - full_width) // 2)
    return torch.stack([top, left, box_height, box_width], 1).long()


def random_resized_crop(
    image: Image.Image | np.ndarray, spec: ViewSpec, size: int, generator: np.random.Generator
) -> Image.Image | np.ndarray:
    """Crop a single image, of Pillow or of shape `(H, W, C)`, to a random box, and resize it to `size` × `size`."""
    uniform = torch.from_numpy(generator.random((1, DRAWS)))
    box = crop_boxes(uniform, *height_and_width(image), spec)[0].tolist()
    return resized(cut(image, *box), size, size, _PILLOW[spec.interpolation])


def height_and_width(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """Return the height and width of an image of Pillow or of shape `(H, W, C)`, in pixels."""
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def cut(image: Image.Image | np.ndarray, top: int, left: int, height: int, width: int) -> Image.Image | np.ndarray:
    """Return a box of an image of Pillow or of shape `(H, W, C)`."""
    if isinstance(image, np.ndarray):
        return image[top : top + height, left : left + width]
    return image.crop((left, top, left + width, top + height))


def resized(
    image: Image.Image | np.ndarray, height: int, width: int, resample: Image.Resampling
) -> Image.Image | np.ndarray:
    """Resize an image of Pillow or of shape `(H, W, C)`, uint8; Pillow resizes each channel by itself."""
    if isinstance(image, np.ndarray):
        channels = (Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, -1, 0))
        return np.stack([np.asarray(channel.resize((width, height), resample)) for channel in channels], axis=-1)
    return image.resize((width, height), resample)


def resize_taps(
    boxes: Tensor,
    shape: Sequence[int],
    size: int,
    interpolation: str,
    device: torch.device,
    mirrored: Tensor | None = None,
) -> tuple[Taps, Taps]:
    """Return the linear maps that resize every image's box to `size` × `size` pixels, with Pillow's antialiasing.

    Args:
        boxes (`Tensor` of shape `(B, 4)`): Boxes from [`crop_boxes`], on the CPU.
        shape (`Sequence[int]`): The height and width of the images, in pixels.
        size (`int`): The side of the result, in pixels.
        interpolation (`str`): "bicubic" or "bilinear".
        device (`torch.device`): The device of the images.
        mirrored (`Tensor` of shape `(B,)`, bool, *optional*): The images to flip horizontally; none by default.

    Returns:
        `tuple[Taps, Taps]`: The maps of the columns and of the rows of whole images.
    """
    support = _SUPPORT[interpolation]
    # As many as the largest possible box needs, so that a part of a batch gives bit for bit the sums of the whole.
    taps = torch.arange(math.ceil(2 * support * max(max(shape) / size, 1)), device=device)
    first, length = boxes.to(device, non_blocking=True).view(-1, 2, 2, 1, 1).unbind(1)
    place = torch.arange(size, device=device).view(-1, 1).repeat(len(boxes), 2, 1, 1)
    if mirrored is not None:
        rows = mirrored.to(device, non_blocking=True).view(-1, 1, 1)
        place[:, 1] = torch.where(rows, size - 1 - place[:, 1], place[:, 1])
    step = length.float() / size
    widening = step.clamp_min(1)  # antialiasing: the kernel widens with the step when an image shrinks
    centre = (place + 0.5) * step
    pixel = (centre - support * widening + 0.5).floor() + taps
    distance = ((pixel + 0.5 - centre) / widening).abs_()
    weights = _cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp_min_(0)
    weights *= (pixel >= 0) & (pixel < length)
    weights /= weights.sum(-1, keepdim=True)
    sources = torch.minimum(pixel.clamp_(min=0).long(), length - 1).add_(first)
    return Taps(sources[:, 0], weights[:, 0]), Taps(sources[:, 1], weights[:, 1])


def resized_crops(images: Tensor, boxes: Tensor, columns: Taps, rows: Taps) -> Tensor:
    """Crop every image of a batch to its box and resize it.

    Args:
        images (`Tensor` of shape `(B, C, H, W)`): uint8 or floating point. Only the region between the outermost edges
            of the boxes is read.
        boxes (`Tensor` of shape `(B, 4)`): Boxes from [`crop_boxes`], on the CPU.
        columns ([`Taps`]): The map of the columns, from [`resize_taps`].
        rows ([`Taps`]): The map of the rows, from [`resize_taps`].

    Returns:
        `Tensor` of shape `(B, C, size, size)`, float32. It is not clamped, although bicubic weights overshoot.
    """
    lines = boxes.tolist()
    top, left = min(line[0] for line in lines), min(line[1] for line in lines)
    bottom, right = max(line[0] + line[2] for line in lines), max(line[1] + line[3] for line in lines)
    inside = images[:, :, top:bottom, left:right].float()
    return separable(inside, Taps(columns.sources - top, columns.weights), Taps(rows.sources - left, rows.weights))


def _cubic(distance: Tensor) -> Tensor:
    # Keys' kernel with a = −1/2, as in Pillow (torch uses −3/4 for bicubic without antialiasing).
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
