"""Decode images of any format, mode and orientation to 8-bit RGB."""

import functools
import io
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

# The limit at which Pillow raises an error; repeated because other libraries disable Pillow's check.
MAX_PIXELS = 178_956_970

# Formats that a data set may contain; excludes those that Pillow passes to another program (EPS to Ghostscript).
_FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "PPM"),
    *("JPEG2000", "ICO", "TGA", "PCX", "SGI"),
)
_EXIF_ORIENTATION = 0x0112


class UnreadableImage(OSError):
    """Raised for an image that cannot be decoded, with the reason in one line."""


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def decode_image(value: Any) -> Image.Image:
    """Decode an image of any kind to upright 8-bit RGB.

    Transparency is composited on white, 16-bit and floating-point values are scaled (never clipped) to 8 bits, the
    EXIF rotation is applied, and the first frame of an animation is used.

    Args:
        value (`Any`): Encoded `bytes`, a path, a `PIL.Image.Image`, an array or tensor of shape `(H, W)`, `(H, W, C)`
            or `(C, H, W)` with 1 to 4 channels, or the `{"bytes", "path"}` mapping of an undecoded `datasets.Image`.

    Returns:
        `PIL.Image.Image`: The image in mode RGB.

    Raises:
        UnreadableImage: The image is damaged or truncated, is not an image, or has more than `MAX_PIXELS` pixels.
    """
    try:
        image = _open(value)
        image.load()
        return _to_rgb(_upright(image))
    except UnreadableImage:
        raise
    # For arbitrary bytes decoders raise arbitrary exceptions (struct.error, SyntaxError, OverflowError …).
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error


def image_size(value: Any) -> tuple[int, int]:
    """Return the height and width in pixels of an upright image, from its header alone if there is one.

    Args:
        value (`Any`): An image in any form that [`decode_image`] accepts.

    Raises:
        UnreadableImage: The header cannot be read.
    """
    try:
        image = _open(value)
        width, height = image.size
        sideways = image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error
    return (width, height) if sideways else (height, width)


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as a uint8 tensor of shape `(3, H, W)`."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _open(value: Any) -> Image.Image:
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        value = data if data is not None else path
    if value is None:
        raise UnreadableImage("the image is missing (null)")
    if isinstance(value, Image.Image):
        image = value
    elif isinstance(value, bytes | bytearray | memoryview):
        image = Image.open(io.BytesIO(value), formats=_formats())
    elif isinstance(value, str | Path):
        if "://" in str(value):  # the files of a stream from the Hub are URLs
            with fsspec.open(str(value), "rb") as file:
                value = io.BytesIO(file.read())
        image = Image.open(value, formats=_formats())
    else:
        image = _from_array(np.asarray(value))
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width}×{image.height} pixels are more than {MAX_PIXELS:,}")
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] > 4 and array.shape[0] <= 4:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[-1] > 4):
        raise UnreadableImage(
            f"an array of shape {array.shape} is not an image: expected (H, W), (H, W, C) or (C, H, W)"
        )
    return Image.fromarray(_to_uint8(array))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels may be intact even if the EXIF data is damaged
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if image.mode == "LAB":
        to_srgb = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(image, *to_srgb, outputMode="RGB")
        assert converted is not None  # it is None only for a conversion in place
        return converted
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Scale values to [0, 255] from the range of their type or, if it has none, from their minimum and maximum."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    values = np.nan_to_num(array.astype(np.float64))
    low, high = values.min(), values.max()
    integer = np.issubdtype(array.dtype, np.integer)
    if integer and low >= 0 and high <= 65535:
        # A 16-bit type states its range; a wider one may hold 8-bit values (lists, converted images).
        sixteen = array.dtype.itemsize == 2 or high > 255
        values = values / 257 if sixteen else values
    elif not integer and low >= 0 and high <= 1:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) * (255 / max(high - low, np.finfo(np.float64).tiny))
    return np.round(values).astype(np.uint8)


def _reason(error: Exception) -> str:
    # Pillow's message contains the address of the buffer, which differs between runs.
    text = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", f"{type(error).__name__}: {error}")
    return " ".join(text.split())[:300]
