"""Select one split of a data set and the images to sample from it, and find its image and label columns."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from ..messages import first_line, suggest
from .bands import page_count as band_pages
from .labels import classes_of, holds_classes, is_integer, is_label, is_text
from .locations import AnyDataset, Opened, Splits
from .opening import open_image, page_numbers

# The images of a data set that are looked at to find their sizes and the range of their values.
SAMPLED = 64

_IMAGE_COLUMNS = ("image", "img", "pixel_values", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")


def rows_of(
    opened: Opened,
    split: str,
    image_column: str | None,
    label_column: str | None,
    pages: str,
    channels: int | None = None,
) -> dict[str, Any]:
    """Return the fields of an [`ImageSource`] that belong to one split.

    Args:
        opened ([`Opened`]): All splits of the data set.
        split (`str`): The split, optionally with slices and sums as in `"train[:5000]"`.
        image_column (`str`, *optional*): The column of images; found by its type and name by default.
        label_column (`str`, *optional*): The column of classes; found by its type and name by default.
        pages (`str`): What a file of several pages gives; "images" for a row per page.
        channels (`int`, *optional*): The number of channels; with it, columns of arrays are columns of images.

    Raises:
        ValueError: The split or a column does not exist, or the split has no images.
    """
    title = opened.title
    data = _select_split(opened.splits, split, title)
    if isinstance(data, datasets.Dataset) and len(data) == 0:
        raise ValueError(f"split {split} of dataset {title} has no images: pass another split")
    features = data.features or _resolve_features(data)
    image_column = _find_image_column(features, image_column, title, arrays=channels is not None)
    parts = list(opened.splits.values())
    label_column = _find_label_column(features, label_column, title, parts)
    classes = None
    if label_column is not None:
        # Each split of a data set in memory may have names of its own.
        named = isinstance(features[label_column], datasets.ClassLabel)
        classes = classes_of([data] if named else parts, label_column, features[label_column], title)
    data = undecoded(data, image_column, features)
    page_of_row = None
    if pages == "images":
        data, page_of_row = _spread_pages(data, image_column, opened, channels)
    return {
        "dataset": data,
        "image_column": image_column,
        "label_column": label_column,
        "classes": classes,
        "num_rows": len(data) if isinstance(data, datasets.Dataset) else None,
        "split": split,
        "page_of_row": page_of_row,
        "number_type": number_type(features.get(image_column)),
    }


def _select_split(splits: Splits, split: str, title: str) -> AnyDataset:
    """Return the rows that a split specification such as `"train[:5000]+test"` selects."""
    if split in splits:
        return splits[split]
    names = [part.partition("[")[0].strip() for part in split.split("+")]
    for name in names:
        if name not in splits:
            raise ValueError(f"split {name!r} is not in data set {title}: {suggest(name, splits)}")
    if not all(isinstance(splits[name], datasets.Dataset) for name in names):
        raise ValueError(
            f"split {split!r} slices a stream, which is not supported: choose from {', '.join(splits)}, or load "
            "without streaming"
        )
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({key: len(splits[key]) for key in splits})
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"split {split!r} is not valid ({first_line(error)}): write, for example, train[:5000]"
        ) from error
    rows = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return rows[0] if len(rows) == 1 else datasets.concatenate_datasets(rows)


def sample(data: AnyDataset, column: str) -> list[tuple[int, Any]]:
    """Return up to 64 undecoded images by row: evenly spaced over a data set, or the first ones of a stream."""
    data = unformatted(data.select_columns([column]), column)
    if isinstance(data, datasets.IterableDataset):
        return [(number, row[column]) for number, row in enumerate(data.take(SAMPLED))]
    rows = np.linspace(0, len(data) - 1, min(SAMPLED, len(data))).round().astype(int).tolist()
    return list(zip(rows, data[rows][column], strict=True))


def unformatted(data: AnyDataset, column: str) -> AnyDataset:
    """Return a data set whose rows are read as Python values, but arrays of a column of images as arrays."""
    if number_type((data.features or {}).get(column)) is None:
        return data.with_format(None) if isinstance(data, datasets.Dataset) else data
    if isinstance(data, datasets.Dataset):
        return data.with_format("numpy", columns=[column], output_all_columns=True)
    return data.with_format("numpy")


def number_type(feature: Any) -> str | None:
    """Return the type of the numbers of a column of arrays or of lists of lists of numbers; `None` of any other."""
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return feature.dtype
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    is_number = isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float", "bool"))
    return feature.dtype if depth in (2, 3) and is_number else None


def undecoded(data: AnyDataset, column: str, features: datasets.Features) -> AnyDataset:
    """Return a data set whose images are not decoded when its rows are read."""
    if isinstance(features.get(column), datasets.Image):
        return data.cast_column(column, datasets.Image(decode=False))
    return data


def _spread_pages(
    data: AnyDataset, column: str, opened: Opened, channels: int | None
) -> tuple[datasets.Dataset, list[int]]:
    """Return a data set with one row for each page of its files, and the page of each row."""
    if isinstance(data, datasets.IterableDataset):
        raise ValueError(
            f"pages is images, but the data set {opened.title} is a stream, whose pages are not counted: omit "
            "--streaming"
        )
    rows, pages = [], []
    for row, image in enumerate(data.select_columns([column]).with_format(None)):
        try:
            if channels in (None, 1, 3):
                numbers = page_numbers(open_image(image[column], opened.within))
            else:
                numbers = band_pages(image[column], opened.within)
        except Exception:  # an image that cannot be opened is counted when it is decoded
            numbers = [0]
        rows += [row] * len(numbers)
        pages += numbers
    return data.select(rows), pages


def _resolve_features(data: datasets.IterableDataset) -> datasets.Features:
    """Return the features of a stream that does not declare them, inferred from its first rows."""
    features = data._resolve_features().features  # datasets has no public method for this
    return features if features is not None else datasets.Features()


def _require_column(column: str, argument: str, features: datasets.Features, title: str) -> str:
    if column not in features:
        raise ValueError(f"{argument} {column!r} is not in data set {title}: {suggest(column, features)}")
    return column


def _find_image_column(features: datasets.Features, requested: str | None, title: str, arrays: bool = False) -> str:
    """Return the requested image column, else a column of type `Image` or, if asked, of arrays, by the usual names.

    Raises:
        ValueError: The requested column does not exist, or no column is of type `Image`.
    """
    if requested is not None:
        return _require_column(requested, "image_column", features, title)
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    held = [column for column, feature in features.items() if number_type(feature) is not None]
    images = images or (held if arrays else [])
    if not images:
        hint = f", or --channels to read the arrays of {held[0]!r}" if held else ""
        raise ValueError(
            f"data set {title} has no column of type Image: pass image_column, one of {', '.join(features)}{hint}"
        )
    return next((column for column in _IMAGE_COLUMNS if column in images), images[0])


def _find_label_column(
    features: datasets.Features, requested: str | None, title: str, parts: Sequence[AnyDataset]
) -> str | None:
    """Return the requested label column, else one with a usual name, else a `ClassLabel`, else `None`.

    A column with a usual name is taken if it contains integers or text, or numbers that are whole. Text and
    floating-point numbers of a stream are not.

    Raises:
        ValueError: The requested column does not exist, or contains neither classes, numbers nor text.
    """
    if requested is not None:
        feature = features[_require_column(requested, "label_column", features, title)]
        if not is_label(feature):
            raise ValueError(
                f"label_column {requested!r} of data set {title} contains {feature}: pass a column of integers or text"
            )
        return requested
    streams = any(isinstance(part, datasets.IterableDataset) for part in parts)
    for column in _LABEL_COLUMNS:
        feature = features.get(column)
        whole = not streams and (is_text(feature) or (is_label(feature) and holds_classes(parts, column)))
        if is_integer(feature) or whole:
            return column
    return next((column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)), None)
