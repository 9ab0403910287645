"""Read a Python list of images of any kind as a torch data set with the items of [`ImageDataset`]."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..messages import describe
from .band_rule import BandRule
from .bands import Layout
from .columns import SAMPLED
from .dataset import fit
from .decoding import decode_channels, to_tensor
from .listing import readable_extensions
from .opening import UnreadableImage, image_name
from .pixels import PixelRule
from .unreadable import Unreadable

_KINDS = "Pillow images, paths, bytes, arrays or tensors"


def listed_images(images: Any) -> list[Any] | None:
    """Return the images that an object holds, or `None` if it is no list of images and may be a data set.

    Args:
        images (`Any`): A list or tuple of images; one image; the path of an image file; or an array or tensor of one
            image, `(H, W)`, `(H, W, C)` or `(C, H, W)`, or of several, with one dimension more.

    Raises:
        ValueError: The list is empty, or an array has another number of dimensions.
        TypeError: An item of the list is no image.
    """
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim not in (2, 3, 4):
            raise ValueError(
                f"images is an array of shape {tuple(images.shape)}: it must be one image (H, W), (H, W, C) or "
                "(C, H, W), or several with one dimension more"
            )
        images = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, Image.Image | bytes):
        images = [images]
    elif isinstance(images, str | os.PathLike):
        path = Path(images).expanduser()
        if path.suffix.lower() not in readable_extensions(arrays=True) or not path.is_file():
            return None
        images = [path]
    if not isinstance(images, list | tuple):
        return None
    if not images:
        raise ValueError(f"images is an empty list: pass one or more {_KINDS}, or a folder")
    for number, image in enumerate(images):
        if not isinstance(image, Image.Image | str | os.PathLike | bytes | np.ndarray | Tensor):
            raise TypeError(f"images[{number}] is {describe(image)}: pass {_KINDS}, or a folder by itself")
        if isinstance(image, str | os.PathLike) and os.path.isdir(image):
            raise ValueError(f"images[{number}] is the folder {os.fspath(image)}: pass a folder by itself, without []")
    return list(images)


class ImageList(Dataset):
    """Images given as Python objects, each as a uint8 tensor `(C, S, S)`: resized, then cropped at its centre.

    An image that cannot be read is omitted, as by an [`ImageDataset`] with `unreadable="omit"`.

    Args:
        images (`list`): The images, from [`listed_images`]. Floating-point arrays are on the scale [0, 1].
        image_size (`int`): The side S in pixels.
        channels (`int`, defaults to 3): The number of channels C; with 3, grey images become RGB.
        pixel_range (`Sequence[float]`, *optional*): The values of black and white of images above 8 bits. A few images
            do not tell them, and two calls must give the same image the same values.

    Raises:
        ValueError: A floating-point array has values outside of [0, 1]; images have more than 8 bits, and there is no
            `pixel_range`; or they have other channels.
    """

    def __init__(
        self, images: list[Any], image_size: int, channels: int = 3, pixel_range: Sequence[float] | None = None
    ):
        self.images, self.image_size, self.channels = images, image_size, channels
        self._scales_floats = pixel_range is None
        if self._scales_floats:
            for number, image in enumerate(images):
                _check_scale(number, image)
        rows = np.linspace(0, len(images) - 1, min(SAMPLED, len(images))).round().astype(int)
        sampled = [self._value(row) for row in rows]
        self._pixels: PixelRule | BandRule
        if channels in (1, 3):
            one = 1 if channels == 1 else None
            self._pixels = PixelRule.of(sampled, title="images", channels=one, pixel_range=pixel_range)
        else:
            self._pixels = BandRule.of(sampled, Layout(channels), title="images", pixel_range=pixel_range)
        if pixel_range is None and self._pixels.low is not None:
            raise ValueError(
                f"images have more than 8 bits ({self._pixels.describe()}): pass pixel_range=(low, high), the values "
                "of black and white of the encoder's training images, as its card says"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        item: dict[str, Any] = {"labels": -1, "index": row, "unreadable": []}
        side = self.image_size
        try:
            image = decode_channels(self._value(row), self._pixels)
        except UnreadableImage as error:
            unreadable = Unreadable(row, f"images[{row}] ({image_name(self.images[row])})", str(error))
            blank = torch.zeros(self.channels, side, side, dtype=torch.uint8)
            return item | {"unreadable": [unreadable], "pixel_values": blank}
        return item | {"pixel_values": to_tensor(fit(image, side, side))}

    def _value(self, row: int) -> Any:
        """Return an image in a form that is decoded, with the values of floating-point arrays as 8 bits."""
        image = self.images[row]
        if isinstance(image, Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        if isinstance(image, np.ndarray) and self._scales_floats and np.issubdtype(image.dtype, np.floating):
            return np.rint(image * 255).astype(np.uint8)
        return Path(image).expanduser() if isinstance(image, str | os.PathLike) else image


def _check_scale(number: int, image: Any) -> None:
    """Refuse an array of floats that are not on the scale [0, 1], as normalized images are not."""
    floats = isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating)
    if not (floats or (isinstance(image, Tensor) and image.is_floating_point())) or not len(image):
        return
    least, most = float(image.min()), float(image.max())
    if not (least >= 0 and most <= 1):
        raise ValueError(
            f"images[{number}] has floats from {least:.3g} to {most:.3g}: they must be in [0, 1], before any "
            "normalization, which embed does itself; or pass pixel_range=(low, high), the values of black and white"
        )
