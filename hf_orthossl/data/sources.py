"""Any data set of images, from wherever it is, with its image and label columns found."""

import difflib
import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import numpy as np

from .decoding import UnreadableImage, image_size
from .digits import digits

SAMPLED_SIZES = 64


_SAVED = ("state.json", "dataset_dict.json")


# Files that `datasets.load_dataset` reads from a folder: those that hold images, and those that may.
_SHARDS = (".parquet", ".arrow", ".tar")


_TABLES = (".csv", ".json", ".jsonl", ".zip")


EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".ico", ".tga", ".pcx", ".sgi"),
)


_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}


_IMAGE_NAMES = ("image", "img", "pixel_values", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")


_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "cls")


AnyDataset = datasets.Dataset | datasets.IterableDataset


Splits = dict[str, AnyDataset]


@dataclass
class ImageSource:
    """A data set of images whose columns are known.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): Its image column is not decoded, so that a broken
            image cannot stop the reader.
        image_column (`str`): Column of images.
        label_column (`str`, *optional*): Column of class indices; `None` without labels.
        class_names (`list[str]`, *optional*): Names of the classes in the order of their indices, where known.
        num_rows (`int`, *optional*): Images in the data set; `None` for a stream.
        name (`str`): What the data set is called.
        split (`str`): Split, as asked for.
    """

    dataset: AnyDataset
    image_column: str
    label_column: str | None
    class_names: list[str] | None
    num_rows: int | None
    name: str
    split: str

    def images_sampled(self) -> list[Any]:
        """Up to 64 undecoded images, evenly spread over the data set; a stream's first ones."""
        column = self.dataset.select_columns([self.image_column])
        if self.num_rows is None:
            return [row[self.image_column] for row in column.take(SAMPLED_SIZES)]
        rows = np.linspace(0, self.num_rows - 1, min(SAMPLED_SIZES, self.num_rows)).round().astype(int)
        return column.with_format(None)[rows.tolist()][self.image_column]

    @functools.cached_property
    def sampled_sizes(self) -> list[tuple[int, int]]:
        """Height and width in pixels of the sampled images that can be read.

        Raises:
            ValueError: none of them can be read.
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
                "pass image_column, or mend the images"
            )
        return sizes

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width `(H, W)` that all sampled images share; `None` where they differ."""
        return self.sampled_sizes[0] if len(set(self.sampled_sizes)) == 1 else None

    @property
    def shorter_side(self) -> float:
        """Median over the sampled images of the shorter side, in pixels."""
        return median(min(size) for size in self.sampled_sizes)


def load_source(
    dataset: str | datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict,
    *,
    name: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
) -> ImageSource:
    """Opens a data set of images.

    Args:
        dataset: `"digits"` (embedded), a folder (of images with or without class and split folders, of parquet or
            other files that `datasets` reads, or of `save_to_disk`), a Hub id, or a data set already loaded.
        name (`str`, *optional*): Configuration of a Hub data set.
        split (`str`, *optional*): Split, also with slices as in `"train[:5000]"` or `"train+test"`; defaults to
            `"train"` where there is one, else the first.
        image_column (`str`, *optional*): Column of images; guessed by type and name.
        label_column (`str`, *optional*): Column of classes (indices or names); guessed by type and name, and not
            needed.
        streaming (`bool`, defaults to `False`): Read while training instead of before.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no images, no such split or column, or the Hub cannot be reached or does not have it.
    """
    title = dataset if isinstance(dataset, str) else _title_of(dataset)
    splits = open_splits(dataset, name, streaming)
    if not splits:
        raise ValueError(f"dataset {title}: there are no images in it")
    split = split or ("train" if "train" in splits else next(iter(splits)))
    data = _select(splits, split, title)
    if isinstance(data, datasets.Dataset) and len(data) == 0:
        raise ValueError(f"dataset {title}, split {split}: there are no images in it")
    features = data.features or _resolved(data)
    image_column = find_image_column(features, image_column, title)
    label_column = find_label_column(features, label_column, title)
    classes = None
    if label_column and is_text(features[label_column]):
        classes = _class_names(splits, label_column, title)
    elif label_column:
        classes = getattr(features[label_column], "names", None)
    if isinstance(features[image_column], datasets.Image):
        data = data.cast_column(image_column, datasets.Image(decode=False))
    count = len(data) if isinstance(data, datasets.Dataset) else None
    return ImageSource(data, image_column, label_column, classes, count, title, split)


def available_splits(dataset: Any, name: str | None = None) -> list[str]:
    """Names of a data set's splits, as [`load_source`] takes them.

    Raises:
        FileNotFoundError, ValueError: as in [`load_source`].
    """
    if isinstance(dataset, str) and dataset != "digits" and not as_folder(dataset):
        return from_hub(datasets.get_dataset_split_names, dataset, name)
    return list(open_splits(dataset, name, streaming=False))


def _title_of(dataset: Any) -> str:
    part = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    return getattr(getattr(part, "info", None), "dataset_name", None) or "given"


def open_splits(dataset: Any, name: str | None, streaming: bool) -> Splits:
    """All splits of a data set by name."""
    if isinstance(dataset, str):
        folder = as_folder(dataset)
        if dataset == "digits":
            splits = digits()
        elif folder is None:
            return from_hub(datasets.load_dataset, dataset, name, streaming=streaming)
        else:
            splits = _from_folder(folder, name, streaming)
    elif isinstance(dataset, dict):
        splits = dataset
    elif isinstance(dataset, AnyDataset):
        splits = {str(dataset.split or "train"): dataset}
    else:
        raise ValueError(f"dataset is {type(dataset).__name__}: pass a name, a folder or a Hugging Face data set")
    return {str(split): _as_stream(data) if streaming else data for split, data in splits.items()}


def _as_stream(data: AnyDataset) -> datasets.IterableDataset:
    if isinstance(data, datasets.IterableDataset):
        return data
    # As many shards as a machine may have workers, which share a stream out by shards.
    return data.to_iterable_dataset(num_shards=max(min(len(data), 64), 1))


def as_folder(dataset: str) -> Path | None:
    """The folder that a name means, or `None` if it can only be an id on the Hub."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"dataset {dataset} is a file: pass the folder it lies in")
    if path.is_absolute() or dataset.startswith((".", "~")) or dataset.count("/") > 1:
        raise FileNotFoundError(f"dataset {dataset}: there is no such folder")
    return None


def _from_folder(folder: Path, name: str | None, streaming: bool) -> Splits:
    if any((folder / file).is_file() for file in _SAVED):
        saved = datasets.load_from_disk(str(folder))
        return saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    files = [path for path in folder.rglob("*") if path.suffix.lower() in _SHARDS + _TABLES]
    described = any(path.stem == "metadata" for path in files)
    shards = any(path.suffix.lower() in _SHARDS for path in files)
    # Beside shards, image files are a data card's pictures; beside tables, the tables are annotations.
    if not described and not shards:
        splits = image_folder(folder)
        if splits or not files:
            return splits
    try:
        if described:
            return datasets.load_dataset("imagefolder", data_dir=str(folder), streaming=streaming)
        return datasets.load_dataset(str(folder), name, streaming=streaming)
    except Exception as error:  # every builder has errors of its own
        raise ValueError(f"dataset {folder}: {first_line(error)}") from error


def image_folder(root: Path) -> datasets.DatasetDict:
    """Reads `root/class/…`, `root/split/class/…`, `root/split/…` or a flat `root/…` of image files.

    Images are labelled with the first folder below root (or split) when every image lies in one and there are at
    least two; otherwise the set is unlabelled. Top-level folders are splits only if all of them have a split's name,
    so that a class called "train" stays a class.

    Returns:
        `datasets.DatasetDict` with an undecoded `image` and, if labelled, a `label` column; empty without images.
    """
    files = list(_image_files(root))
    nested = bool(files) and all(len(file.parts) > 1 and file.parts[0].lower() in _SPLITS for file in files)
    splits: dict[str, list[tuple[Path, Path]]] = {}
    for file in files:
        split = _SPLITS[file.parts[0].lower()] if nested else "train"
        below = Path(*file.parts[1:]) if nested else file
        splits.setdefault(split, []).append((file, below))
    below = [path for pairs in splits.values() for _, path in pairs]
    labelled = all(len(path.parts) > 1 for path in below) and len({path.parts[0] for path in below}) > 1
    features = datasets.Features({"image": datasets.Image(decode=False)})
    if labelled:
        features["label"] = datasets.ClassLabel(names=sorted({path.parts[0] for path in below}))
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


def _image_files(root: Path) -> list[Path]:
    """Paths of image files relative to `root`, sorted; hidden files and folders are left out."""
    found, visited = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in visited:  # a link that leads back up would be followed for ever
            subfolders.clear()
            continue
        visited.add(os.path.realpath(folder))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [
            Path(folder, name).relative_to(root)
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return sorted(found)


def from_hub(call: Any, dataset: str, name: str | None, **options: Any) -> Any:
    try:
        return call(dataset, name, **options)
    except Exception as error:  # network, access, configuration, format: all end the attempt the same way
        near = difflib.get_close_matches(dataset, ["digits"])
        remedy = "did you mean 'digits'?" if near else "check name and connection, or pass a local folder"
        raise ValueError(
            f"dataset {dataset!r} is no folder here and cannot be had from the Hub ({first_line(error)}): {remedy}"
        ) from error


def _select(splits: Splits, split: str, title: str) -> AnyDataset:
    """The rows that a split specification means."""
    if split in splits:
        return splits[split]
    wanted = [part.partition("[")[0].strip() for part in split.split("+")]
    for part in wanted:
        if part not in splits:
            raise ValueError(f"split {part!r} is not in data set {title}: {did_you_mean(part, splits)}")
    if not all(isinstance(splits[part], datasets.Dataset) for part in wanted):
        raise ValueError(f"split {split!r} slices a stream: pass one of {', '.join(splits)}, or load without streaming")
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({key: len(splits[key]) for key in splits})
    except (AssertionError, ValueError) as error:
        raise ValueError(f"split {split!r}: {first_line(error)}; write for example train[:5000]") from error
    rows = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return rows[0] if len(rows) == 1 else datasets.concatenate_datasets(rows)


def find_image_column(features: datasets.Features, wanted: str | None, name: str) -> str:
    """The image column: as asked for, else the one of type `Image`, with the field's usual names first.

    Raises:
        ValueError: there is no such column, or none that holds images.
    """
    if wanted is not None:
        return _named(wanted, "image_column", features, name)
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise ValueError(
            f"data set {name} has no column of type Image: pass image_column, one of {', '.join(features)}"
        )
    return next((column for column in _IMAGE_NAMES if column in images), images[0])


def find_label_column(features: datasets.Features, wanted: str | None, name: str) -> str | None:
    """The label column: as asked for, else a `ClassLabel` or an integer column with a usual name, else `None`.

    Raises:
        ValueError: the column asked for does not exist, or holds neither classes, integers nor text.
    """
    if wanted is not None:
        feature = features[_named(wanted, "label_column", features, name)]
        if not (is_integer(feature) or is_text(feature)):
            raise ValueError(
                f"label_column {wanted!r} of data set {name} holds {feature}: classes are integers or text"
            )
        return wanted
    usable = [column for column in _LABEL_NAMES if column in features and is_integer(features[column])]
    usable += [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return usable[0] if usable else None


def _named(wanted: str, argument: str, features: datasets.Features, name: str) -> str:
    if wanted not in features:
        raise ValueError(f"{argument} {wanted!r} is not in data set {name}: {did_you_mean(wanted, features)}")
    return wanted


def is_integer(feature: object) -> bool:
    """Whether a column holds class indices."""
    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "bool"))


def is_text(feature: object) -> bool:
    """Whether a column holds class names."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _resolved(data: datasets.IterableDataset) -> datasets.Features:
    """Features of a stream that does not declare them, read off its first rows."""
    features = data._resolve_features().features  # the library offers this under no public name
    return features if features is not None else datasets.Features()


def _class_names(splits: Splits, column: str, title: str) -> list[str]:
    """Class names found in a column of text, in an order that is the same for every split."""
    if not all(isinstance(part, datasets.Dataset) for part in splits.values()):
        raise ValueError(f"label_column {column!r} of data set {title} holds text: a stream needs integer classes")
    texts = {text for part in splits.values() if column in part.features for text in part.unique(column)}
    return sorted(texts - {None})


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """A "did you mean" for an unknown name, and what there is: text for the end of an error line."""
    known = list(known)
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}there is {', '.join(known) or 'none'}"


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")
