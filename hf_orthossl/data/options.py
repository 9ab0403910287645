"""The options that say which images to read and how, shared by every command and torch-free so that help is fast."""

import os
from dataclasses import dataclass, field
from typing import Any

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
            "help": "folders, Hub id, list or table of paths, tar or parquet files, or digits",
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
    max_unreadable: float = field(default=MAX_UNREADABLE, metadata={"help": "share or number of unreadable images"})

    def __post_init__(self) -> None:
        if isinstance(self.dataset, str | os.PathLike):
            self.dataset = [os.fspath(self.dataset)]
        check_reading(self.pixel_range, self.nodata, self.pages, self.max_unreadable)

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
            "max_unreadable": self.max_unreadable,
        }


def check_reading(pixel_range: Any, nodata: Any, pages: str, max_unreadable: float) -> None:
    """Check the arguments that say how images are read.

    Raises:
        ValueError: `pixel_range` is not two ascending numbers, `pages` is unknown, or `max_unreadable` is neither a
            share nor a number of images.
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
    if not (0 <= max_unreadable < 1 or (max_unreadable >= 1 and float(max_unreadable).is_integer())):
        raise ValueError(
            f"max_unreadable is {max_unreadable}: it must be a share below 1, as in 0.05, or a whole number of images"
        )
