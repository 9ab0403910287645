"""Open the images that a user names: folders, lists, tables, shards, a Hub id, the digits, or a data set in memory."""

import dataclasses
import functools
import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self, TypeAlias

import datasets
import numpy as np

from ..messages import describe, first_line, suggest
from .decoding import UnreadableImage, image_size
from .digits import digits
from .fingerprint import fingerprint_of_files, fingerprint_of_rows
from .listing import HELD_OUT, SPLITS, ImageFile, LeftOut, Listing, list_folders, readable_extensions, split_kind
from .opening import open_image, page_numbers
from .options import MAX_UNREADABLE, check_reading
from .pixels import PixelRule
from .tables import LISTS, TABLES, holds_paths, list_paths, list_table

AnyDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset
Splits: TypeAlias = dict[str, AnyDataset]

SAMPLED_SIZES = 64

# The files by which a folder of `save_to_disk` is recognized.
_SAVED = ("state.json", "dataset_dict.json")
# The builder of `datasets` that reads shards of each kind.
_SHARDS = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
# Beside shards, up to this many image files are figures of a data card.
_FIGURES = 16
# Class names shown before "…".
_SHOWN = 6
_IMAGE_COLUMNS = ("image", "img", "pixel_values", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")


@dataclass
class Opened:
    """A data set as the user named it: all its splits, and what is known of the files behind them.

    Args:
        splits (`dict`): The data set of each split.
        title (`str`): The name of the data set.
        listing ([`Listing`], *optional*): The image files by split, if the images are files.
        shards (`dict[str, list[str]]`): The local files of each split, if they hold many images each.
        given (`bool`): Whether the user passed a single split, which is then used whatever its name.
        left_out (`list`): What of the files is not used, for the user.
    """

    splits: Splits
    title: str
    listing: Listing | None = None
    shards: dict[str, list[str]] = field(default_factory=dict)
    given: bool = False
    left_out: list[LeftOut] = field(default_factory=list)


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
        opened ([`Opened`], *optional*): All splits of the data set.
        page_of_row (`Sequence[int]`, *optional*): The page of each row's file, if every page is an image.
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
    opened: Opened | None = field(default=None, repr=False)
    page_of_row: Sequence[int] | None = field(default=None, repr=False)

    @property
    def splits(self) -> list[str]:
        """The names of all splits of the data set."""
        return [self.split] if self.opened is None else list(self.opened.splits)

    def with_split(self, split: str) -> Self:
        """Return another split of the same data set, with the same columns, without opening the data set again.

        Args:
            split (`str`): The split, optionally with slices and sums as in `"test[:500]"`.

        Raises:
            ValueError: The split does not exist or has no images.
        """
        opened = self.opened or Opened({self.split: self.dataset}, self.name)
        rows = _rows_of(opened, split, self.image_column, self.label_column, self.pages)
        source = dataclasses.replace(self, **rows)
        if "pixels" in self.__dict__:
            source.pixels = self.pixels
        return source

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """A fingerprint of names, sizes and a sample of bytes; `None` for a stream whose files are not local.

        A copy of the data set has the same one. [`difference`] says in what two of them differ.
        """
        if self.num_rows is None:
            files = [] if self.opened is None else list(self._files())
            return fingerprint_of_files([f.path for f in files], [f.name for f in files]) if files else None
        assert isinstance(self.dataset, datasets.Dataset)
        if self.opened is not None and self.opened.listing is not None and self.num_rows > 0:
            rows = self.dataset.with_format("arrow")[:]
            paths = rows[self.image_column].combine_chunks().field("path").to_pylist()
            labels = rows[self.label_column].to_pylist() if self.label_column else [None] * len(paths)
            # Relative to the folder that all of them share, as a copy elsewhere has them.
            common = os.path.commonpath([os.path.dirname(path) for path in paths])
            names = [f"{path[len(common) :]} {label}" for path, label in zip(paths, labels, strict=True)]
            return fingerprint_of_files(paths, names)
        return fingerprint_of_rows(self.dataset, self.image_column, self.label_column)

    def _files(self) -> Iterable[ImageFile]:
        """Yield the local files behind the split, image files or shards."""
        assert self.opened is not None
        names = [part.partition("[")[0].strip() for part in self.split.split("+")]
        for name in names:
            if self.opened.listing is not None:
                yield from self.opened.listing.splits.get(name, ())
            for path in self.opened.shards.get(name, ()):
                yield ImageFile(path, os.path.basename(path))

    def describe(self, *others: "ImageSource", use: str = "") -> str:
        """Return lines that say what was taken: files used of files seen, splits, classes, sizes and values.

        Args:
            others ([`ImageSource`]): Further splits of the data set that are used.
            use (`str`, defaults to ""): What they are used for, as in " for kNN".
        """
        used = [self._counted(), *(f"{other.split}: {other.num_rows:,}{use}" for other in others)]
        first = f"{self.name}, {', '.join(used)}"
        if unused := self._unused(*others):
            first += f" (not used: {', '.join(unused)})"
        lines = [first]
        if self.opened is not None and self.opened.left_out:
            lines.append("left out: " + "; ".join(map(str, self.opened.left_out)))
        lines.append(", ".join(filter(None, [self._sizes(), self._classes()])))
        # Aligned with the first line, which follows a title of 8 characters and a space.
        return "\n         ".join(lines)

    def _counted(self) -> str:
        listing = None if self.opened is None else self.opened.listing
        if listing is None:
            return f"{self.split}: " + ("a stream of images" if self.num_rows is None else f"{self.num_rows:,} images")
        count = len(list(self._files())) if self.num_rows is None else self.num_rows
        streamed = "a stream of " if self.num_rows is None else ""
        return f"{self.split}: {streamed}{count:,} of {listing.seen:,} files"

    def record(self) -> dict[str, Any]:
        """Return what was taken, as JSON values for the record of a run."""
        listing = None if self.opened is None else self.opened.listing
        size = self.image_size if self.num_rows else None
        return {
            "dataset": self.name,
            "split": self.split,
            "images": self.num_rows,
            "files_seen": None if listing is None else listing.seen,
            "left_out": [] if self.opened is None else [str(entry) for entry in self.opened.left_out],
            "classes": self.class_names,
            "classes_from": self._classes_from(),
            "image_size": None if size is None else list(size),
            "pixels": self.pixels.describe(),
            "fingerprint": self.fingerprint,
        }

    def _unused(self, *others: "ImageSource") -> list[str]:
        """Return the splits that are not used, with the number of their images."""
        used = {part.partition("[")[0].strip() for source in (self, *others) for part in source.split.split("+")}
        unused = {} if self.opened is None else {k: v for k, v in self.opened.splits.items() if k not in used}
        return [
            f"{split} ({len(data):,})" if isinstance(data, datasets.Dataset) else split
            for split, data in unused.items()
        ]

    def _classes_from(self) -> str | None:
        if self.label_column is None:
            return None
        listing = None if self.opened is None else self.opened.listing
        return f"column {self.label_column!r}" if listing is None else listing.classes_from

    def _classes(self) -> str:
        if self.label_column is None:
            notes = [] if self.opened is None or self.opened.listing is None else self.opened.listing.notes
            return f"no labels ({'; '.join(notes)})" if notes else "no labels"
        if self.class_names is None:
            return f"integer labels from {self._classes_from()}"
        shown = [*self.class_names[:_SHOWN], *(["…"] if len(self.class_names) > _SHOWN else [])]
        return f"{len(self.class_names):,} classes from {self._classes_from()}: {', '.join(shown)}"

    def _sizes(self) -> str:
        size = self.image_size
        pixels = self.pixels.describe()
        sizes = f"{size[1]}×{size[0]} px" if size else f"different sizes, mostly {self.shorter_side:.0f} px and more"
        return f"{sizes}, {pixels}"

    @functools.cached_property
    def pixels(self) -> PixelRule:
        """The rule by which images become 8-bit RGB, the same for all splits of the data set.

        Raises:
            ValueError: A sampled image has channels or pages that cannot be used, see [`PixelRule`].
        """
        splits = {} if self.opened is None else self.opened.splits
        rows = splits.get("train", next(iter(splits.values()), self.dataset))
        features = rows.features or {}
        empty = isinstance(rows, datasets.Dataset) and len(rows) == 0
        if self.image_column not in features or empty:
            rows, features = self.dataset, {}
        images = [image for _, image in _sample(_undecoded(rows, self.image_column, features), self.image_column)]
        return PixelRule.of(images, title=self.name, pixel_range=self.pixel_range, nodata=self.nodata, pages=self.pages)

    def as_in(self, other: "ImageSource") -> "ImageSource":
        """Return this source with the `pixels` of another one, of which it may be another split."""
        if self.pixels == other.pixels:
            return self
        source = dataclasses.replace(self)
        source.pixels = other.pixels
        return source

    def page(self, row: int) -> int:
        """Return the page of a row's file."""
        return 0 if self.page_of_row is None else self.page_of_row[row]

    @functools.cached_property
    def sampled_sizes(self) -> list[tuple[int, int]]:
        """Height and width in pixels of each sampled image that can be read.

        Raises:
            ValueError: No sampled image can be read, or one has channels or pages that cannot be used.
        """
        self.pixels  # noqa: B018  # refuses channels and pages that cannot be used, and names them
        sizes, reason = [], "the data set is empty"
        for row, image in _sample(self.dataset, self.image_column):
            try:
                sizes.append(image_size(image, page=self.page(row)))
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
    dataset: Any,
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
    exclude: Iterable[str | Path] = (),
) -> ImageSource:
    """Open a data set of images and find its image and label columns.

    Args:
        dataset (`str`, `Path`, a list of them, or a data set of `datasets`): One of:

            - one or several folders of images: flat, one folder per class, with folders of splits, or nested, see
              [`~data.listing.list_folders`];
            - a text file with one path per line, or a CSV, TSV or parquet table with a column of paths, relative to
              the file, see [`~data.tables.list_table`];
            - shards that hold images: parquet, arrow or tar (WebDataset) files, or a pattern such as
              `"shards/train-{000..099}.tar"`; image files, or a pattern of them;
            - a folder of parquet or other files that `datasets` reads, or one written by `save_to_disk`;
            - a Hub id, or `"digits"`, which is embedded;
            - a `Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict`.
        name (`str`, *optional*): The configuration of a Hub data set.
        split (`str`, *optional*): The split, optionally with slices and sums as in `"train[:5000]"` or
            `"train+test"`. Defaults to `"train"` if there is one, else to the first that is named neither test nor
            validation.
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
        exclude (iterable of paths, *optional*): Folders inside the data set to leave out, such as that of the run.

    Returns:
        [`ImageSource`]: The data set and its columns.

    Raises:
        TypeError: `dataset` is neither a name, a folder nor a data set of `datasets`, or `split` is not a string.
        FileNotFoundError: The folder or file does not exist.
        ValueError: There are no images, the split or column does not exist, all splits are named test or validation,
            or the Hub does not provide the data set.

    Example:
        >>> source = load_source("digits", split="train[:100]")
        >>> source.num_rows, source.image_size
        (100, (32, 32))
    """
    if split is not None and not isinstance(split, str):
        raise TypeError(f"split must be a string such as 'train[:5000]', got {describe(split)}")
    check_reading(pixel_range, nodata, pages, max_unreadable)
    opened = _open(dataset, name, streaming, image_column, label_column, exclude)
    if not opened.splits:
        raise ValueError(f"dataset {opened.title} has no images{_what_else(opened.listing)}: pass another data set")
    if opened.listing is not None:
        # The columns of a table were used to make the listing.
        image_column = label_column = None
    rows = _rows_of(opened, split or default_split(opened), image_column, label_column, pages)
    return ImageSource(
        **rows,
        name=opened.title,
        pixel_range=pixel_range,
        nodata=nodata,
        pages=pages,
        max_unreadable=max_unreadable,
        opened=opened,
    )


def available_splits(dataset: Any, name: str | None = None) -> list[str]:
    """Return the names of a data set's splits.

    Args:
        dataset: The data set, in any form that [`load_source`] accepts.
        name (`str`, *optional*): The configuration of a Hub data set.

    Raises:
        TypeError: `dataset` is neither a name, a folder nor a data set of `datasets`.
        FileNotFoundError: The folder does not exist.
        ValueError: The folder cannot be read, or the Hub does not provide the data set.
    """
    if isinstance(dataset, str) and dataset != "digits" and not _is_local(dataset):
        return _call_hub(datasets.get_dataset_split_names, dataset, name)
    return list(_open(dataset, name, streaming=False).splits)


def default_split(opened: Opened) -> str:
    """Return the split used if none is requested: "train", else the first that is neither test nor validation.

    Raises:
        ValueError: All splits are named test or validation.
    """
    names = list(opened.splits)
    if "train" in names or opened.given:
        return "train" if "train" in names else names[0]
    usable = [name for name in names if split_kind(name, strict=False) not in HELD_OUT]
    if not usable:
        raise ValueError(
            f"data set {opened.title} has only the splits {', '.join(names)}, which are for measuring: pass --split "
            f"{names[0]} to use one of them nevertheless"
        )
    return usable[0]


def _what_else(listing: Listing | None) -> str:
    """Return what a data set without images has."""
    if listing is None or not listing.left_out:
        return ""
    return f" among {listing.seen:,} files ({'; '.join(map(str, listing.left_out))})"


# --- from the user's argument to splits ----------------------------------------------------------------------------


def _open(
    dataset: Any,
    name: str | None,
    streaming: bool,
    image_column: str | None = None,
    label_column: str | None = None,
    exclude: Iterable[str | Path] = (),
) -> Opened:
    """Return all splits of a data set."""
    if isinstance(dataset, list | tuple) and len(dataset) == 1 and isinstance(dataset[0], str | os.PathLike):
        dataset = dataset[0]
    if isinstance(dataset, str | os.PathLike):
        is_path, dataset = not isinstance(dataset, str), os.fspath(dataset)
        if dataset == "digits" and not is_path:
            opened = Opened(dict(digits()), "digits")
        elif not (is_path or _is_local(dataset)):
            return Opened(_call_hub(datasets.load_dataset, dataset, name, streaming=streaming), dataset)
        else:
            opened = _open_local([dataset], name, streaming, image_column, label_column, exclude)
    elif isinstance(dataset, list | tuple) and dataset and all(isinstance(d, str | os.PathLike) for d in dataset):
        opened = _open_local([os.fspath(d) for d in dataset], name, streaming, image_column, label_column, exclude)
    elif isinstance(dataset, dict) and all(isinstance(part, AnyDataset) for part in dataset.values()):
        splits = {str(split): data for split, data in dataset.items()}
        opened = Opened(splits, _name_of(dataset), given=len(splits) == 1)
    elif isinstance(dataset, AnyDataset):
        opened = Opened({str(dataset.split or "train"): dataset}, _name_of(dataset), given=True)
    else:
        raise TypeError(
            "dataset must be 'digits', a folder, a list or table of paths, a Hub id or a data set of the datasets "
            f"library, got {describe(dataset)}"
        )
    if streaming:
        opened.splits = {split: _to_stream(data) for split, data in opened.splits.items()}
    return opened


def _name_of(dataset: Any) -> str:
    part = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    return getattr(getattr(part, "info", None), "dataset_name", None) or "given"


def _to_stream(data: AnyDataset) -> datasets.IterableDataset:
    if isinstance(data, datasets.IterableDataset):
        return data
    # Workers divide a stream by its shards, so there must be at least as many shards as workers.
    return data.to_iterable_dataset(num_shards=max(min(len(data), 64), 1))


def _is_local(dataset: str) -> bool:
    """Return whether an argument names local files, or can only be an id on the Hub.

    Raises:
        FileNotFoundError: It is a path or pattern, and there is no such file.
    """
    path = Path(dataset).expanduser()
    if path.exists() or _is_pattern(dataset):
        return True
    relative = not path.is_absolute() and not dataset.startswith((".", "~"))
    if not relative or dataset.count("/") > 1 or path.suffix.lower() in {*LISTS, *TABLES, *_SHARDS}:
        raise FileNotFoundError(f"dataset {dataset}: there is no such file or folder")
    return False


def _is_pattern(dataset: str) -> bool:
    return not os.path.exists(dataset) and re.search(r"[*?\[{]", dataset) is not None


def _expand(pattern: str) -> list[Path]:
    """Return the files that a pattern with `*`, `?`, `[…]`, `**` and `{a,b}` or `{000..099}` matches.

    Raises:
        FileNotFoundError: There is none.
    """
    braces = re.search(r"\{([^{}]+)\}", pattern)
    if braces:
        start, end = pattern[: braces.start()], pattern[braces.end() :]
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
        if numbers:
            width = len(numbers[1])
            choices = [f"{number:0{width}d}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]
        else:
            choices = braces[1].split(",")
        return [path for choice in choices for path in _expand(start + choice + end)]
    if not re.search(r"[*?\[]", pattern) or os.path.exists(pattern):
        files = [pattern]
    else:
        files = sorted(glob.glob(pattern, recursive=True))
    found = [Path(file) for file in files if os.path.exists(file)]
    if not found:
        raise FileNotFoundError(f"dataset {pattern}: there is no such file or folder")
    return found


def _open_local(
    given: list[str],
    name: str | None,
    streaming: bool,
    image_column: str | None,
    label_column: str | None,
    exclude: Iterable[str | Path],
) -> Opened:
    """Open folders, lists, tables, shards or image files, all of one kind."""
    paths = [
        path
        for item in given
        for path in (_expand(os.path.expanduser(item)) if _is_pattern(item) else [Path(item).expanduser()])
    ]
    paths = list(dict.fromkeys(paths))
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"dataset {path}: there is no such file or folder")
    title = ", ".join(given)
    kinds = {_kind(path, image_column) for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"dataset names {' and '.join(sorted(kinds))}: pass several of one kind")
    kind = kinds.pop()
    if kind == "folders":
        return _open_folders(paths, title, name, streaming, exclude)
    if kind == "shards":
        return _open_shards(paths, title, streaming)
    if kind == "lists of paths":
        listings = [
            list_paths(path) if path.suffix.lower() in LISTS else list_table(path, image_column, label_column)
            for path in paths
        ]
        return _from_listing(functools.reduce(_united, listings), title)
    files = [ImageFile(str(path), str(path)) for path in paths]
    return _from_listing(Listing({"train": files}, len(files), []), title)


def _kind(path: Path, image_column: str | None) -> str:
    """Return what a path holds, in the plural."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return "folders"
    if not path.is_file():
        raise ValueError(f"dataset {path} is not a regular file: pass a folder or a file")
    if suffix in (".parquet", ".pq"):
        return "lists of paths" if holds_paths(path, image_column) else "shards"
    if suffix in _SHARDS:
        return "shards"
    if suffix in LISTS or suffix in TABLES:
        return "lists of paths"
    if suffix in readable_extensions():
        return "image files"
    raise ValueError(
        f"dataset {path} is a {suffix or 'file without an extension'}: pass a folder, a list of paths "
        f"({', '.join((*LISTS, *TABLES))}), or shards ({', '.join(_SHARDS)})"
    )


def _united(first: Listing, second: Listing) -> Listing:
    splits = {
        split: first.splits.get(split, []) + second.splits.get(split, [])
        for split in dict.fromkeys([*first.splits, *second.splits])
    }
    return Listing(
        splits,
        first.seen + second.seen,
        first.left_out + second.left_out,
        first.classes_from or second.classes_from,
        first.notes + second.notes,
        missing=first.missing + second.missing,
    )


def _open_shards(files: Sequence[Path], title: str, streaming: bool) -> Opened:
    """Open files that hold many images each; their splits are those that their names or folders name."""
    builders = {_SHARDS[path.suffix.lower()] for path in files}
    if len(builders) > 1:
        raise ValueError(f"dataset {title} has files of several formats ({', '.join(sorted(builders))}): pass one")
    shards: dict[str, list[str]] = {}
    for path in files:
        kind = split_kind(path.name.split(".")[0], strict=False) or split_kind(path.parent.name)
        shards.setdefault(kind or "train", []).append(str(path))
    try:
        splits = datasets.load_dataset(builders.pop(), data_files=shards, streaming=streaming)
    except Exception as error:  # each builder of datasets raises its own classes
        raise ValueError(f"dataset {title} cannot be read ({first_line(error)}): check its files") from error
    # Training images first, whatever the order of the names.
    return Opened({split: splits[split] for split in sorted(splits, key=SPLITS.index)}, title, shards=shards)


def _open_folders(
    folders: list[Path], title: str, name: str | None, streaming: bool, exclude: Iterable[str | Path]
) -> Opened:
    """Open one or several folders of images, or a folder of files that `datasets` reads."""
    if len(folders) == 1 and any((folders[0] / file).is_file() for file in _SAVED):
        saved = datasets.load_from_disk(str(folders[0]))
        if isinstance(saved, dict):
            return Opened({str(split): data for split, data in saved.items()}, title)
        return Opened({str(saved.split or "train"): saved}, title, given=True)
    listing = list_folders(folders, [Path(path) for path in exclude])
    images = sum(map(len, listing.splits.values()))
    if len(folders) > 1:
        return _from_listing(listing, title)
    described = [path for path in listing.tables if _describes_images(path)]
    shards = [path for path in listing.tables if Path(path).suffix.lower() in _SHARDS and _holds_images(path)]
    if not described and not (shards and images <= _FIGURES) and (images or not listing.tables):
        return _from_listing(listing, title)
    try:
        if described:
            splits = datasets.load_dataset("imagefolder", data_dir=str(folders[0]), streaming=streaming)
        else:
            splits = datasets.load_dataset(str(folders[0]), name, streaming=streaming)
    except Exception as error:  # each builder of datasets raises its own classes
        raise ValueError(
            f"dataset {title} cannot be read ({first_line(error)}): check its files{_what_else(listing)}"
        ) from error
    files = {"train": shards} if len(splits) == 1 else {}
    beside = [LeftOut("image files beside them", images)] if images else []
    return Opened({str(split): data for split, data in splits.items()}, title, shards=files, left_out=beside)


def _describes_images(path: str) -> bool:
    """Return whether a file is the metadata of an image folder of `datasets`: it names files in a column."""
    file = Path(path)
    if file.stem != "metadata" or file.suffix.lower() not in (".csv", ".jsonl", ".parquet"):
        return False
    try:
        if file.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            header = " ".join(pq.read_schema(file).names)
        else:
            with file.open(encoding="utf-8", errors="replace") as lines:
                header = next(itertools.islice(lines, 1), "")
    except (OSError, ValueError):
        return False
    return re.search(r"\bfile_names?\b|_file_names?\b", header) is not None


def _holds_images(path: str) -> bool:
    """Return whether a shard holds images; a table of numbers beside images does not."""
    if not path.lower().endswith((".parquet", ".pq")):
        return True
    try:
        return not holds_paths(Path(path))
    except ValueError:
        return False


def _from_listing(listing: Listing, title: str) -> Opened:
    """Return the data set of listed files: an undecoded `image` column and, if there are classes, a `label` column."""
    labels = {file.label for files in listing.splits.values() for file in files} - {None}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    numbers: dict[Any, int | None] = {None: None}
    if labels and all(isinstance(label, int) for label in labels):
        features["label"] = datasets.Value("int64")
        numbers |= {label: int(label) for label in labels if label is not None}
    elif labels:
        names = sorted({str(label) for label in labels})
        features["label"] = datasets.ClassLabel(names=names)
        numbers |= {label: names.index(str(label)) for label in labels}
    splits = {}
    for split, files in listing.splits.items():
        columns: dict[str, list[Any]] = {"image": [{"bytes": None, "path": file.path} for file in files]}
        if labels:
            columns["label"] = [numbers[file.label] for file in files]
        splits[split] = datasets.Dataset.from_dict(columns, features=features, split=split)
    return Opened(splits, title, listing, left_out=listing.left_out)


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


def _rows_of(
    opened: Opened, split: str, image_column: str | None, label_column: str | None, pages: str
) -> dict[str, Any]:
    """Return the fields of an [`ImageSource`] that belong to one split."""
    title = opened.title
    data = _select_split(opened.splits, split, title)
    if isinstance(data, datasets.Dataset) and len(data) == 0:
        raise ValueError(f"split {split} of dataset {title} has no images: pass another split")
    features = data.features or _resolve_features(data)
    image_column = _find_image_column(features, image_column, title)
    label_column = _find_label_column(features, label_column, title)
    classes = None
    if label_column and _is_text(features[label_column]):
        classes = _collect_class_names(opened.splits, label_column, title)
    elif label_column:
        classes = getattr(features[label_column], "names", None)
    data = _undecoded(data, image_column, features)
    page_of_row = None
    if pages == "images":
        data, page_of_row = _spread_pages(data, image_column, title)
    return {
        "dataset": data,
        "image_column": image_column,
        "label_column": label_column,
        "class_names": classes,
        "num_rows": len(data) if isinstance(data, datasets.Dataset) else None,
        "split": split,
        "page_of_row": page_of_row,
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


def _sample(data: AnyDataset, column: str) -> list[tuple[int, Any]]:
    """Return up to 64 undecoded images by row: evenly spaced over a data set, or the first ones of a stream."""
    data = data.select_columns([column])
    if isinstance(data, datasets.IterableDataset):
        return [(number, row[column]) for number, row in enumerate(data.take(SAMPLED_SIZES))]
    rows = np.linspace(0, len(data) - 1, min(SAMPLED_SIZES, len(data))).round().astype(int).tolist()
    return list(zip(rows, data.with_format(None)[rows][column], strict=True))


def _undecoded(data: AnyDataset, column: str, features: datasets.Features) -> AnyDataset:
    if isinstance(features.get(column), datasets.Image):
        return data.cast_column(column, datasets.Image(decode=False))
    return data


def _spread_pages(data: AnyDataset, column: str, title: str) -> tuple[datasets.Dataset, list[int]]:
    """Return a data set with one row for each page of its files, and the page of each row."""
    if isinstance(data, datasets.IterableDataset):
        raise ValueError(
            f"pages is images, but the data set {title} is a stream, whose pages are not counted: omit --streaming"
        )
    rows, pages = [], []
    for row, image in enumerate(data.select_columns([column]).with_format(None)):
        try:
            numbers = page_numbers(open_image(image[column]))
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
