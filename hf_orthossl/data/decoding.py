"""Decode images of any format, mode and orientation to 8 bits: RGB, or any number of channels."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from ..messages import warn_above_bars
from .band_rule import BandRule
from .bands import WrongChannels, open_bands
from .opening import (
    UnreadableImage,
    file_nodata,
    image_name,
    open_image,
    pages_as_channels,
    reason,
    select_page,
    wide_values,
)
from .pixels import PixelRule, are_equal

logger = logging.getLogger(__name__)

_EXIF_ORIENTATION = 0x0112
# How to turn an image upright, by its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Without a rule, 16-bit values are scaled from the range of their type.
_SIXTEEN_BITS = PixelRule(0.0, 65535.0)


def decode_image(
    value: Any, rule: PixelRule | None = None, *, page: int = 0, within: Sequence[str] | None = None
) -> Image.Image:
    """Decode an image of any kind to upright 8-bit RGB.

    Values above 8 bits are scaled by the rule of their data set, and clipped where they exceed its range, which is said
    once. Without a rule, unsigned 16-bit values are scaled from 0–65535, and wider integers, signed ones and
    floating-point values as if the image were the whole data set, see [`PixelRule`]. The transparency of PNG, GIF, WebP
    and Pillow images is composited on white, the EXIF rotation is applied, and other pages are ignored.

    Args:
        value (`Any`): Encoded `bytes`, a path, a `PIL.Image.Image`, an array or tensor of shape `(H, W)`, `(H, W, C)`
            or `(C, H, W)` with 1 or 3 channels, or the `{"bytes", "path"}` mapping of an undecoded `datasets.Image`.
        rule ([`PixelRule`], *optional*): The rule of the data set, [`ImageSource`]'s `pixels`.
        page (`int`, defaults to 0): The page of the file, unless the rule takes pages as channels.
        within (sequence of `str`, *optional*): The folders in which a file must lie, for data sets of others; those of
            [`ImageSource`]'s `within`.

    Returns:
        `PIL.Image.Image`: The image in mode RGB.

    Raises:
        UnreadableImage: The image is damaged or truncated, is not an image, has more than `MAX_PIXELS` pixels, or has
            channels other than grey and RGB, as TIFF files with near infrared have.
    """
    try:
        image = open_image(value, within)
        as_channels = rule is not None and rule.pages == "channels"
        image = pages_as_channels(image) if as_channels else select_page(image, page)
        return _to_rgb(image, rule, value)
    except UnreadableImage:
        raise
    # For arbitrary bytes decoders raise arbitrary exceptions (struct.error, SyntaxError, OverflowError …).
    except Exception as error:
        raise UnreadableImage(reason(error)) from error


def image_size(
    value: Any, rule: PixelRule | BandRule | None = None, *, page: int = 0, within: Sequence[str] | None = None
) -> tuple[int, int]:
    """Return the height and width in pixels of an upright image, from its header alone if there is one.

    Args:
        value (`Any`): An image in any form that [`decode_channels`] accepts.
        rule ([`PixelRule`] or [`BandRule`], *optional*): The rule of the data set.
        page (`int`, defaults to 0): The page of the file.
        within (sequence of `str`, *optional*): As for [`decode_image`].

    Raises:
        UnreadableImage: The header cannot be read.
    """
    try:
        if isinstance(rule, BandRule):
            bands = open_bands(value, rule.layout, page, within)
            return bands.height, bands.width
        image = select_page(open_image(value, within), page)
        if isinstance(image, np.ndarray):
            return image.shape[0], image.shape[1]
        width, height = image.size
        sideways = image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(reason(error)) from error
    return (width, height) if sideways else (height, width)


def decode_channels(
    value: Any, rule: PixelRule | BandRule, *, page: int = 0, within: Sequence[str] | None = None
) -> Image.Image | np.ndarray:
    """Decode an image of a data set to upright 8-bit values with the data set's number of channels.

    Args:
        value (`Any`): An image in any form that [`decode_image`] accepts, or with more channels.
        rule ([`PixelRule`] or [`BandRule`]): The rule of the data set, [`ImageSource`]'s `pixels`.
        page (`int`, defaults to 0): The page of the file, unless the rule takes pages as channels.
        within (sequence of `str`, *optional*): As for [`decode_image`].

    Returns:
        `PIL.Image.Image` or `np.ndarray`: An image in mode RGB for three channels, else an array `(H, W, C)`, uint8.

    Raises:
        UnreadableImage: As for [`decode_image`], or the image has another number of channels.
    """
    if isinstance(rule, PixelRule):
        image = decode_image(value, rule, page=page, within=within)
        if rule.channels != 1:
            return image
        colours = np.asarray(image)
        if not are_equal(colours):
            raise WrongChannels("an image of 3 different channels, where 1 is read (--channels)")
        return colours[..., :1]
    bands = open_bands(value, rule.layout, page, within)
    values = bands.read()
    said = rule.beyond(values, bands.nodata)
    if said and rule.says():
        warn_above_bars(logger, f"{image_name(value)} has {said}")
    return rule.to_bytes(values, bands.nodata)


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """Return an RGB image, or an array `(H, W, C)`, as a uint8 tensor of shape `(C, H, W)`."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image | np.ndarray, rule: PixelRule | None, value: Any) -> Image.Image:
    nodata = file_nodata(image)
    wide = wide_values(image)
    if wide is not None:
        values = wide.values
        if rule is None:
            rule = _SIXTEEN_BITS if values.dtype == np.uint16 else PixelRule.of([values])
        said = rule.beyond(values, nodata)
        if said and rule.says():
            warn_above_bars(logger, f"{image_name(value)} has {said}")
        pixels = rule.to_rgb(values, nodata)
        if wide.opacity is not None:
            colours = pixels if pixels.ndim == 3 else pixels[..., None]
            pixels = np.rint(colours * wide.opacity + 255 * (1 - wide.opacity)).astype(np.uint8)
            pixels = pixels if pixels.shape[-1] == 3 else pixels[..., 0]
        return _upright(Image.fromarray(pixels), image).convert("RGB")
    if isinstance(image, np.ndarray):
        rgb = Image.fromarray(image if image.dtype == np.uint8 else image.astype(np.uint8) * 255).convert("RGB")
    else:
        image.load()
        rgb = _upright(_without_transparency(image), image)
    needs_rule = nodata is not None or (rule is not None and (rule.scales_bytes or rule.nodata is not None))
    return Image.fromarray((rule or PixelRule()).to_rgb(np.asarray(rgb), nodata)) if needs_rule else rgb


def _upright(pixels: Image.Image, image: Image.Image | np.ndarray) -> Image.Image:
    """Turn pixels as the EXIF data of their image say."""
    if isinstance(image, np.ndarray):
        return pixels
    try:
        turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # the pixels may be intact even if the EXIF data is damaged
        return pixels
    return pixels if turn is None else pixels.transpose(turn)


def _without_transparency(image: Image.Image) -> Image.Image:
    """Return an 8-bit image as RGB, on white where it is transparent."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "LAB":
        to_srgb = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(image, *to_srgb, outputMode="RGB")
        assert converted is not None  # it is None only for a conversion in place
        return converted
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
