"""Bring an encoder and images together: as many channels, and the statistics by which they are normalized."""

from collections.abc import Mapping

from ..data.sources import ImageSource
from ..data.statistics import channel_statistics
from ..distributed.collectives import on_main
from .encoder import Encoder


def common_channels(encoders: Mapping[str, Encoder]) -> int | None:
    """Return the number of channels with which images are to be read for some encoders; `None` for RGB.

    Args:
        encoders (`dict`): Encoder by name.

    Raises:
        ValueError: They take images of different numbers of channels.
    """
    found = {encoder.channels: name for name, encoder in reversed(list(encoders.items()))}
    if len(found) > 1:
        (some, one), (others, other), *_ = found.items()
        raise ValueError(
            f"channels of the models differ: {one} takes {some} and {other} {others}, measure them one by one"
        )
    channels = next(iter(found), 3)
    return None if channels == 3 else channels


def match_channels(encoder: Encoder, source: ImageSource, *, measure: bool = False) -> str | None:
    """Check that an encoder takes the images of a source, and measure by what they are normalized if that is unknown.

    Call it on every process.

    Args:
        encoder ([`Encoder`]): The encoder, whose `mean` and `std` are set if it does not know them.
        source ([`ImageSource`]): The images.
        measure (`bool`, defaults to `False`): Whether to measure although the encoder knows its `mean` and `std`.

    Returns:
        `str` or `None`: What was measured, in words.

    Raises:
        ValueError: The images have another number of channels, or none of them can be read.
    """
    if encoder.channels != source.num_channels:
        raise ValueError(
            f"channels is {source.num_channels}, and backbone {encoder.name!r} takes images of {encoder.channels}: "
            f"pass --channels {encoder.channels}, or another backbone"
        )
    if encoder.knows_normalization and not measure:
        return None
    statistics = on_main(lambda: channel_statistics(source))
    encoder.set_normalization(statistics.mean, statistics.std)
    return statistics.describe()


def require_colour(encoder: Encoder, what: str) -> None:
    """Refuse an encoder of images that are no RGB.

    Args:
        encoder ([`Encoder`]): The encoder.
        what (`str`): What takes RGB images only, as in "task detection".

    Raises:
        ValueError: It takes another number of channels than 3.
    """
    if encoder.channels != 3:
        raise ValueError(
            f"{what} reads RGB images, and {encoder.name!r} takes {encoder.channels} channels: choose another task or "
            "an encoder of 3 channels"
        )
