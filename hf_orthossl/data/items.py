"""Images given as Python objects: lists of Pillow images, and data sets of torchvision's kind."""

import io
from collections.abc import Iterator
from typing import Any

import datasets
import torch.utils.data
from PIL import Image

from ..messages import describe


def is_items(data: Any) -> bool:
    """Return whether data are a list of images, or a data set whose items are images or `(image, label)`.

    Reads the first item.
    """
    if isinstance(data, list | tuple):
        return bool(data) and _image(data[0]) is not None
    if isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return len(data) > 0 and isinstance(data[0], tuple | Image.Image)
    return False


def table_of_items(data: Any) -> datasets.Dataset:
    """Return the images, and their labels if there are any, as a table with the columns `image` and `label`.

    Of torchvision's `ImageFolder` and its kind, which know their files, the files are read when they are needed;
    transforms are not applied. All other images are kept in memory, compressed without loss.

    Args:
        data (list, tuple or `torch.utils.data.Dataset`): Data that [`is_items`] recognizes.

    Raises:
        TypeError: An item is no image of Pillow, with or without an integer label.
    """
    names = getattr(data, "classes", None)
    names = [str(name) for name in names] if isinstance(names, list | tuple) and len(set(names)) == len(names) else None
    samples = getattr(data, "samples", None)
    if isinstance(samples, list) and samples and isinstance(samples[0], tuple) and isinstance(samples[0][0], str):
        images: list[Any] = [{"path": path, "bytes": None} for path, *_ in samples]
        labels = [label for _, label, *_ in samples]
    else:
        pairs = list(_pairs(data))
        images, labels = [image for image, _ in pairs], [label for _, label in pairs]
    labelled = all(isinstance(label, int) and not isinstance(label, bool) for label in labels)
    columns, features = {"image": images}, {"image": datasets.Image()}
    if labelled:
        columns["label"] = labels
        known = names is not None and all(0 <= label < len(names) for label in labels)
        features["label"] = datasets.ClassLabel(names=names) if known else datasets.Value("int64")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _pairs(data: Any) -> Iterator[tuple[dict[str, Any], int | None]]:
    for number in range(len(data)):
        item = data[number]
        image = _image(item)
        if image is None:
            first = item[0] if isinstance(item, tuple) and item else item
            raise TypeError(
                f"item {number} of the data set is {describe(first)}: it must be a Pillow image, or a pair of one and "
                "an integer label; leave out the data set's transform, since views are made during training"
            )
        label: Any = item[1] if isinstance(item, tuple) and len(item) > 1 else None
        label = label.item() if hasattr(label, "item") else label
        # Without loss, whatever format the image was read from.
        file = io.BytesIO()
        image.save(file, "TIFF" if image.mode == "F" else "PNG")
        yield {"bytes": file.getvalue(), "path": None}, label


def _image(item: Any) -> Image.Image | None:
    image = item[0] if isinstance(item, tuple) and item else item
    return image if isinstance(image, Image.Image) else None
