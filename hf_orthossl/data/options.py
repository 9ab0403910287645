"""The options that say which images to read and how, shared by every command and torch-free so that help is fast."""

import os
from dataclasses import dataclass, field
from typing import Any

# Published means and standard deviations of red, green and blue, on the scale [0, 1].
PUBLISHED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# By what images are normalized: the backbone's own statistics, those of the data, or published ones.
NORMALIZATIONS = ("backbone", "data", *PUBLISHED)
# The most channels of an image; hyperspectral instruments have a few hundred.
MAX_CHANNELS = 1024
# Which dimension of an array holds the channels.
AXES = ("first", "last")
# What a file of several pages gives: its first page, one image per page, or one image whose channels are the pages.
PAGES = ("first", "images", "channels")
# The largest share of a data set's images that may be unreadable.
MAX_UNREADABLE = 0.01


@dataclass
class ImageOptions:
    """Options that select the images of a command; each field is an argument of [`load_source`]."""

    _argument_group_name = "data"

    dataset: list[str] = field(
        default_factory=lambda: ["digits"],
        metadata={
            "metavar": "NAME",
            "help": "folders, Hub id, list or table of paths, tar or parquet files, digits, shapes",
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "configuration of a Hub data set"}
    )
    image_column: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "column of images (default: found by type)"}
    )
    label_column: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "column of labels (default: found by type)"}
    )
    pixel_range: list[float] | None = field(
        default=None, metadata={"help": "values of black and white (default: by a sample)"}
    )
    nodata: float | None = field(default=None, metadata={"nan": True, "help": "value of missing pixels, as in -9999"})
    pages: str = field(
        default="first", metadata={"metavar": "first|images|channels", "help": "what a file of several pages gives"}
    )
    channels: int | None = field(default=None, metadata={"help": "channels of the images (default: 3; an encoder's)"})
    channel_axis: str | None = field(
        default=None, metadata={"metavar": "first|last", "help": "where arrays have channels", "more": True}
    )
    max_unreadable: float = field(default=MAX_UNREADABLE, metadata={"help": "share or number of unreadable images"})

    def __post_init__(self) -> None:
        if isinstance(self.dataset, str | os.PathLike):
            self.dataset = [os.fspath(self.dataset)]
        check_reading(self.pixel_range, self.nodata, self.pages, self.max_unreadable, self.channels, self.channel_axis)

    @property
    def location(self) -> str | list[str]:
        """Return the data set as the user named it: one name, or a list of several."""
        return self.dataset[0] if len(self.dataset) == 1 else self.dataset

    def reading(self) -> dict[str, Any]:
        """Return the arguments of [`load_source`] besides the data set, its split and streaming."""
        return {
            "name": self.dataset_name,
            "image_column": self.image_column,
            "label_column": self.label_column,
            "pixel_range": self.pixel_range,
            "nodata": self.nodata,
            "pages": self.pages,
            "channels": self.channels,
            "channel_axis": self.channel_axis,
            "max_unreadable": self.max_unreadable,
        }


def check_reading(
    pixel_range: Any,
    nodata: Any,
    pages: str,
    max_unreadable: float,
    channels: int | None = None,
    channel_axis: str | None = None,
) -> None:
    """Check the arguments that say how images are read.

    Raises:
        ValueError: `pixel_range` is not two ascending numbers, `pages` or `channel_axis` is unknown, `channels` is no
            number of channels, or `max_unreadable` is neither a share nor a number of images.
    """
    finite = float("-inf"), float("inf")
    if pixel_range is not None and not (
        len(pixel_range) == 2 and finite[0] < pixel_range[0] < pixel_range[1] < finite[1]
    ):
        raise ValueError(
            f"pixel_range is {' '.join(map(str, pixel_range))}: it must be the values of black and white, the smaller "
            "first, as in 0 4095"
        )
    if nodata is not None and nodata in (float("inf"), float("-inf")):
        raise ValueError(f"nodata is {nodata}: it must be a finite number or nan, as in -9999")
    if pages not in PAGES:
        raise ValueError(f"pages is {pages!r}: choose from {', '.join(PAGES)}")
    if channels is not None and (type(channels) is not int or not 1 <= channels <= MAX_CHANNELS):
        raise ValueError(f"channels is {channels!r}: it must be a whole number from 1 to {MAX_CHANNELS}, as in 13")
    if channel_axis is not None and channel_axis not in AXES:
        raise ValueError(f"channel_axis is {channel_axis!r}: choose from {', '.join(AXES)}")
    if channel_axis is not None and channels in (None, 1, 3):
        number = "not given" if channels is None else channels
        raise ValueError(
            f"channel_axis is {channel_axis}, and channels is {number}: it is for arrays of 2, 4 and more channels, "
            "pass --channels too, or omit it"
        )
    if not (0 <= max_unreadable < 1 or (max_unreadable >= 1 and float(max_unreadable).is_integer())):
        raise ValueError(
            f"max_unreadable is {max_unreadable}: it must be a share below 1, as in 0.05, or a whole number of images"
        )
