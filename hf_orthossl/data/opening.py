"""Open image files, and tell what they hold: channels, pages, and values wider than 8 bits."""

import functools
import importlib
import io
import logging
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
from huggingface_hub.constants import ENDPOINT as HUB
from PIL import Image, TiffImagePlugin

# The limit at which Pillow raises an error; repeated because other libraries disable Pillow's check.
MAX_PIXELS = 178_956_970
# Of images of more channels than three, at most as many values as the largest RGB image has.
MAX_VALUES = 3 * MAX_PIXELS
# How NumPy's files begin.
NPY = b"\x93NUMPY"

# Formats that a data set may contain; excludes those that Pillow passes to another program (EPS to Ghostscript).
_FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "PPM"),
    *("HEIF", "JPEG2000", "ICO", "TGA", "PCX", "SGI"),
)
# Tags of the TIFF specification, and GDAL's for the value of missing pixels.
_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT, _GDAL_NODATA = 254, 258, 262, 277, 339, 42113
_WHITE_IS_ZERO, _SEPARATED = 0, 5
_SIGNED, _UNSIGNED = 2, 1
# Bits of the subfile tag: a smaller copy of another page, and a mask.
_COPY_OR_MASK = 0b101
# What to do with channels that an encoder of three cannot take.
_THREE = "1 or 3 are read: pass --channels to read as many as there are, or convert the images to three"

# Pillow logs what it then raises; a handler keeps Python from printing it.
logging.getLogger(TiffImagePlugin.__name__).addHandler(logging.NullHandler())


class UnreadableImage(OSError):
    """Raised for an image that cannot be decoded, with the reason in one line."""


class UnsupportedImage(UnreadableImage):
    """Raised for an intact image whose channels, values or pages are not those of a grey or RGB image."""


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return the names of the formats that Pillow reads here, HEIF included if pillow-heif is installed."""
    Image.init()
    if find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def open_image(value: Any, within: Sequence[str] | None = None) -> Image.Image | np.ndarray:
    """Open an image of any kind without decoding its pixels.

    Args:
        value (`Any`): As for [`decode_image`].
        within (sequence of `str`, *optional*): As for [`decode_image`].

    Returns:
        `PIL.Image.Image` or `np.ndarray`: The image, or an array of shape `(H, W)` or `(H, W, 3)`.

    Raises:
        UnreadableImage: There is no such regular file, the header is damaged, the image has more than `MAX_PIXELS`
            pixels, or it has channels that are neither grey nor RGB.
    """
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        value = data if data is not None else path
    if value is None:
        raise UnreadableImage("the image is missing (null)")
    if isinstance(value, Image.Image):
        image = value
    elif isinstance(value, bytes | bytearray | memoryview):
        if bytes(value[: len(NPY)]) == NPY:
            return _check_array(read_npy(io.BytesIO(value)))
        image = open_file(io.BytesIO(value))
    elif isinstance(value, str | Path):
        file = find_file(str(value), within)
        if str(value).endswith(".npy"):
            return _check_array(read_npy(file))
        image = open_file(file)
    else:
        return _check_array(np.asarray(value))
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width}×{image.height} pixels are more than {MAX_PIXELS:,}")
    if image.format == "TIFF":
        _check_bands(image)
    return image


def image_name(value: Any, index: int | None = None) -> str:
    """Return the name by which to report an image: its file, or its row if that is known."""
    path = value.get("path") if isinstance(value, dict) else value
    named = isinstance(path, str | Path) and str(path)
    return str(path) if named else "an image" if index is None else f"row {index}"


def reason(error: Exception) -> str:
    """Return an error of a decoder in one line."""
    # Pillow's message contains the file, which is named besides, or the address of a buffer, which differs every time.
    text = re.sub(r"(cannot identify image file) .*", r"\1", f"{type(error).__name__}: {error}")
    text = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", text)
    return " ".join(text.split())[:300]


def find_file(path: str, within: Sequence[str] | None) -> str | io.BytesIO:
    """Return the path of a regular file, or the content of one that lies on the Hub or in an archive.

    Raises:
        UnreadableImage: There is no such file, it is a pipe or device, which could be read forever, a URL outside the
            Hub, which a data set of somebody else could make the user request, or a file outside of the data set.
    """
    if "://" in path:  # the files of a stream are URLs, those in an archive zip://name::archive
        place = path.rpartition("::")[2]
        if "://" in place and not place.startswith(("hf://", f"{HUB}/")):
            raise UnreadableImage("a URL outside the Hub, which is not requested")
        if "://" not in place:
            _require_within(place, within)
        with fsspec.open(path, "rb") as file:
            return io.BytesIO(file.read())
    _require_within(path, within)
    if not os.path.isfile(path):
        raise UnreadableImage("not a regular file" if os.path.lexists(path) else "no such file")
    return path


def _require_within(path: str, folders: Sequence[str] | None) -> None:
    place = os.path.abspath(path)
    if folders is not None and not any(place.startswith(os.path.join(folder, "")) for folder in folders):
        raise UnreadableImage("a file outside of the data set, which is not read")


def open_file(file: Any) -> Image.Image:
    """Open a file of one of the formats that are read.

    Raises:
        UnsupportedImage: It is a TIFF file whose pixels Pillow does not know.
        UnreadableImage: The file is empty.
        OSError: The file cannot be read.
    """
    try:
        return Image.open(file, formats=readable_formats())
    except Image.UnidentifiedImageError as error:
        if (Path(file).stat().st_size if isinstance(file, str | Path) else file.getbuffer().nbytes) == 0:
            raise UnreadableImage("the file is empty") from error
        tags = _tiff_tags(file)
        if tags is None:
            raise
        bits = tags.get(_BITS, (1,))
        raise UnsupportedImage(
            f"a TIFF of {_count(tags.get(_SAMPLES, 1), 'band')} of {'/'.join(map(str, sorted(set(bits))))} bits, which "
            "Pillow cannot read: pass --channels to read as many bands as there are, or convert the images to 1 or 3 "
            "channels of 8 bits, or to one of 16 bits or float32"
        ) from error


def _tiff_tags(file: Any) -> TiffImagePlugin.ImageFileDirectory_v2 | None:
    """Return the tags of a TIFF whose pixels Pillow does not know, or `None` for any other file."""
    try:
        content = io.BytesIO(Path(file).read_bytes()) if isinstance(file, str | Path) else file
        content.seek(0)
        header = content.read(8)
        if not header.startswith(tuple(TiffImagePlugin.PREFIXES)):
            return None
        header += content.read(8) if header[2] == 43 or header[3] == 43 else b""  # BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        content.seek(tags.next)
        tags.load(content)
        return tags if _SAMPLES in tags or _BITS in tags else None
    except Exception:  # a damaged file, about which Pillow's own error says more
        return None


def read_npy(file: str | io.BytesIO) -> np.ndarray:
    """Return the array of a NumPy file, whose header says what is read, and never pickled objects.

    Raises:
        UnreadableImage: The header is damaged, or says another size than the file has.
    """
    content = io.BytesIO(Path(file).read_bytes()) if isinstance(file, str) else file
    content.seek(0)
    try:
        version = np.lib.format.read_magic(content)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, number_type = read_header(content)
    except ValueError as error:
        raise UnreadableImage(reason(error)) from error
    stored = content.getbuffer().nbytes - content.tell()
    if number_type.hasobject or prod(shape) * number_type.itemsize != stored:
        raise UnreadableImage(
            f"a NumPy file of shape {shape} and type {number_type}, which are not the {stored:,} bytes that it has"
        )
    content.seek(0)
    return np.load(content, allow_pickle=False)


def check_numbers(array: np.ndarray) -> None:
    """Refuse an array that is empty or holds no numbers.

    Raises:
        UnreadableImage: It is.
    """
    numbers = array.dtype == bool or np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)
    if array.ndim not in (2, 3) or array.size == 0 or not numbers:
        raise UnreadableImage(
            f"an array of shape {array.shape} and type {array.dtype} is not an image: expected numbers of shape "
            "(H, W), (H, W, C) or (C, H, W)"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _check_bands(image: Image.Image) -> None:
    """Refuse a TIFF with bands besides grey or RGB: one marked as alpha may hold near infrared."""
    tags = image.tag_v2  # type: ignore[attr-defined]  # of TiffImageFile
    samples = tags.get(_SAMPLES, 1)
    inks = tags.get(_PHOTOMETRIC) == _SEPARATED and samples == 4  # CMYK
    if samples not in (1, 3) and not inks:
        raise UnsupportedImage(f"a TIFF of {samples} bands; {_THREE}")


def _check_array(array: np.ndarray) -> np.ndarray:
    """Return an array as `(H, W)` or `(H, W, 3)`."""
    if array.ndim == 3 and array.shape[-1] not in (1, 3) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    check_numbers(array)
    if array.ndim == 3 and array.shape[-1] != 3:
        channels = array.shape[-1] if array.shape[-1] < array.shape[0] else array.shape[0]
        raise UnsupportedImage(f"an array of shape {array.shape} has {channels} channels; {_THREE}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise UnreadableImage(f"{array.shape[1]}×{array.shape[0]} pixels are more than {MAX_PIXELS:,}")
    return array


# --- values --------------------------------------------------------------------------------------------------------


class WideValues(NamedTuple):
    """The values of an image above 8 bits, `(H, W)` or `(H, W, 3)`, and its opacity `(H, W, 1)` in [0, 1], if any."""

    values: np.ndarray
    opacity: np.ndarray | None = None


def wide_values(image: Image.Image | np.ndarray) -> WideValues | None:
    """Return the values of an image above 8 bits, or `None` if 8 bits hold them.

    Of 16-bit colours only PNG files are read in full; Pillow reduces those of other formats to their upper 8 bits, see
    [`reduces`].

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): The image, from [`open_image`].
    """
    if isinstance(image, np.ndarray):
        return None if image.dtype in (np.uint8, bool) else WideValues(image)
    values = png16(image)
    if values is not None:
        opacity = None
        if values.shape[-1] in (2, 4):
            values, opacity = values[..., :-1], values[..., -1:] / np.iinfo(np.uint16).max
        return WideValues(values[..., 0] if values.shape[-1] == 1 else values, opacity)
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]  # of TiffImageFile
    signed, bits = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _SIGNED, tags.get(_BITS, (8,))[0]
    inverted = image.mode == "I;16" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if image.mode == "L" and signed and bits == 8:
        return WideValues(np.asarray(image).view(np.int8))
    if not image.mode.startswith(("I", "F")):
        return None
    values = np.asarray(image)
    if image.mode == "I" and bits == 32 and not signed:  # Pillow's integers are signed
        values = values.view(np.uint32)
    elif image.mode == "I" and bits == 16:
        values = values.astype(np.int16)
    elif image.mode == "I;16B":
        values = values.astype(np.uint16)
    return WideValues(np.iinfo(np.uint16).max - values if inverted else values)


def reduces(image: Image.Image | np.ndarray) -> bool:
    """Return whether Pillow reads only the upper 8 of 16 bits of an opened image."""
    return (
        isinstance(image, Image.Image)
        and image.format == "TIFF"
        and image.mode in ("RGB", "CMYK")
        and image.tag_v2.get(_BITS, (8,))[0] == 16  # type: ignore[attr-defined]  # of TiffImageFile
    )


def file_nodata(image: Image.Image | np.ndarray) -> float | None:
    """Return the value of missing pixels that a GeoTIFF names, or `None`."""
    if isinstance(image, np.ndarray) or image.format != "TIFF":
        return None
    text = image.tag_v2.get(_GDAL_NODATA)  # type: ignore[attr-defined]  # of TiffImageFile
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


def png16(image: Image.Image) -> np.ndarray | None:
    """Return all channels `(H, W, C)` of a 16-bit colour PNG, of which Pillow would read 8 bits; `None` of others."""
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA", "LA") or not image.tile:  # type: ignore[attr-defined]
        return None
    if not str(image.tile[0][3]).endswith(";16B"):  # type: ignore[attr-defined]  # of ImageFile
        return None
    # Imported only when needed, so that the rule of a data set can be read without torch.
    import torch
    from torchvision.io import decode_png

    image.fp.seek(0)  # type: ignore[attr-defined]  # of ImageFile
    content = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)  # type: ignore[attr-defined]
    return decode_png(content).numpy().transpose(1, 2, 0)


# --- pages ---------------------------------------------------------------------------------------------------------


def page_numbers(image: Image.Image | np.ndarray) -> list[int]:
    """Return the frames of an image that are pages: not the preview of a photograph, smaller copies or masks.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): The image, from [`open_image`].
    """
    if isinstance(image, np.ndarray) or image.format == "MPO":
        return [0]
    frames = list(range(getattr(image, "n_frames", 1)))
    if image.format != "TIFF" or len(frames) == 1:
        return frames
    pages = []
    for frame in frames:
        image.seek(frame)
        if not image.tag_v2.get(_SUBFILE, 0) & _COPY_OR_MASK:  # type: ignore[attr-defined]  # of TiffImageFile
            pages.append(frame)
    image.seek(0)
    return pages or [0]


def select_page(image: Image.Image | np.ndarray, page: int) -> Image.Image | np.ndarray:
    """Turn an opened image to a page and return it."""
    if page and isinstance(image, Image.Image):
        image.seek(page)
        if image.format == "TIFF":
            _check_bands(image)
    return image


def pages_as_channels(image: Image.Image | np.ndarray) -> Image.Image | np.ndarray:
    """Return an image whose channels are the pages of a file of three grey pages; a single page is returned as it is.

    Raises:
        UnsupportedImage: The file has another number of pages, or they are coloured or differ in size or type.
    """
    pages = page_numbers(image)
    if len(pages) == 1 or isinstance(image, np.ndarray):
        return image
    if len(pages) != 3:
        raise UnsupportedImage(f"a file of {len(pages)} pages, and 1 or 3 of them can be channels: pass --pages images")
    channels = []
    for page in pages:
        image.seek(page)
        wide = wide_values(image)
        if wide is None and image.mode not in ("1", "L"):
            raise UnsupportedImage(f"a file whose page {page} is in colour ({image.mode}): pass --pages images")
        channels.append(np.asarray(image.convert("L")) if wide is None else wide.values)
    if len({(channel.shape, channel.dtype) for channel in channels}) > 1:
        raise UnsupportedImage("a file whose pages differ in size or type: pass --pages images")
    return np.stack(channels, axis=-1)
