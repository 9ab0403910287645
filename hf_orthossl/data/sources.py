"""Open the images that a user names: a Hub id, a folder, the embedded digits, or a data set in memory."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import datasets
import numpy as np

from ..messages import describe, first_line, suggest
from .decoding import UnreadableImage, image_size
from .digits import digits
from .options import MAX_UNREADABLE, check_reading

AnyDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset
Splits: TypeAlias = dict[str, AnyDataset]

SAMPLED_SIZES = 64

# The files by which a folder of `save_to_disk` is recognized.
_SAVED = ("state.json", "dataset_dict.json")
# Files that `datasets.load_dataset` reads from a folder: those that hold images, and those that may.
_SHARDS = (".parquet", ".arrow", ".tar")
_TABLES = (".csv", ".json", ".jsonl", ".zip")
_IMAGE_FILES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".ico", ".tga", ".pcx", ".sgi"),
)
_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
_IMAGE_COLUMNS = ("image", "img", "pixel_values", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")


@dataclass
class ImageSource:
    """A data set of images whose image and label columns are known.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): The rows. Images are not decoded, so that a damaged
            one cannot stop an iteration.
        image_column (`str`): The column of images.
        label_column (`str`, *optional*): The column of classes; `None` for unlabelled images.
        class_names (`list[str]`, *optional*): The name of each class, in the order of the class indices, if known.
        num_rows (`int`, *optional*): The number of images; `None` for a stream.
        name (`str`): The name of the data set.
        split (`str`): The split, as requested.
        pixel_range (`Sequence[float]`, *optional*): The values shown as black and white, as requested.
        nodata (`float`, *optional*): The value of missing pixels, as requested.
        pages (`str`, defaults to "first"): What a file of several pages gives, as requested.
        max_unreadable (`float`, defaults to 0.01): The largest number or, below 1, share of images that may be
            unreadable.
    """

    dataset: AnyDataset
    image_column: str
    label_column: str | None
    class_names: list[str] | None
    num_rows: int | None
    name: str
    split: str
    pixel_range: Sequence[float] | None = None
    nodata: float | None = None
    pages: str = "first"
    max_unreadable: float = MAX_UNREADABLE

    def images_sampled(self) -> list[Any]:
        """Return up to 64 undecoded images: evenly spaced over the data set, or the first ones of a stream."""
        column = self.dataset.select_columns([self.image_column])
        if self.num_rows is None:
            return [row[self.image_column] for row in column.take(SAMPLED_SIZES)]
        rows = np.linspace(0, self.num_rows - 1, min(SAMPLED_SIZES, self.num_rows)).round().astype(int)
        return column.with_format(None)[rows.tolist()][self.image_column]

    @functools.cached_property
    def sampled_sizes(self) -> list[tuple[int, int]]:
        """Height and width in pixels of each sampled image that can be read.

        Raises:
            ValueError: No sampled image can be read.
        """
        sizes, reason = [], "the data set is empty"
        for image in self.images_sampled():
            try:
                sizes.append(image_size(image))
            except UnreadableImage as error:
                reason = str(error)
        if not sizes:
            raise ValueError(
                f"no image sampled from column {self.image_column!r} of data set {self.name} can be read ({reason}): "
                "pass another image_column, or repair the images"
            )
        return sizes

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width `(H, W)` that all sampled images share, or `None` if they differ."""
        return self.sampled_sizes[0] if len(set(self.sampled_sizes)) == 1 else None

    @property
    def shorter_side(self) -> float:
        """Median length of the shorter side of the sampled images, in pixels."""
        return median(min(size) for size in self.sampled_sizes)


def load_source(
    dataset: str | Path | datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset,
    *,
    name: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    pixel_range: Sequence[float] | None = None,
    nodata: float | None = None,
    pages: str = "first",
    max_unreadable: float = MAX_UNREADABLE,
) -> ImageSource:
    """Open a data set of images and find its image and label columns.

    Args:
        dataset (`str`, `Path` or a data set of `datasets`): One of: `"digits"`, which is embedded; a folder of images,
            optionally in class and split folders; a folder of parquet or other files that `datasets` reads; a folder
            written by `save_to_disk`; a Hub id; a `Dataset`, `DatasetDict`, `IterableDataset` or
            `IterableDatasetDict`.
        name (`str`, *optional*): The configuration of a Hub data set.
        split (`str`, *optional*): The split, optionally with slices and sums as in `"train[:5000]"` or
            `"train+test"`. Defaults to `"train"` if there is one, else to the first split.
        image_column (`str`, *optional*): The column of images. By default it is found by its type and name.
        label_column (`str`, *optional*): The column of classes, as indices or names. By default it is found by its type
            and name; a data set may have none.
        streaming (`bool`, defaults to `False`): Read the images during training rather than before it.
        pixel_range (`Sequence[float]`, *optional*): The values shown as black and white, for integers above 8 bits and
            floating-point values; found from a sample of the images by default.
        nodata (`float`, *optional*): The value of missing pixels, which are shown as black.
        pages (`str`, defaults to "first"): What a file of several pages gives: its "first" page, one image per page
            ("images"), or one image whose "channels" are the pages.
        max_unreadable (`float`, defaults to 0.01): The largest number or, below 1, share of images that may be
            unreadable. A share always allows 5 images, unless it is 0.

    Returns:
        [`ImageSource`]: The data set and its columns.

    Raises:
        TypeError: `dataset` is neither a name, a folder nor a data set of `datasets`, or `split` is not a string.
        FileNotFoundError: The folder does not exist.
        ValueError: There are no images, the split or column does not exist, or the Hub does not provide the data set.

    Example:
        >>> source = load_source("digits", split="train[:100]")
        >>> source.num_rows, source.image_size
        (100, (32, 32))
    """
    if split is not None and not isinstance(split, str):
        raise TypeError(f"split must be a string such as 'train[:5000]', got {describe(split)}")
    check_reading(pixel_range, nodata, pages, max_unreadable)
    title = str(dataset) if isinstance(dataset, str | Path) else _name_of(dataset)
    splits = _open_splits(dataset, name, streaming)
    if not splits:
        raise ValueError(f"dataset {title} has no images: pass another data set")
    split = split or ("train" if "train" in splits else next(iter(splits)))
    data = _select_split(splits, split, title)
    if isinstance(data, datasets.Dataset) and len(data) == 0:
        raise ValueError(f"split {split} of dataset {title} has no images: pass another split")
    features = data.features or _resolve_features(data)
    image_column = _find_image_column(features, image_column, title)
    label_column = _find_label_column(features, label_column, title)
    classes = None
    if label_column and _is_text(features[label_column]):
        classes = _collect_class_names(splits, label_column, title)
    elif label_column:
        classes = getattr(features[label_column], "names", None)
    if isinstance(features[image_column], datasets.Image):
        data = data.cast_column(image_column, datasets.Image(decode=False))
    count = len(data) if isinstance(data, datasets.Dataset) else None
    return ImageSource(
        data,
        image_column,
        label_column,
        classes,
        count,
        title,
        split,
        pixel_range=pixel_range,
        nodata=nodata,
        pages=pages,
        max_unreadable=max_unreadable,
    )


def available_splits(dataset: Any, name: str | None = None) -> list[str]:
    """Return the names of a data set's splits.

    Args:
        dataset (`str`, `Path` or a data set of `datasets`): The data set, in any form that [`load_source`] accepts.
        name (`str`, *optional*): The configuration of a Hub data set.

    Raises:
        TypeError: `dataset` is neither a name, a folder nor a data set of `datasets`.
        FileNotFoundError: The folder does not exist.
        ValueError: The folder cannot be read, or the Hub does not provide the data set.
    """
    if isinstance(dataset, str) and dataset != "digits" and not _find_folder(dataset):
        return _call_hub(datasets.get_dataset_split_names, dataset, name)
    return list(_open_splits(dataset, name, streaming=False))


def _name_of(dataset: Any) -> str:
    part = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    return getattr(getattr(part, "info", None), "dataset_name", None) or "given"


# --- from the user's argument to splits ----------------------------------------------------------------------------


def _open_splits(dataset: Any, name: str | None, streaming: bool) -> Splits:
    """Return all splits of a data set by name."""
    if isinstance(dataset, str | Path):
        folder = _find_folder(dataset)
        if dataset == "digits":
            splits = digits()
        elif folder is None:
            return _call_hub(datasets.load_dataset, str(dataset), name, streaming=streaming)
        else:
            splits = _open_folder(folder, name, streaming)
    elif isinstance(dataset, dict) and all(isinstance(part, AnyDataset) for part in dataset.values()):
        splits = dataset
    elif isinstance(dataset, AnyDataset):
        splits = {str(dataset.split or "train"): dataset}
    else:
        raise TypeError(
            "dataset must be 'digits', a folder, a Hub id or a data set of the datasets library, "
            f"got {describe(dataset)}"
        )
    return {str(split): _to_stream(data) if streaming else data for split, data in splits.items()}


def _to_stream(data: AnyDataset) -> datasets.IterableDataset:
    if isinstance(data, datasets.IterableDataset):
        return data
    # Workers divide a stream by its shards, so there must be at least as many shards as workers.
    return data.to_iterable_dataset(num_shards=max(min(len(data), 64), 1))


def _find_folder(dataset: str | Path) -> Path | None:
    """Return the folder that an argument names, or `None` if it can only be an id on the Hub."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"dataset {dataset} is a file: pass the folder that contains it")
    relative = isinstance(dataset, str) and not path.is_absolute() and not dataset.startswith((".", "~"))
    if not relative or str(dataset).count("/") > 1:
        raise FileNotFoundError(f"dataset {dataset}: there is no such folder")
    return None


def _open_folder(folder: Path, name: str | None, streaming: bool) -> Splits:
    if any((folder / file).is_file() for file in _SAVED):
        saved = datasets.load_from_disk(str(folder))
        return saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    files = [path for path in folder.rglob("*") if path.suffix.lower() in _SHARDS + _TABLES]
    described = any(path.stem == "metadata" for path in files)
    shards = any(path.suffix.lower() in _SHARDS for path in files)
    # Image files next to shards are figures of a data card; tables next to image files are annotations.
    if not described and not shards:
        splits = _open_image_folder(folder)
        if splits or not files:
            return splits
    try:
        if described:
            return datasets.load_dataset("imagefolder", data_dir=str(folder), streaming=streaming)
        return datasets.load_dataset(str(folder), name, streaming=streaming)
    except Exception as error:  # each builder of datasets raises its own classes
        raise ValueError(f"dataset {folder} cannot be read ({first_line(error)}): check its files") from error


def _open_image_folder(root: Path) -> datasets.DatasetDict:
    """Open `root/class/…`, `root/split/class/…`, `root/split/…` or a flat `root/…` of image files.

    Images are labelled with the first folder below the root (or split) if every image lies in such a folder and there
    are at least two of them; otherwise the data set is unlabelled. Top-level folders are splits only if all of them
    have a split's name, so that a class called "train" remains a class.

    Returns:
        `datasets.DatasetDict`: An undecoded `image` column and, if labelled, a `label` column. Empty without images.
    """
    files = _list_image_files(root)
    nested = bool(files) and all(len(file.parts) > 1 and file.parts[0].lower() in _SPLIT_FOLDERS for file in files)
    # Each file with its path below the split's folder.
    splits: dict[str, list[tuple[Path, Path]]] = {}
    for file in files:
        split = _SPLIT_FOLDERS[file.parts[0].lower()] if nested else "train"
        splits.setdefault(split, []).append((file, Path(*file.parts[1:]) if nested else file))
    paths = [path for pairs in splits.values() for _, path in pairs]
    labelled = all(len(path.parts) > 1 for path in paths) and len({path.parts[0] for path in paths}) > 1
    features = datasets.Features({"image": datasets.Image(decode=False)})
    if labelled:
        features["label"] = datasets.ClassLabel(names=sorted({path.parts[0] for path in paths}))
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": [{"bytes": None, "path": str(root / file)} for file, _ in pairs]}
                | ({"label": [path.parts[0] for _, path in pairs]} if labelled else {}),
                features=features,
                split=split,
            )
            for split, pairs in splits.items()
        }
    )


def _list_image_files(root: Path) -> list[Path]:
    """Return the sorted paths of image files relative to `root`, without hidden files and folders."""
    files: list[Path] = []
    visited = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in visited:  # a link to a parent folder would be followed forever
            subfolders.clear()
            continue
        visited.add(os.path.realpath(folder))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files += [
            Path(folder, name).relative_to(root)
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in _IMAGE_FILES
        ]
    return sorted(files)


def _call_hub(function: Callable[..., Any], dataset: str, name: str | None, **options: Any) -> Any:
    try:
        return function(dataset, name, **options)
    except Exception as error:  # network, access, configuration and format raise many classes, with the same remedy
        remedy = suggest(dataset, ["digits"], otherwise="check the name and the connection, or pass a local folder")
        raise ValueError(
            f"dataset {dataset!r} is not a local folder and cannot be loaded from the Hub ({first_line(error)}): "
            f"{remedy}"
        ) from error


# --- from splits to one split and its columns ----------------------------------------------------------------------


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


def _resolve_features(data: datasets.IterableDataset) -> datasets.Features:
    """Return the features of a stream that does not declare them, inferred from its first rows."""
    features = data._resolve_features().features  # datasets has no public method for this
    return features if features is not None else datasets.Features()


def _require_column(column: str, argument: str, features: datasets.Features, title: str) -> str:
    if column not in features:
        raise ValueError(f"{argument} {column!r} is not in data set {title}: {suggest(column, features)}")
    return column


def _find_image_column(features: datasets.Features, requested: str | None, title: str) -> str:
    """Return the requested image column, else a column of type `Image`, preferring the usual names.

    Raises:
        ValueError: The requested column does not exist, or no column is of type `Image`.
    """
    if requested is not None:
        return _require_column(requested, "image_column", features, title)
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise ValueError(
            f"data set {title} has no column of type Image: pass image_column, one of {', '.join(features)}"
        )
    return next((column for column in _IMAGE_COLUMNS if column in images), images[0])


def _find_label_column(features: datasets.Features, requested: str | None, title: str) -> str | None:
    """Return the requested label column, else an integer column with a usual name or a `ClassLabel`, else `None`.

    Raises:
        ValueError: The requested column does not exist, or contains neither classes, integers nor text.
    """
    if requested is not None:
        feature = features[_require_column(requested, "label_column", features, title)]
        if not (_is_integer(feature) or _is_text(feature)):
            raise ValueError(
                f"label_column {requested!r} of data set {title} contains {feature}: pass a column of integers or text"
            )
        return requested
    usable = [column for column in _LABEL_COLUMNS if column in features and _is_integer(features[column])]
    usable += [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return usable[0] if usable else None


def _is_integer(feature: object) -> bool:
    """Return whether a column contains class indices."""
    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "bool"))


def _is_text(feature: object) -> bool:
    """Return whether a column contains class names."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _collect_class_names(splits: Splits, column: str, title: str) -> list[str]:
    """Return the class names in a column of text, in the same order for every split."""
    if not all(isinstance(part, datasets.Dataset) for part in splits.values()):
        raise ValueError(
            f"label_column {column!r} of data set {title} contains text: a stream needs integer classes, so load "
            "without streaming or pass another label_column"
        )
    texts = {text for part in splits.values() if column in part.features for text in part.unique(column)}
    return sorted(texts - {None})
