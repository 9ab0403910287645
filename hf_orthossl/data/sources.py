"""A source of images: one split of a data set, its image and label columns, and what was taken of it."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

import datasets
import pyarrow as pa

from ..messages import describe
from .band_rule import BandRule
from .bands import Layout
from .columns import rows_of, sample, undecoded
from .decoding import UnreadableImage, image_size
from .fingerprint import fingerprint_of_files, fingerprint_of_rows, hash_of_times
from .image_cache import ImageCache
from .labels import Classes
from .listing import ImageFile
from .locations import EMBEDDED, AnyDataset, Opened, call_hub, default_split, is_local, open_splits, what_else
from .opening import image_name
from .options import MAX_UNREADABLE, check_reading
from .pixels import PixelRule
from .unreadable import Unreadable, check_unreadable

# Class names shown before "…".
_SHOWN = 6


@dataclass
class ImageSource:
    """A data set of images whose image and label columns are known.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): The rows. Images are not decoded, so that a damaged
            one cannot stop an iteration.
        image_column (`str`): The column of images.
        label_column (`str`, *optional*): The column of classes; `None` for unlabelled images.
        num_rows (`int`, *optional*): The number of images; `None` for a stream.
        name (`str`): The name of the data set.
        split (`str`): The split, as requested.
        pixel_range (`Sequence[float]`, *optional*): The values shown as black and white, as requested.
        nodata (`float`, *optional*): The value of missing pixels, as requested.
        pages (`str`, defaults to "first"): What a file of several pages gives, as requested.
        channels (`int`, *optional*): The number of channels, as requested; 3 by default.
        channel_axis (`str`, *optional*): Where arrays have their channels, as requested.
        max_unreadable (`float`, defaults to 0.01): The largest number or, below 1, share of images that may be
            unreadable.
        opened ([`Opened`], *optional*): All splits of the data set.
        page_of_row (`Sequence[int]`, *optional*): The page of each row's file, if every page is an image.
        classes ([`Classes`], *optional*): The classes of the label column.
        number_type (`str`, *optional*): The type of the numbers of a column of arrays.
    """

    dataset: AnyDataset
    image_column: str
    label_column: str | None
    num_rows: int | None
    name: str
    split: str
    pixel_range: Sequence[float] | None = None
    nodata: float | None = None
    pages: str = "first"
    channels: int | None = None
    channel_axis: str | None = None
    max_unreadable: float = MAX_UNREADABLE
    opened: Opened | None = field(default=None, repr=False)
    page_of_row: Sequence[int] | None = field(default=None, repr=False)
    classes: Classes | None = field(default=None, repr=False)
    number_type: str | None = field(default=None, repr=False)

    @property
    def num_channels(self) -> int:
        """Return the number of channels of the images as they are read."""
        return self.channels or 3

    @property
    def class_names(self) -> list[str] | None:
        """Return the name of each class, in the order of the class indices, if known."""
        return None if self.classes is None else self.classes.names

    @property
    def splits(self) -> list[str]:
        """Return the names of all splits of the data set."""
        return [self.split] if self.opened is None else list(self.opened.splits)

    def with_split(self, split: str) -> Self:
        """Return another split of the same data set, with the same columns, without opening the data set again.

        Args:
            split (`str`): The split, optionally with slices and sums as in `"test[:500]"`.

        Raises:
            ValueError: The split does not exist or has no images.
        """
        opened = self.opened or Opened({self.split: self.dataset}, self.name)
        rows = rows_of(opened, split, self.image_column, self.label_column, self.pages, self.channels)
        source = dataclasses.replace(self, **rows)
        if "pixels" in self.__dict__:
            source.pixels = self.pixels
        return source

    def subset(self, rows: Iterable[int], what: str) -> Self:
        """Return the source of some of the images, in the order of the data set.

        Args:
            rows (iterable of `int`): Their rows.
            what (`str`): Which ones they are, for the name of the split.

        Raises:
            ValueError: The data are a stream.
        """
        if not isinstance(self.dataset, datasets.Dataset):
            raise ValueError(f"dataset {self.name} is a stream, of which rows cannot be chosen: open it as a whole")
        chosen = sorted(int(row) for row in rows)
        pages = None if self.page_of_row is None else [self.page_of_row[row] for row in chosen]
        source = dataclasses.replace(
            self,
            dataset=self.dataset.select(chosen),
            num_rows=len(chosen),
            split=f"{self.split} ({what})",
            page_of_row=pages,
        )
        source.pixels = self.pixels
        return source

    @functools.cached_property
    def decoded(self) -> dict[tuple[int, int], ImageCache]:
        """Return the decoded images that data sets of this source keep in memory, by height and width."""
        return {}

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """Return a fingerprint of names, sizes and a sample of bytes; `None` for a stream whose files are not local.

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

    @functools.cached_property
    def cache_key(self) -> str:
        """Return the fingerprint and a hash of the times of all files, for what is kept only while none is touched."""
        files = [] if self.opened is None else [file.path for file in self._files()]
        return f"{self.fingerprint}-{hash_of_times(files)}"

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
        lines += self.pixels.notes
        # Aligned with the first line, which follows a title of 8 characters and a space.
        return "\n         ".join(lines)

    def _counted(self) -> str:
        listing = None if self.opened is None else self.opened.listing
        if listing is None:
            return f"{self.split}: " + ("a stream of images" if self.num_rows is None else f"{self.num_rows:,} images")
        count = len(list(self._files())) if self.num_rows is None else self.num_rows
        streamed = "a stream of " if self.num_rows is None else ""
        pages = "" if self.page_of_row is None else "pages "
        return f"{self.split}: {streamed}{count:,} {pages}of {listing.seen:,} files"

    @property
    def taken(self) -> str:
        """Return what was taken, for the record of a run, without names of files and classes, which may be private."""
        left_out = [] if self.opened is None else self.opened.left_out
        parts = [self._counted()]
        if left_out:
            parts.append("left out: " + ", ".join(f"{entry.count:,} {entry.reason}" for entry in left_out))
        parts.append(self._sizes())
        if self.label_column is None:
            parts.append("no labels")
        else:
            count = "integer labels" if self.class_names is None else f"{len(self.class_names):,} classes"
            parts.append(f"{count} from {self._classes_from()}")
        return "; ".join(parts)

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
        pixels = self.pixels.text
        sizes = f"{size[1]}×{size[0]} px" if size else f"different sizes, mostly {self.shorter_side:.0f} px and more"
        return f"{sizes}, {pixels}"

    @functools.cached_property
    def pixels(self) -> PixelRule | BandRule:
        """Return the rule by which images become 8 bits, RGB or of `channels`, the same for all splits of the data set.

        Raises:
            ValueError: A sampled image has channels or pages that cannot be used, see [`PixelRule`].
        """
        splits = {} if self.opened is None else self.opened.splits
        rows = splits.get("train", next(iter(splits.values()), self.dataset))
        features = rows.features or {}
        empty = isinstance(rows, datasets.Dataset) and len(rows) == 0
        if self.image_column not in features or empty:
            rows, features = self.dataset, {}
        images = [image for _, image in sample(undecoded(rows, self.image_column, features), self.image_column)]
        reading: dict[str, Any] = {"title": self.name, "within": self.within}
        reading |= {"pixel_range": self.pixel_range, "nodata": self.nodata}
        if self.num_channels in (1, 3):
            return PixelRule.of(images, pages=self.pages, channels=self.channels, **reading)
        layout = Layout(self.num_channels, self.channel_axis, self.pages, self.number_type)
        return BandRule.of(images, layout, **reading)

    def as_in(self, other: "ImageSource") -> "ImageSource":
        """Return this source with the `pixels` of another one, of which it may be another split."""
        if self.pixels == other.pixels:
            return self
        source = dataclasses.replace(self)
        source.pixels = other.pixels
        return source

    def class_index(self, label: Any) -> int:
        """Return the class index of a label, or -1 if it is missing.

        Raises:
            ValueError: The label is no class of the label column.
        """
        return -1 if self.classes is None else self.classes.index(label)

    @property
    def within(self) -> list[str] | None:
        """Return the folders in which the files that rows name must lie; `None` for lists and data of the user's."""
        return None if self.opened is None else self.opened.within

    def page(self, row: int) -> int:
        """Return the page of a row's file."""
        return 0 if self.page_of_row is None else self.page_of_row[row]

    def names(self, rows: Sequence[int]) -> list[str]:
        """Return the path of each of some images, or the name or row of one without a file.

        Args:
            rows (`Sequence[int]`): Their rows.

        Raises:
            ValueError: The data are a stream.
        """
        if not isinstance(self.dataset, datasets.Dataset):
            raise ValueError(f"dataset {self.name} is a stream, whose rows cannot be named: open it as a whole")
        table = self.dataset.select_columns([self.image_column]).with_format("arrow")
        names: list[str] = []
        # A few at a time, because their images are read with them.
        for start in range(0, len(rows), 256):
            part = list(rows[start : start + 256])
            column = table[part][self.image_column].combine_chunks()
            held = isinstance(column.type, pa.StructType) and column.type.get_field_index("path") >= 0
            paths = column.field("path").to_pylist() if held else [None] * len(part)
            names += [image_name(path, row) for row, path in zip(part, paths, strict=True)]
        return names

    @functools.cached_property
    def sampled_sizes(self) -> list[tuple[int, int]]:
        """Return height and width in pixels of each sampled image that can be read.

        Raises:
            ValueError: No sampled image can be read, or one has channels or pages that cannot be used.
        """
        rule = self.pixels  # refuses channels and pages that cannot be used, and names them
        sizes, reason = [], "the data set is empty"
        for row, image in sample(self.dataset, self.image_column):
            try:
                sizes.append(image_size(image, rule, page=self.page(row), within=self.within))
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
        """Return height and width `(H, W)` that all sampled images share, or `None` if they differ."""
        return self.sampled_sizes[0] if len(set(self.sampled_sizes)) == 1 else None

    @property
    def shorter_side(self) -> float:
        """Return the median length of the shorter side of the sampled images, in pixels."""
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
    channels: int | None = None,
    channel_axis: str | None = None,
    max_unreadable: float = MAX_UNREADABLE,
    exclude: Iterable[str | Path] = (),
) -> ImageSource:
    """Open a data set of images and find its image and label columns.

    Args:
        dataset (`str`, `Path`, a list of them, or a data set): One of:

            - one or several folders of images: flat, one folder per class, with folders of splits, or nested, see
              [`~data.listing.list_folders`];
            - a text file with one path per line, or a CSV, TSV or parquet table with a column of paths, relative to
              the file, see [`~data.tables.list_table`];
            - shards that hold images: parquet, arrow or tar (WebDataset) files, or a pattern such as
              `"shards/train-{000..099}.tar"`; image files, or a pattern of them;
            - a folder of parquet or other files that `datasets` reads, or one written by `save_to_disk`;
            - a Hub id, or `"digits"` or `"shapes"`, which are embedded;
            - a `Dataset`, `DatasetDict`, `IterableDataset` or `IterableDatasetDict`;
            - a list of Pillow images, or a data set of torchvision's kind, whose items are images or `(image, label)`.
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
        channels (`int`, *optional*): The number of channels C of the images. Without it, or with 3, images become RGB.
            With 1, one channel is kept of those whose channels are equal. With any other number, all channels are read
            as they are stored: bands of TIFF files, or their pages if these have one band each; `.npy` files and
            columns of arrays of shape `(H, W, C)` or `(C, H, W)`; opacity. An image of another number of channels
            counts as unreadable.
        channel_axis (`str`, *optional*): "first" or "last", where both dimensions of an array could be the channels.
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
    check_reading(pixel_range, nodata, pages, max_unreadable, channels, channel_axis)
    arrays = channels is not None
    opened = open_splits(dataset, name, streaming, image_column, label_column, exclude, arrays)
    if not opened.splits:
        raise ValueError(f"dataset {opened.title} has no images{what_else(opened.listing)}: pass another data set")
    if opened.listing is not None:
        # The columns of a table were used to make the listing.
        image_column = label_column = None
        absent = [Unreadable(row, name, "no such file") for row, name in enumerate(opened.listing.missing)]
        check_unreadable(absent, opened.listing.seen, max_unreadable)
    rows = rows_of(opened, split or default_split(opened), image_column, label_column, pages, channels)
    return ImageSource(
        **rows,
        name=opened.title,
        pixel_range=pixel_range,
        nodata=nodata,
        pages=pages,
        channels=channels,
        channel_axis=channel_axis,
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
    if isinstance(dataset, str) and dataset not in EMBEDDED and not is_local(dataset):
        return call_hub(datasets.get_dataset_split_names, dataset, name)
    return list(open_splits(dataset, name, streaming=False).splits)
