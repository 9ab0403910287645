"""The mean and standard deviation of each channel of a data set, by which its images are normalized."""

import itertools
from typing import Any, NamedTuple

import datasets
import numpy as np

from .columns import unformatted
from .decoding import decode_channels
from .opening import UnreadableImage
from .sources import ImageSource

# The images from which the statistics are computed: evenly spread over a data set, or the first ones of a stream.
MEASURED = 1024


class Statistics(NamedTuple):
    """The statistics of the pixels of some images, on the scale [0, 1].

    Args:
        mean (`tuple[float, ...]`): The mean of each channel.
        std (`tuple[float, ...]`): The standard deviation of each channel; 1 for a channel that is constant.
        images (`int`): The number of images.
        constant (`tuple[int, ...]`): The channels that are constant, counted from 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    constant: tuple[int, ...] = ()

    def describe(self) -> str:
        """Return what was measured in one phrase."""
        said = f"mean and std of each channel from {self.images:,} images"
        if self.constant:
            said += f"; constant channels are divided by 1: {', '.join(map(str, self.constant))}"
        return said


def channel_statistics(source: ImageSource, images: int = MEASURED) -> Statistics:
    """Return the mean and standard deviation over all pixels of some images of a source, in float64.

    The images are whole ones in their own size, after the source's rule made them 8 bits: those that training decodes.
    They are read one after the other, in an order that depends on nothing but the source, and the sums of 8-bit values
    and their squares are exact, so that every process and every resumed run finds the same numbers.

    Args:
        source ([`ImageSource`]): The images.
        images (`int`, defaults to 1024): How many of them, evenly spread over the data set, or the first of a stream.

    Raises:
        ValueError: None of the images can be read.
    """
    count, pixels = 0, 0
    sums = np.zeros(source.num_channels, dtype=np.int64)
    squares = np.zeros(source.num_channels, dtype=np.int64)
    reason = "the data set is empty"
    for row, value in _some_images(source, images):
        try:
            image = decode_channels(value, source.pixels, page=source.page(row), within=source.within)
        except UnreadableImage as error:
            reason = str(error)
            continue
        values = np.asarray(image).reshape(-1, source.num_channels)
        sums += values.sum(0, dtype=np.int64)
        squares += np.square(values, dtype=np.uint16).sum(0, dtype=np.int64)
        count, pixels = count + 1, pixels + len(values)
    if not count:
        raise ValueError(
            f"no image of data set {source.name} can be read ({reason}): repair the images, or pass --normalization"
        )
    mean = sums / pixels
    # An integer, so that a channel is constant exactly if it is zero.
    spread = np.array([pixels * int(square) - int(total) ** 2 for total, square in zip(sums, squares, strict=True)])
    std = np.sqrt(spread.astype(np.float64)) / pixels
    constant = tuple((np.flatnonzero(spread == 0) + 1).tolist())
    return Statistics(tuple((mean / 255).tolist()), tuple(np.where(std > 0, std / 255, 1.0).tolist()), count, constant)


def _some_images(source: ImageSource, images: int) -> Any:
    """Return pairs of the row and the undecoded image of some images of a source."""
    column = source.image_column
    data = unformatted(source.dataset.select_columns([column]), column)
    if isinstance(data, datasets.IterableDataset):
        return ((row, value[column]) for row, value in enumerate(itertools.islice(data, images)))
    rows = np.linspace(0, len(data) - 1, min(images, len(data))).round().astype(int).tolist()
    return ((row, data[row][column]) for row in rows)
