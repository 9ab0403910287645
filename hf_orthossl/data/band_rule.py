"""Turn images of more or fewer channels than three into 8 bits: one rule per data set, channel by channel."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .bands import Layout, WrongChannels, open_bands
from .opening import UnreadableImage, UnsupportedImage, image_name
from .pixels import Once, as_bytes, missing_values, range_hint, range_text

# Ranges of channels shown before "…".
_SHOWN = 16
# Values of a sampled channel that are kept to describe it.
_KEPT = 1024


@dataclass(frozen=True)
class BandRule:
    """Turn the values of images of C channels into 8 bits, each channel in the same way for all images and splits.

    Values of 8 bits stay as they are. Of all others, whatever their type, each channel is scaled from its own sampled
    range, because bands differ in it by factors; values beyond are clipped. Missing pixels (`nodata` in all channels,
    NaN and infinity in their own) are not in the range, and 0.

    Args:
        layout ([`Layout`]): The number of channels and how they are stored.
        low (`tuple[float, ...]`, *optional*): The value of each channel that becomes 0; `None` if all sampled images
            have 8 bits, and wider ones cannot be read.
        high (`tuple[float, ...]`, *optional*): The value of each channel that becomes 255.
        nodata (`float`, *optional*): The value of missing pixels.
        scales_bytes (`bool`, defaults to `False`): Whether the ranges apply to 8-bit values too: a requested range, in
            a data set without wider values.
        requested (`bool`, defaults to `False`): Whether the user chose the range, which holds for all channels.
        text (`str`, defaults to ""): The description.
        notes (`tuple[str]`, defaults to `()`): Remarks on the sample.
    """

    layout: Layout
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    nodata: float | None = None
    scales_bytes: bool = False
    requested: bool = field(default=False, compare=False)
    text: str = field(default="", compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    says: Once = field(default_factory=Once, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        images: Sequence[Any],
        layout: Layout,
        *,
        title: str = "given",
        pixel_range: Sequence[float] | None = None,
        nodata: float | None = None,
        within: Sequence[str] | None = None,
    ) -> "BandRule":
        """Return the rule of a data set.

        Args:
            images (`Sequence`): Sampled images, undecoded; those that cannot be read are left out.
            layout ([`Layout`]): The number of channels and how they are stored.
            title (`str`, defaults to "given"): The name of the data set, for errors.
            pixel_range (`Sequence[float]`, *optional*): The values that become 0 and 255 in all channels.
            nodata (`float`, *optional*): The value of missing pixels.
            within (sequence of `str`, *optional*): As for [`decode_image`].

        Raises:
            ValueError: No sampled image that can be read has C channels, their axis is ambiguous, or a package that
                reads them is missing.
        """
        sampled: list[_Sampled] = []
        wrong: list[str] = []
        for number, value in enumerate(images):
            name = image_name(value, number)
            try:
                sampled.append(_Sampled.of(value, layout, nodata, within))
            except UnsupportedImage as error:
                raise ValueError(f"data set {title}: {name} is {error}") from error
            except WrongChannels as error:
                wrong.append(f"{name} is {error}")
            except UnreadableImage:
                continue
        if wrong and not sampled:
            raise ValueError(f"data set {title}: {wrong[0]}: pass the number that the images have")
        wide = [one for one in sampled if one.values is not None]
        low: tuple[float, ...] | None = None
        high: tuple[float, ...] | None = None
        if pixel_range is not None:
            low, high = (tuple([float(end)] * layout.channels) for end in pixel_range)
        elif wide:
            least = np.min(np.stack([one.least for one in wide]), axis=0)
            most = np.max(np.stack([one.most for one in wide]), axis=0)
            constant = ~(least < most)
            # Channels that are the same everywhere become 0 or 255, and those that are missing everywhere 0.
            least, most = np.where(constant, np.minimum(least, 0), least), np.where(constant, np.maximum(most, 0), most)
            least, most = np.where(np.isfinite(least), least, 0), np.where(np.isfinite(most), most, 0)
            low, high = tuple(least.tolist()), tuple(np.where(least < most, most, least + 1).tolist())
        requested = pixel_range is not None
        notes = _notes(sampled, wrong, nodata, layout)
        if wide and not requested:
            notes = _hints(wide, low or (), high or ()) + notes
        text = _description(sampled, layout, low, high, requested)
        return cls(layout, low, high, nodata, requested and not wide, requested, text, tuple(notes))

    @property
    def pages(self) -> str:
        """Return what a file of several pages gives."""
        return self.layout.pages

    def describe(self) -> str:
        """Return the rule in one phrase."""
        return "; ".join([self.text, *self.notes])

    def settings(self) -> dict[str, str | float]:
        """Return what of the rule belongs to the protocol of a result."""
        settings: dict[str, str | float] = {"channels": self.layout.channels}
        if self.low is not None and self.high is not None:
            ranges = [range_text(*ends) for ends in zip(self.low, self.high, strict=True)]
            settings["pixel_range"] = ranges[0] if self.requested else ", ".join(ranges)
        if self.nodata is not None:
            settings["nodata"] = "nan" if self.nodata != self.nodata else self.nodata
        if self.pages != "first":
            settings["pages"] = self.pages
        return settings

    def key(self) -> list[Any]:
        """Return what determines the pixels, as JSON values."""
        return [*self.layout, self.low, self.high, self.nodata, self.scales_bytes]

    def to_bytes(self, values: np.ndarray, nodata: float | None = None) -> np.ndarray:
        """Return values `(H, W, C)` as 8 bits.

        Args:
            values (`np.ndarray` of shape `(H, W, C)`): Numbers.
            nodata (`float`, *optional*): The value of missing pixels that the image names itself.

        Raises:
            UnsupportedImage: All sampled images have 8 bits, so that the ranges of these values are unknown.
        """
        missing = missing_values(values, self.nodata, nodata)

        def scale() -> np.ndarray:
            low, high = np.array(self.low), np.array(self.high)
            known = values if missing is None else np.where(missing, low, values)
            return np.rint(((known - low) * (255 / (high - low))).clip(0, 255)).astype(np.uint8)

        return as_bytes(values, missing, None if self.low is None else scale, self.scales_bytes)

    def beyond(self, values: np.ndarray, nodata: float | None = None) -> str | None:
        """Return how values exceed the ranges of their channels, or `None`.

        Args:
            values (`np.ndarray` of shape `(H, W, C)`): Numbers.
            nodata (`float`, *optional*): The value of missing pixels that the image names itself.
        """
        # What a requested range clips was said where the range is described.
        if self.low is None or self.high is None or self.requested or values.dtype in (np.uint8, bool):
            return None
        least, most = _ends(values, self.nodata, nodata)
        outside = np.flatnonzero((least < self.low) | (most > self.high))
        if not len(outside):
            return None
        channel = int(outside[0])
        more = f" and {len(outside) - 1} others" if len(outside) > 1 else ""
        return (
            f"values of {range_text(float(least[channel]), float(most[channel]))} in channel {channel + 1}{more}, "
            f"beyond the range {range_text(self.low[channel], self.high[channel])} of its data set's sample, and is "
            "clipped: pass --pixel_range for a range of all channels"
        )


@dataclass
class _Sampled:
    """One sampled image: the form of its values and, above 8 bits, the ends and some values of each channel."""

    form: str
    pages: int
    nodata: float | None
    least: np.ndarray = field(default_factory=lambda: np.empty(0))
    most: np.ndarray = field(default_factory=lambda: np.empty(0))
    values: np.ndarray | None = None

    @classmethod
    def of(cls, value: Any, layout: Layout, nodata: float | None, within: Sequence[str] | None) -> "_Sampled":
        bands = open_bands(value, layout, within=within)
        values = bands.read()
        if values.dtype in (np.uint8, bool):
            return cls("8-bit", bands.pages, bands.nodata)
        kind = {"f": " float", "i": " signed"}.get(values.dtype.kind, "")
        least, most = _ends(values, nodata, bands.nodata)
        if not np.isfinite(least).any():
            raise UnreadableImage("all pixels are missing")
        pixels = values.reshape(-1, layout.channels)
        pixels = pixels[:: max(len(pixels) // _KEPT, 1)]
        return cls(f"{values.dtype.itemsize * 8}-bit{kind}", bands.pages, bands.nodata, least, most, pixels)


def _ends(values: np.ndarray, *nodata: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest value of each channel, float64; infinite where all of a channel is missing."""
    missing = missing_values(values, *nodata)
    if missing is None:
        return values.min((0, 1)).astype(np.float64), values.max((0, 1)).astype(np.float64)
    known = values.astype(np.float64)
    return np.where(missing, np.inf, known).min((0, 1)), np.where(missing, -np.inf, known).max((0, 1))


def _description(
    sampled: Sequence[_Sampled],
    layout: Layout,
    low: tuple[float, ...] | None,
    high: tuple[float, ...] | None,
    requested: bool,
) -> str:
    """Return what the sampled images are, and how their values become 8 bits."""
    if not sampled:
        return "no sampled image can be read"
    forms = " and ".join(form for form, _ in Counter(one.form for one in sampled).most_common())
    text = f"{layout.channels} channels of {forms}"
    if low is None or high is None:
        return text
    if requested:
        return f"{text}, scaled from {range_text(low[0], high[0])} as requested"
    ranges = [range_text(*ends) for ends in zip(low[:_SHOWN], high[:_SHOWN], strict=True)]
    more = ["…"] if len(low) > _SHOWN else []
    return f"{text}, each scaled from its own range: {', '.join(ranges + more)}"


def _notes(sampled: Sequence[_Sampled], wrong: Sequence[str], nodata: float | None, layout: Layout) -> list[str]:
    """Return remarks on missing pixels, pages, and images of other numbers of channels."""
    notes = []
    named = {one.nodata for one in sampled if one.nodata is not None} | ({nodata} if nodata is not None else set())
    if named:
        notes.append(f"missing pixels ({', '.join(f'{value:.6g}' for value in sorted(named))}) are 0")
    several = sum(one.pages > 1 for one in sampled)
    if several:
        what = {"images": "each is an image", "channels": "they are its channels"}.get(
            layout.pages, "they are its channels, if the first does not have all of them"
        )
        notes.append(f"{several} of {len(sampled)} sampled files have several pages: {what}")
    if wrong:
        notes.append(f"{len(wrong)} of {len(sampled) + len(wrong)} sampled images are left out: {wrong[0]}")
    return notes


def _hints(wide: Sequence[_Sampled], low: Sequence[float], high: Sequence[float]) -> list[str]:
    """Return what to pass if the values of channels fill little of their ranges, for the first of these channels."""
    pixels = np.concatenate([one.values for one in wide if one.values is not None])
    found = []
    for channel, ends in enumerate(zip(low, high, strict=True)):
        values = pixels[:, channel]
        found += [(channel + 1, hint) for hint in range_hint(values[np.isfinite(values)], *ends)]
    if not found:
        return []
    channel, hint = found[0]
    more = f" and {len(found) - 1} others" if len(found) > 1 else ""
    return [f"channel {channel}{more}: {hint}"]
