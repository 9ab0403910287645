"""Name images of a data set, open queries from elsewhere by the same rule, and decode both for a sheet."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from ..data import ImageDataset, ImageSource, UnreadableImage, load_source
from ..data.decoding import decode_channels


@dataclass
class Picture:
    """An image of a data set, or a query, and what is known of it.

    Args:
        row (`int`, *optional*): Its row in the data set; `None` for a query from elsewhere.
        path (`str`): Its path, or its name or row in a data set without files.
        label (`str`, *optional*): Its class.
    """

    row: int | None
    path: str
    label: str | None = None


def pictures_of(source: ImageSource, rows: Sequence[int]) -> list[Picture]:
    """Return what is known of some images of a data set."""
    if not rows:
        return []
    labels: list[Any] = [None] * len(rows)
    if source.label_column is not None:
        values = source.dataset.select_columns([source.label_column]).with_format(None)[list(rows)]
        classes, names = [source.class_index(value) for value in values[source.label_column]], source.class_names
        labels = [None if one < 0 else names[one] if names else str(one) for one in classes]
    return [Picture(row, path, label) for row, path, label in zip(rows, source.names(rows), labels, strict=True)]


def query_source(paths: Sequence[str], source: ImageSource) -> ImageSource:
    """Return images from elsewhere as a source, whose values become 8 bits by the rule of a data set."""
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": list(paths)}, features=features)
    return load_source(table, channels=source.channels, channel_axis=source.channel_axis).as_in(source)


def check_queries(queries: Sequence[str | os.PathLike], source: ImageSource) -> list[str]:
    """Return the paths of queries, all of which can be read.

    Raises:
        ValueError: One of them is no image that can be read.
    """
    paths = [os.path.expanduser(os.fspath(query)) for query in queries]
    for path in paths:
        try:
            decode_channels(path, source.pixels)
        except UnreadableImage as error:
            raise ValueError(f"query {path} cannot be read ({error}): pass the path of an image file") from error
    return paths


def thumbnails(source: ImageSource, rows: Sequence[int], side: int) -> list[np.ndarray]:
    """Return images as `(side, side, 3)` or `(side, side)`, uint8: what the encoder sees of them, in another size.

    Of images with several channels other than RGB the first three are shown. One that cannot be read is black.

    Args:
        source ([`ImageSource`]): The images.
        rows (`Sequence[int]`): Their rows.
        side (`int`): The side in pixels.
    """
    dataset = ImageDataset(source, image_size=side, indices=rows, unreadable="omit")
    shown = []
    for place in range(len(rows)):
        pixels = dataset[place]["pixel_values"].numpy()
        shown.append(pixels[:3].transpose(1, 2, 0) if len(pixels) >= 3 else pixels[0])
    return shown
