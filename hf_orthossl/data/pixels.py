"""Convert the images of one data set to 8-bit RGB by one rule, found from a sample of them."""

import functools
import mmap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .opening import (
    UnreadableImage,
    UnsupportedImage,
    file_nodata,
    image_name,
    open_image,
    page_numbers,
    pages_as_channels,
    reason,
    reduces,
    select_page,
    wide_values,
)

# The depths, in bits, that cameras, scanners and microscopes have.
_DEPTHS = (8, 10, 12, 14, 16, 20, 24, 32)
# The values of an image that are kept to describe the sample.
_KEPT = 4096
# A range is pointed out if the middle 98 % of the values fill less than this share of it.
_FILLED = 0.1
# Nothing is pointed out of masks, which have fewer values than this.
_FEWEST = 16
# Pillow reads the upper 8 bits of some 16-bit colours: enough if the values reach half of their range.
_REACHED = 2**15
# In a channel of transparency at least this share of the pixels is invisible or opaque.
_OPAQUE_OR_NOT = 0.5


class Once:
    """Tell the first call from all others, in this process and those forked from it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def __call__(self) -> bool:
        """Return whether this is the first call."""
        first = not self._memory[0]
        self._memory[0] = 1
        return first

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()


@dataclass(frozen=True)
class PixelRule:
    """Turn the values of a data set's images into 8 bits, in the same way for all of its images and splits.

    Values of 8 bits stay as they are. Integers above 8 bits are scaled from 0 and the smallest usual depth that holds
    the largest sampled value (8, 10, 12, 14, 16, 20, 24 or 32 bits), or, if there are negative ones, from the sampled
    range. Floating-point values are scaled from [0, 1] if the sample lies in it, else from [0, 255] if it lies in that,
    else from the sampled range. The sampled range is that of all values and not of most of them, so that nothing in the
    sample is clipped; the description points out a range of which the values fill little. Values beyond the range are
    clipped. Missing pixels (`nodata`, those that a GeoTIFF names, NaN and infinity) are not in the range, and black.

    Args:
        low (`float`, *optional*): The value that becomes 0; `None` if all sampled images have 8 bits, and wider ones
            cannot be read.
        high (`float`, *optional*): The value that becomes 255.
        nodata (`float`, *optional*): The value of missing pixels.
        pages (`str`, defaults to "first"): What a file of several pages gives, see [`load_source`].
        scales_bytes (`bool`, defaults to `False`): Whether the range applies to 8-bit values too: a requested range,
            in a data set without wider values.
        channels (`int`, *optional*): 1 for images whose channels are all equal, of which one is kept; 3 channels by
            default.
        requested (`bool`, defaults to `False`): Whether the user chose the range.
        text (`str`, defaults to "8-bit"): The description.
        notes (`tuple[str]`, defaults to `()`): Remarks on the sample: missing pixels, transparency, pages, and a range
            of which the values fill little.
    """

    low: float | None = None
    high: float | None = None
    nodata: float | None = None
    pages: str = "first"
    scales_bytes: bool = False
    channels: int | None = None
    requested: bool = field(default=False, compare=False)
    text: str = field(default="8-bit", compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    says: Once = field(default_factory=Once, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        images: Sequence[Any],
        *,
        title: str = "given",
        pixel_range: Sequence[float] | None = None,
        nodata: float | None = None,
        pages: str = "first",
        channels: int | None = None,
        within: Sequence[str] | None = None,
    ) -> "PixelRule":
        """Return the rule of a data set.

        Args:
            images (`Sequence`): Sampled images, undecoded; those that cannot be read are left out.
            title (`str`, defaults to "given"): The name of the data set, for errors.
            pixel_range (`Sequence[float]`, *optional*): The values of black and white, instead of those found.
            nodata (`float`, *optional*): The value of missing pixels.
            pages (`str`, defaults to "first"): What a file of several pages gives, see [`load_source`].
            channels (`int`, *optional*): 1 to keep one channel of grey images, and to leave out those in colour.
            within (sequence of `str`, *optional*): As for [`decode_image`].

        Raises:
            ValueError: An image has channels or pages that cannot be used, or the images have integers and
                floating-point values, of which no common range is known.
        """
        sampled: list[_Sampled] = []
        coloured: list[str] = []
        for number, value in enumerate(images):
            name = image_name(value, number)
            try:
                one = _Sampled.of(value, name, pages, nodata, number, within, find_colour=channels == 1)
                if not one.is_grey:
                    coloured.append(name)
                else:
                    sampled.append(one)
            except UnsupportedImage as error:
                raise ValueError(f"data set {title}: {name} is {error}") from error
            except UnreadableImage:
                continue
        if coloured and not sampled:
            raise ValueError(
                f"data set {title}: {coloured[0]} has 3 different channels, where 1 is read (--channels): pass "
                "--channels 3, or convert the images to grey"
            )
        wide = [one for one in sampled if one.is_wide]
        low, high, scaled = (None, None, "") if not wide else _range(wide, title, pixel_range is None)
        if pixel_range is not None:
            low, high = map(float, pixel_range)
            scaled = f"scaled from {range_text(low, high)} as requested"
            if any(one.least < low or one.most > high for one in wide):
                scaled += ", what is beyond is clipped"
        requested = pixel_range is not None
        text = _description(sampled, scaled)
        notes = _notes(sampled, nodata, pages)
        if wide and not requested:
            assert low is not None
            assert high is not None
            notes = (
                range_hint(np.concatenate([one.values for one in wide if one.values is not None]), low, high) + notes
            )
        if channels == 1:
            notes.append("one of the equal channels is kept")
        if coloured:
            total = len(sampled) + len(coloured)
            notes.append(f"{len(coloured)} of {total} sampled images are left out: {coloured[0]} has 3 channels")
        return cls(low, high, nodata, pages, requested and not wide, channels, requested, text, tuple(notes))

    def key(self) -> list[Any]:
        """Return what determines the pixels, as JSON values."""
        # Images of three channels have the key that they had before others were read.
        return [self.low, self.high, self.nodata, self.pages, self.scales_bytes, *([1] if self.channels == 1 else [])]

    def describe(self) -> str:
        """Return the rule in one phrase, such as "16-bit grey, values 0–4095: scaled from 12 bits"."""
        return "; ".join([self.text, *self.notes])

    def settings(self) -> dict[str, str | float]:
        """Return what of the rule belongs to the protocol of a result; nothing for plain images of 8 bits."""
        settings: dict[str, str | float] = {}
        if self.low is not None and self.high is not None:
            settings["pixel_range"] = range_text(self.low, self.high)
        if self.nodata is not None:
            settings["nodata"] = "nan" if self.nodata != self.nodata else self.nodata
        if self.pages != "first":
            settings["pages"] = self.pages
        if self.channels == 1:
            settings["channels"] = 1
        return settings

    def to_rgb(self, values: np.ndarray, nodata: float | None = None) -> np.ndarray:
        """Return values as 8 bits, of the same shape.

        Args:
            values (`np.ndarray`): Values of shape `(H, W)` or `(H, W, 3)`.
            nodata (`float`, *optional*): The value of missing pixels that the image names itself.

        Raises:
            UnsupportedImage: All sampled images have 8 bits, so that the range of these values is unknown.
        """
        missing = missing_values(values, self.nodata, nodata)

        def scale() -> np.ndarray:
            if values.dtype in (np.uint8, np.uint16):
                return self._table[values]
            assert self.low is not None
            return self._scale(values if missing is None else np.where(missing, self.low, values))

        return as_bytes(values, missing, None if self.low is None else scale, self.scales_bytes)

    def beyond(self, values: np.ndarray, nodata: float | None = None) -> str | None:
        """Return how values exceed the range, such as "values up to 5000, above …", or `None`.

        Args:
            values (`np.ndarray`): Values as for [`~PixelRule.to_rgb`].
            nodata (`float`, *optional*): The value of missing pixels that the image names itself.
        """
        # What a requested range clips was said where the range is described.
        if self.low is None or self.high is None or self.requested or values.dtype in (np.uint8, bool):
            return None
        missing = missing_values(values, self.nodata, nodata)
        if missing is not None:
            values = values[~missing]
        if not values.size or (values.min() >= self.low and values.max() <= self.high):
            return None
        least, most = min(float(values.min()), self.low), max(float(values.max()), self.high)
        parts = [f"up to {most:.6g}"] if most > self.high else []
        parts += [f"down to {least:.6g}"] if least < self.low else []
        return (
            f"values {' and '.join(parts)}, beyond the range {range_text(self.low, self.high)} of its data set, and is "
            f"clipped: pass --pixel_range {least:.6g} {most:.6g}"
        )

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Return the 8-bit value of every 16-bit one, of shape `(65536,)`."""
        return self._scale(np.arange(2**16))

    def _scale(self, values: np.ndarray) -> np.ndarray:
        assert self.low is not None
        assert self.high is not None
        scaled = (values.astype(np.float64) - self.low) * (255 / (self.high - self.low))
        return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def as_bytes(
    values: np.ndarray, missing: np.ndarray | None, scale: Callable[[], np.ndarray] | None, scales_bytes: bool
) -> np.ndarray:
    """Return values as 8 bits: flags as 0 and 255, bytes as they are, everything else scaled, missing pixels as 0.

    Args:
        values (`np.ndarray`): Numbers.
        missing (`np.ndarray`, *optional*): Where pixels are missing, of the shape of `values`.
        scale (callable, *optional*): Returns the scaled values; `None` if their range is unknown.
        scales_bytes (`bool`): Whether bytes are scaled too.

    Raises:
        UnsupportedImage: The range of the values is needed and unknown, since all sampled images have 8 bits.
    """
    if values.dtype == bool:
        scaled = values.astype(np.uint8) * 255
    elif values.dtype == np.uint8 and not scales_bytes:
        scaled = values
    elif scale is None:
        raise UnsupportedImage(
            f"values of {values.dtype.itemsize * 8} bits in a data set whose sampled images have 8: pass --pixel_range"
        )
    else:
        scaled = scale()
    return scaled if missing is None else np.where(missing, np.uint8(0), scaled)


def missing_values(values: np.ndarray, *nodata: float | None) -> np.ndarray | None:
    """Return where pixels are missing: NaN, infinite, or in all channels equal to one of some values.

    Args:
        values (`np.ndarray`): Values of shape `(H, W)` or `(H, W, 3)`.
        nodata (`float`, *optional*): Values of missing pixels.

    Returns:
        `np.ndarray` of shape `(H, W)` or, with values that are not finite, that of `values`; `None` if nothing is
        missing.
    """
    missing = ~np.isfinite(values) if np.issubdtype(values.dtype, np.floating) else None
    for value in nodata:
        if value is not None and value == value:
            equal = values == value
            equal = equal.all(-1, keepdims=True) if values.ndim == 3 else equal
            missing = equal if missing is None else missing | equal
    if missing is None or not missing.any():
        return None
    return np.broadcast_to(missing, values.shape)


@dataclass
class _Sampled:
    """One sampled image: its form, pages and transparency, and the values above 8 bits."""

    name: str
    form: str
    pages: int
    is_transparent: bool
    nodata: float | None
    values: np.ndarray | None = None
    least: float = 0.0
    most: float = 0.0
    is_grey: bool = True

    @classmethod
    def of(
        cls,
        value: Any,
        name: str,
        pages: str,
        nodata: float | None,
        number: int,
        within: Sequence[str] | None,
        find_colour: bool,
    ) -> "_Sampled":
        try:
            image = open_image(value, within)
            numbers = page_numbers(image)
            if pages == "channels":
                image = pages_as_channels(image)
            elif pages == "images":  # pages of all depths of a stack
                image = select_page(image, numbers[number % len(numbers)])
            own = file_nodata(image)
            wide = wide_values(image)
            if reduces(image):
                _check_reduced(image)
            _check_alpha(image)
            # Which decodes all of an image, whereas its header says the rest.
            is_grey = not find_colour or (_is_grey(image) if wide is None else are_equal(wide.values))
        except UnreadableImage:
            raise
        except Exception as error:  # decoders raise arbitrary exceptions
            raise UnreadableImage(reason(error)) from error
        transparent = isinstance(image, Image.Image) and image.has_transparency_data
        if wide is None:
            return cls(name, f"8-bit {_colours(image)}", len(numbers), transparent, own, is_grey=is_grey)
        values = wide.values
        kind = " float" if np.issubdtype(values.dtype, np.floating) else ""
        kind = " signed" if np.issubdtype(values.dtype, np.signedinteger) and values.dtype.itemsize < 4 else kind
        form = f"{values.dtype.itemsize * 8}-bit{kind} {'RGB' if values.ndim == 3 else 'grey'}"
        missing = missing_values(values, nodata, own)
        known = values.ravel() if missing is None else values[~missing]
        if not known.size:
            raise UnreadableImage("all pixels are missing")
        least, most = float(known.min()), float(known.max())
        kept = known[:: max(known.size // _KEPT, 1)]
        transparent = transparent or wide.opacity is not None
        return cls(name, form, len(numbers), transparent, own, kept, least, most, is_grey)

    @property
    def is_wide(self) -> bool:
        return self.values is not None

    @property
    def is_float(self) -> bool:
        return self.values is not None and np.issubdtype(self.values.dtype, np.floating)


def are_equal(values: np.ndarray) -> bool:
    """Return whether all channels of values `(H, W)` or `(H, W, C)` are equal, as those of a grey image are."""
    return values.ndim == 2 or bool((values == values[..., :1]).all())


def _is_grey(image: Image.Image | np.ndarray) -> bool:
    return are_equal(image if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB")))


def _check_alpha(image: Image.Image | np.ndarray) -> None:
    """Refuse a last channel of 8 bits that is a band, such as near infrared: transparency is mostly all or nothing."""
    if not isinstance(image, Image.Image) or image.mode not in ("RGBA", "LA"):
        return
    alpha = np.asarray(image.getchannel("A"))
    if ((alpha == 0) | (alpha == 255)).mean() < _OPAQUE_OR_NOT:
        raise UnsupportedImage(
            f"an image of {len(image.getbands())} channels, of which the last is marked as transparency and does not "
            "look like it (most of its values are neither 0 nor 255); 1 or 3 are read: convert the images to three "
            "channels, or remove the transparency"
        )


def _check_reduced(image: Image.Image | np.ndarray) -> None:
    largest = int(np.asarray(image).max()) * 256 + 255
    if largest < _REACHED:
        raise UnsupportedImage(
            f"a TIFF of 16-bit colours that reach only {largest}, of which Pillow reads the upper 8 bits: convert the "
            "images to 16-bit PNG or to 8 bits"
        )


def _colours(image: Image.Image | np.ndarray) -> str:
    if isinstance(image, np.ndarray):
        return "grey" if image.ndim == 2 else "RGB"
    known = {"1": "grey", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette", "RGBA": "RGB", "RGBX": "RGB"}
    return known.get(image.mode, image.mode)


def _range(wide: Sequence[_Sampled], title: str, is_needed: bool) -> tuple[float, float, str]:
    """Return the values of black and white of sampled images above 8 bits, and where they are from."""
    least, most = min(one.least for one in wide), max(one.most for one in wide)
    floats = [one.is_float for one in wide]
    if any(floats) and not all(floats) and is_needed:
        one, other = wide[floats.index(True)], wide[floats.index(False)]
        raise ValueError(
            f"data set {title} has floating-point values ({one.name}) and integers above 8 bits ({other.name}): pass "
            f"--pixel_range, as in {least:.6g} {most:.6g}, or separate them"
        )
    if all(floats) and least >= 0 and most <= 255:
        high = 1.0 if most <= 1 else 255.0
        return 0.0, high, f"scaled from {range_text(0, high)}"
    if not any(floats) and least >= 0 and most < 2 ** _DEPTHS[-1]:
        depth = next(depth for depth in _DEPTHS if most < 2**depth)
        return 0.0, 2.0**depth - 1, f"scaled from {depth} bits"
    # Images that are all the same are black or white, as they would be beside others.
    low, high = (least, most) if least < most else (min(least, 0.0), max(most, 0.0))
    return low, high, "scaled from that range"


def _description(sampled: Sequence[_Sampled], scaled: str) -> str:
    """Return what the sampled images are, and how their values become 8 bits."""
    if not sampled:
        return "no sampled image can be read"
    wide = [one for one in sampled if one.is_wide]
    narrow = " and ".join(form for form, _ in Counter(one.form for one in sampled if not one.is_wide).most_common())
    if not wide:
        return f"{narrow}: {scaled}" if scaled else narrow
    forms = " and ".join(form for form, _ in Counter(one.form for one in wide).most_common())
    span = range_text(min(one.least for one in wide), max(one.most for one in wide))
    return (f"{narrow} as it is, and {forms}" if narrow else forms) + f", values {span}: {scaled}"


def _notes(sampled: Sequence[_Sampled], nodata: float | None, pages: str) -> list[str]:
    """Return remarks on missing pixels, transparency and pages of the sampled images."""
    notes = []
    named = {one.nodata for one in sampled if one.nodata is not None} | ({nodata} if nodata is not None else set())
    if named:
        notes.append(f"missing pixels ({', '.join(f'{value:.6g}' for value in sorted(named))}) are black")
    if transparent := sum(one.is_transparent for one in sampled):
        notes.append(f"transparency is shown on white ({transparent} of {len(sampled)} sampled)")
    counts = sorted(one.pages for one in sampled if one.pages > 1)
    if counts:
        span = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]}–{counts[-1]}"
        what = {
            "first": "the first is used; pass --pages images or channels for the others",
            "images": "each is an image",
            "channels": "they are its channels",
        }[pages]
        notes.append(f"{len(counts)} of {len(sampled)} sampled files have {span} pages: {what}")
    return notes


def range_hint(values: np.ndarray, low: float, high: float) -> list[str]:
    """Return what to pass if the values fill little of their range, as where missing pixels are not declared."""
    distinct = np.unique(values).astype(np.float64)
    if len(distinct) < _FEWEST:
        return []
    for end, gap in ((distinct[0], distinct[1] - distinct[0]), (distinct[-1], distinct[-1] - distinct[-2])):
        if gap > (high - low) / 2:
            return [f"is {end:.6g} the value of missing pixels? pass --nodata {end:.6g}"]
    few, most = (float(value) for value in np.percentile(values, [1, 99]))
    return (
        []
        if most - few >= _FILLED * (high - low)
        else [f"98 % of them lie within {range_text(few, most)}, see --pixel_range"]
    )


def range_text(low: float, high: float) -> str:
    """Return a range as text."""
    return f"{low:.6g} to {high:.6g}" if low < 0 else f"{low:.6g}–{high:.6g}"
