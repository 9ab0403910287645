"""Open images of any number of channels: TIFF of several bands or pages, NumPy files, arrays, PNG with opacity."""

import functools
import importlib
import io
import itertools
import logging
import math
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .opening import (
    MAX_PIXELS,
    MAX_VALUES,
    NPY,
    UnreadableImage,
    UnsupportedImage,
    check_numbers,
    find_file,
    open_file,
    png16,
    read_npy,
    reason,
)

# Pages of a TIFF that are looked at.
_MAX_PAGES = 4096
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Lossless compressions of the TIFF specification and of GDAL, whose decoders stop at the size that the header says.
_COMPRESSIONS = {
    1: "none",
    5: "LZW",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    34925: "LZMA",
    50000: "Zstandard",
}
# Bits of the subfile tag: a smaller copy of another page, and a mask.
_COPY_OR_MASK = 0b101
_SEPARATE, _GDAL_NODATA, _ORIENTATION = 2, 42113, 274
# How to turn an array `(H, W, C)` upright, by its EXIF orientation.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: array[::-1].swapaxes(0, 1),
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: lambda array: array[:, ::-1].swapaxes(0, 1),
}
_INSTALL = "pip install 'hf-orthossl[bands]'"


class WrongChannels(UnreadableImage):
    """Raised for an intact image whose number of channels is another one than its data set's."""


class Layout(NamedTuple):
    """Describe how the channels of a data set's images are stored.

    Args:
        channels (`int`): The number of channels C.
        axis (`str`, *optional*): Where arrays of C × W × C have them: "first" or "last".
        pages (`str`, defaults to "first"): What a file of several pages gives, see [`load_source`].
        number_type (`str`, *optional*): The type of the numbers of arrays that a data set returns as lists.
    """

    channels: int
    axis: str | None = None
    pages: str = "first"
    number_type: str | None = None


class Bands(NamedTuple):
    """An opened image whose values are not read yet.

    Args:
        height (`int`): The height of the upright image, in pixels.
        width (`int`): Its width.
        read (`Callable`): Returns the values, upright, of shape `(H, W, C)`.
        nodata (`float`, *optional*): The value of missing pixels that the file names.
        pages (`int`, defaults to 1): The number of pages of the file, without smaller copies and masks.
    """

    height: int
    width: int
    read: Callable[[], np.ndarray]
    nodata: float | None = None
    pages: int = 1


def open_bands(value: Any, layout: Layout, page: int = 0, within: Sequence[str] | None = None) -> Bands:
    """Open an image of any number of channels without decoding its pixels.

    - *TIFF*: the bands of the first page, together or separate, if there are C; else the pages, if there are C with one
      band each. Other pages, smaller copies and masks are not used.
    - *NumPy files and arrays*, also lists of numbers: `(H, W, C)` or `(C, H, W)`; the axis of the channels is the one
      of length C.
    - *Other files*: the channels that they store, opacity included; palettes are colours.

    Args:
        value (`Any`): As for [`decode_image`].
        layout ([`Layout`]): How the channels are stored.
        page (`int`, defaults to 0): The page of the file, if every page is an image.
        within (sequence of `str`, *optional*): As for [`decode_image`].

    Raises:
        WrongChannels: The image has another number of channels.
        UnsupportedImage: The axis of the channels is ambiguous, or a package is missing.
        UnreadableImage: There is no such regular file, the header is damaged, or the image is too large.
    """
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        value = data if data is not None else path
    if value is None:
        raise UnreadableImage("the image is missing (null)")
    bands = _guarded(lambda: _opened(value, layout, page, within))
    return bands._replace(read=lambda: _guarded(bands.read))


def _guarded(function: Callable[[], Any]) -> Any:
    """Call a function; what decoders raise for arbitrary bytes, which is of any class, becomes `UnreadableImage`."""
    try:
        return function()
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(reason(error)) from error


def _opened(value: Any, layout: Layout, page: int, within: Sequence[str] | None) -> Bands:
    if isinstance(value, Image.Image):
        return _open_pillow(value, layout, page)
    if isinstance(value, bytes | bytearray | memoryview):
        file: str | io.BytesIO = io.BytesIO(value)
    elif isinstance(value, str | Path):
        file = find_file(str(value), within)
    else:
        return _open_array(_as_array(value, layout), layout)
    head = _head(file)
    if head.startswith(NPY):
        return _open_array(read_npy(file), layout)
    return _open_tiff(file, layout, page) if head.startswith(_TIFF) else _open_pillow(open_file(file), layout, page)


def page_count(value: Any, within: Sequence[str] | None = None) -> list[int]:
    """Return the pages of a TIFF file with any number of bands, without smaller copies and masks; `[0]` of others."""
    path = value.get("path") if isinstance(value, dict) else value
    data = value.get("bytes") if isinstance(value, dict) else None
    file = io.BytesIO(data) if data is not None else find_file(str(path), within)
    if not _head(file).startswith(_TIFF):
        return [0]
    with _open(file) as tiff:
        return [number for number, _ in _pages(tiff)]


def _head(file: str | io.BytesIO) -> bytes:
    if isinstance(file, io.BytesIO):
        return file.getvalue()[:8]
    with open(file, "rb") as content:
        return content.read(8)


def _wrong(what: str, layout: Layout) -> WrongChannels:
    return WrongChannels(f"{what}, where {layout.channels} channels are read (--channels)")


# --- arrays --------------------------------------------------------------------------------------------------------


def _as_array(value: Any, layout: Layout) -> np.ndarray:
    """Return an array, tensor or list of numbers as an array; lists have the type of their column."""
    array = np.asarray(value)
    return array if layout.number_type is None else array.astype(layout.number_type, copy=False)


def _open_array(array: np.ndarray, layout: Layout) -> Bands:
    """Open an array, whose channels lie along the axis of their number."""
    check_numbers(array)
    count = layout.channels
    if array.ndim != 3:
        raise _wrong(f"an array of shape {array.shape}", layout)
    last, first = array.shape[-1] == count, array.shape[0] == count
    if layout.axis is not None:
        last, first = last and layout.axis == "last", first and layout.axis == "first"
    if first and last:
        raise UnsupportedImage(
            f"an array of shape {array.shape}, in which the first and the last dimension could be the {count} "
            "channels: pass --channel_axis first or last"
        )
    if not first and not last:
        where = f" with the channels {layout.axis}" if layout.axis else ""
        raise _wrong(f"an array of shape {array.shape}{where}", layout)
    array = array.transpose(1, 2, 0) if first else array
    _check_size(*array.shape)
    return Bands(array.shape[0], array.shape[1], lambda: array)


def _check_size(height: int, width: int, channels: int) -> None:
    """Refuse an image that is too large to be decoded."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS or height * width * channels > MAX_VALUES:
        raise UnreadableImage(
            f"{width}×{height} pixels of {channels} channels are more than {MAX_PIXELS:,} pixels or "
            f"{MAX_VALUES:,} values"
        )


# --- files that Pillow reads ---------------------------------------------------------------------------------------


def _open_pillow(image: Image.Image, layout: Layout, page: int) -> Bands:
    """Open an image of Pillow, with the channels that it stores."""
    _check_size(image.height, image.width, len(image.getbands()))
    if page:
        image.seek(page)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if len(image.getbands()) != layout.channels:
        count = len(image.getbands())
        raise _wrong(f"an image of {count} {'channel' if count == 1 else 'channels'} ({image.mode})", layout)
    orientation = _exif_orientation(image)
    turned = orientation in (5, 6, 7, 8)
    height, width = (image.width, image.height) if turned else (image.height, image.width)

    def read() -> np.ndarray:
        values = png16(image)
        return _turned(np.asarray(image) if values is None else values, orientation)

    return Bands(height, width, read, None, getattr(image, "n_frames", 1))


def _exif_orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels may be intact even if the EXIF data is damaged
        return 1


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    return _UPRIGHT[orientation](values) if orientation in _UPRIGHT else values


# --- TIFF ----------------------------------------------------------------------------------------------------------


@functools.cache
def _tifffile() -> Any:
    """Return the module that reads TIFF files of any number of bands.

    Raises:
        UnsupportedImage: It is not installed.
    """
    if not find_spec("tifffile"):
        raise UnsupportedImage(f"a TIFF file, of which tifffile reads all bands: {_INSTALL}")
    # It logs what it then raises; a handler keeps Python from printing it.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    return importlib.import_module("tifffile")


def _open(file: str | io.BytesIO) -> Any:
    """Return an opened TIFF file of tifffile, to be closed."""
    if isinstance(file, io.BytesIO):
        file.seek(0)
    return _tifffile().TiffFile(file)


def _pages(tiff: Any) -> list[tuple[int, Any]]:
    """Return the pages that are no smaller copies and no masks, with their numbers."""
    pages = list(enumerate(itertools.islice(tiff.pages, _MAX_PAGES)))
    return [(number, page) for number, page in pages if not page.subfiletype & _COPY_OR_MASK] or pages[:1]


def _open_tiff(file: str | io.BytesIO, layout: Layout, page: int) -> Bands:
    """Open the bands of one page, or the pages with one band each; each is checked before anything is decoded."""
    size = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else os.path.getsize(file)
    with _open(file) as tiff:
        pages = _pages(tiff)
        chosen = _chosen(pages, layout, page)
        for _, one in chosen:
            _check_page(one, size)
        forms = {(one.imagelength, one.imagewidth, one.dtype) for _, one in chosen}
        if len(forms) > 1:
            raise UnreadableImage("pages that differ in size or type cannot be channels of one image")
        first = chosen[0][1]
        _check_size(first.imagelength, first.imagewidth, layout.channels)
        orientation = first.tags.valueof(_ORIENTATION) or 1
        nodata = _nodata(first)
    numbers = [number for number, _ in chosen]

    def read() -> np.ndarray:
        with _open(file) as tiff:
            planes = [_values(tiff.pages[number]) for number in numbers]
        return _turned(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1), orientation)

    height, width = first.imagelength, first.imagewidth
    if orientation in (5, 6, 7, 8):
        height, width = width, height
    return Bands(height, width, read, nodata, len(pages))


def _chosen(pages: list[tuple[int, Any]], layout: Layout, page: int) -> list[tuple[int, Any]]:
    """Return the pages that hold the channels of an image."""
    if layout.pages == "images":
        pages = [one for one in pages if one[0] == page] or pages[:1]
    counts = [one.samplesperpixel for _, one in pages]
    if layout.pages != "channels" and counts[0] == layout.channels:
        return pages[:1]
    if layout.pages != "images" and sum(counts) == layout.channels and (layout.pages == "channels" or max(counts) == 1):
        return pages
    bands = f"{counts[0]} {'band' if counts[0] == 1 else 'bands'}"
    several = f"{len(pages)} pages, the first of {bands}" if len(pages) > 1 else bands
    raise _wrong(f"a TIFF of {several}", layout)


def _check_page(page: Any, size: int) -> None:
    """Refuse a page whose values are no numbers, or that says of its size what its file cannot hold."""
    if page.dtype is None or page.dtype.kind not in "buif" or page.imagedepth != 1:
        raise UnreadableImage(f"a TIFF of {page.bitspersample} bits in sample format {page.sampleformat} is not read")
    _check_size(page.imagelength, page.imagewidth, page.samplesperpixel)
    if page.compression not in _COMPRESSIONS:
        known = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise UnreadableImage(f"a TIFF compressed by method {int(page.compression)}: the ones read are {known}")
    if page.compression != 1 and not find_spec("imagecodecs"):
        # Without it the size of what is unpacked would have no limit.
        name = _COMPRESSIONS[page.compression]
        raise UnsupportedImage(f"a TIFF compressed by {name}, which imagecodecs unpacks: {_INSTALL}")
    if math.prod(page.chunks) > MAX_VALUES:
        raise UnreadableImage(f"tiles of {'×'.join(map(str, page.chunks))} are more than {MAX_VALUES:,} values")
    if any(start + count > size for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)):
        raise UnreadableImage("the file is truncated")
    stored = page.imagelength * page.imagewidth * page.samplesperpixel * page.bitspersample // 8
    if page.compression == 1 and page.databytecounts and 0 not in page.databytecounts and stored > size:
        raise UnreadableImage("the file is truncated")


def _values(page: Any) -> np.ndarray:
    """Return the values of a page as `(H, W, bands)`."""
    values = page.asarray(maxworkers=1)
    if values.ndim == 2:
        return values[..., None]
    return values.transpose(1, 2, 0) if page.planarconfig == _SEPARATE else values


def _nodata(page: Any) -> float | None:
    """Return the value of missing pixels that a GeoTIFF names, or `None`."""
    text = page.tags.valueof(_GDAL_NODATA)
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None
