"""A view as lightly and solo-learn write it, with torchvision's transforms, one image at a time."""

import math
import random
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms import v2

from hf_orthossl.data import ViewSpec


def pil_view(spec: ViewSpec, size: int, mean: Sequence[float], std: Sequence[float]) -> Callable:
    """From a PIL image to a normalized tensor `(3, size, size)`, through 8-bit images."""
    low, high = spec.blur_sigma

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(low, high)))

    return transforms.Compose(
        [
            *_shared(transforms, spec, size),
            transforms.RandomApply([blur], spec.blur),
            transforms.RandomSolarize(round(256 * spec.solarize_threshold), spec.solarize),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def tensor_view(spec: ViewSpec, size: int, mean: Sequence[float], std: Sequence[float]) -> Callable:
    """From a uint8 tensor `(3, H, W)` to a normalized one `(3, size, size)`, with torchvision's newer transforms."""
    kernel = 2 * math.ceil(3 * spec.blur_sigma[1]) + 1
    return v2.Compose(
        [
            *_shared(v2, spec, size),
            v2.RandomApply([v2.GaussianBlur(kernel, spec.blur_sigma)], spec.blur),
            v2.RandomSolarize(round(256 * spec.solarize_threshold), spec.solarize),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def _shared(namespace, spec: ViewSpec, size: int) -> list[Callable]:
    """Return the functions that both namespaces have under the same names."""
    mode = transforms.InterpolationMode(spec.interpolation)
    jitter = namespace.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)
    return [
        namespace.RandomResizedCrop(size, spec.scale, spec.ratio, interpolation=mode, antialias=True),
        namespace.RandomHorizontalFlip(spec.flip),
        namespace.RandomApply([jitter], spec.jitter),
        namespace.RandomGrayscale(spec.grayscale),
    ]
