"""Read data sets of images with masks: the class of each pixel."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data import ImageSource, UnreadableImage, decode_image, load_source
from ...data.opening import image_name, open_image
from ...data.shapes import CLASSES
from ...data.unreadable import Unreadable, check_unreadable, left_out_note
from ...messages import suggest
from ...terminal import progress_bar
from ..frozen import held_out_split

# Columns that hold masks, by the usual names, and folders that do.
MASK_COLUMNS = ("mask", "annotation", "annotations", "label", "labels", "segmentation_mask", "semantic_mask", "seg_map")
MASK_FOLDERS = ("masks", "annotations", "labels")
IMAGE_FOLDER = "images"
# Split → names of its folder, ADE20K's among them.
SPLIT_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test",)}
# The value of pixels without a class, in nearly all data sets.
IGNORED = (255,)
# No data set of pixels has more classes; masks with more values hold colours or instances.
MOST_CLASSES = 4096


class SegmentationDataset:
    """Images of one split with the class of each of their pixels.

    Args:
        source ([`ImageSource`]): The images.
        mask_column (`str`): The column of masks.
        values (sequence of `int`): Value in masks of each class, by class index.
        names (sequence of `str`): Their names.
        ignored (sequence of `int`): Values of pixels that do not count.
    """

    def __init__(
        self,
        source: ImageSource,
        mask_column: str,
        values: Sequence[int],
        names: Sequence[str],
        ignored: Sequence[int],
    ):
        self.name, self.split = source.name, source.split
        self.values, self.class_names, self.ignored = list(values), list(names), list(ignored)
        self._source, self._mask_column = source, mask_column
        self._rows = _undecoded(source, mask_column)
        self._unreadable: dict[int, Unreadable] = {}
        self._strange: dict[int, Counter[int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor] | None:
        """Return an upright RGB image and the class indices `(H, W)` of its pixels, −1 where they do not count.

        `None` stands for an image or a mask that cannot be read.

        Raises:
            TooManyUnreadable: More than allowed cannot be read.
        """
        row, source = self._rows[index], self._source
        try:
            image = decode_image(row[source.image_column], source.pixels, page=source.page(index), within=source.within)
            mask = _read_mask(row[self._mask_column], source.within)
            if mask.shape != (image.height, image.width):
                raise UnreadableImage(
                    f"the image has {image.height}×{image.width} pixels and its mask {mask.shape[0]}×{mask.shape[1]}"
                )
        except UnreadableImage as error:
            self._unreadable[index] = Unreadable(index, image_name(row[source.image_column], index), str(error))
            check_unreadable(list(self._unreadable.values()), len(self), source.max_unreadable)
            return None
        return image, self._classes(index, mask)

    @property
    def num_unreadable(self) -> int:
        """Return how many images or masks could not be read so far."""
        return len(self._unreadable)

    @property
    def notes(self) -> list[str]:
        """Return a sentence for each way in which images or pixels have been left out so far."""
        notes = left_out_note(list(self._unreadable.values()), len(self), self.split)
        if strange := sum(self._strange.values(), Counter()):
            values = ", ".join(map(str, sorted(strange)[:5]))
            notes.append(
                f"{strange.total():,} pixels of {self.split} have values that no training mask has ({values}) and do "
                "not count."
            )
        return notes

    def _classes(self, index: int, mask: np.ndarray) -> Tensor:
        values = np.array(self.values)
        places = np.searchsorted(values, mask).clip(max=len(values) - 1)
        known = values[places] == mask
        if not known.all() and len(strange := mask[~known & ~np.isin(mask, self.ignored)]):
            self._strange[index] = Counter(strange.tolist())
        return torch.from_numpy(np.where(known, places, -1))


def segmentation_splits(
    dataset: str | list[str] | datasets.DatasetDict,
    *,
    name: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    ignore_values: Sequence[int] = IGNORED,
    progress: bool = False,
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Open the training and the test split of a data set of images and masks.

    A mask is an image of as many pixels whose values are classes: grey, or a palette's indices. The classes are the
    values of all training masks, in ascending order.

    Args:
        dataset (`str` or `DatasetDict`): "shapes" (built in), a folder with `images/SPLIT/…` and `masks/SPLIT/…` (or
            `annotations`, `labels`) of the same file names, or a folder, a Hub id or a loaded data set with columns of
            images and of masks.
        name (`str`, *optional*): Configuration of a Hub data set.
        train_split (`str`, *optional*): The training split; "train" by default.
        test_split (`str`, *optional*): The test split; the first of test, validation, valid and val by default.
        image_column (`str`, *optional*): Column of images; found by type by default.
        mask_column (`str`, *optional*): Column of masks; found by name by default.
        ignore_values (sequence of `int`, defaults to 255): Values of pixels that do not count.
        progress (`bool`, defaults to `False`): Show a progress bar while reading training masks.

    Returns:
        `tuple[SegmentationDataset, SegmentationDataset]`: The training and the test split.

    Raises:
        ValueError: There is no column of masks, no test split, or masks hold colours or fewer than two classes.
    """
    folder = Path(dataset) if isinstance(dataset, str) and Path(dataset).is_dir() else None
    opened = (folder and _open_folders(folder)) or dataset
    train = load_source(opened, name=name, split=train_split, image_column=image_column)
    test = train.with_split(test_split or held_out_split(train))
    train.name = test.name = dataset if isinstance(dataset, str) else train.name
    column = _find_mask_column(train, mask_column)
    values = _values(train, column, ignore_values, progress)
    if len(values) < 2:
        raise ValueError(
            f"masks of {train.name}, split {train.split}, have {len(values)} classes besides the ignored values "
            f"{', '.join(map(str, ignore_values))}: pass another mask_column or other ignore_values"
        )
    names = ["background", *CLASSES] if dataset == "shapes" else [str(value) for value in values]
    splits = [SegmentationDataset(source, column, values, names, ignore_values) for source in (train, test)]
    return splits[0], splits[1]


def describe_masks(train: SegmentationDataset, test: SegmentationDataset) -> str:
    """Return what was taken, in one line."""
    return (
        f"{train.name}: {len(train):,} images of {train.split} and {len(test):,} of {test.split}, "
        f"{train.num_classes} classes of pixels: {', '.join(train.class_names[:8])}"
        f"{', …' if train.num_classes > 8 else ''} (ignored: {', '.join(map(str, train.ignored)) or 'none'})"
    )


def _undecoded(source: ImageSource, mask_column: str) -> datasets.Dataset:
    data = source.dataset
    if not isinstance(data, datasets.Dataset):
        raise ValueError(f"data set {source.name} is a stream, whose masks are not read: open it without streaming")
    if isinstance(data.features[mask_column], datasets.Image):
        data = data.cast_column(mask_column, datasets.Image(decode=False))
    return data.select_columns([source.image_column, mask_column]).with_format(None)


def _find_mask_column(source: ImageSource, requested: str | None) -> str:
    features = source.dataset.features or {}
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if requested is not None:
        if requested not in features:
            raise ValueError(
                f"mask_column {requested!r} is not in data set {source.name}: {suggest(requested, features)}"
            )
        return requested
    others = [column for column in images if column != source.image_column]
    found = [column for column in MASK_COLUMNS if column in others] or (others if len(others) == 1 else [])
    if not found:
        raise ValueError(
            f"data set {source.name} has no column of masks besides its images ({', '.join(features)}): pass "
            f"mask_column, or a folder with {IMAGE_FOLDER}/ and {MASK_FOLDERS[0]}/ in it"
        )
    return found[0]


def _values(source: ImageSource, column: str, ignored: Sequence[int], progress: bool) -> list[int]:
    """Return the values of all masks but the ignored ones, in ascending order."""
    found: set[int] = set()
    unreadable: list[Unreadable] = []
    rows = _undecoded(source, column).select_columns([column])
    for number, row in enumerate(progress_bar(rows, "masks", progress)):
        try:
            mask = _read_mask(row[column], source.within)
        except UnreadableImage as error:
            unreadable.append(Unreadable(number, image_name(row[column], number), str(error)))
            continue
        # Sorting all pixels takes ten times as long as counting them.
        few = mask.dtype in (np.uint8, np.uint16)
        found.update((np.bincount(mask.ravel()).nonzero()[0] if few else np.unique(mask)).tolist())
        if len(found) > MOST_CLASSES:
            raise ValueError(
                f"masks of {source.name}, column {column!r}, have more than {MOST_CLASSES:,} values: they must hold a "
                "class for each pixel, and not instances"
            )
    check_unreadable(unreadable, len(rows), source.max_unreadable)
    return sorted(found - set(ignored))


def _read_mask(value: Any, within: Sequence[str] | None) -> np.ndarray:
    """Return the values `(H, W)` of a mask: a palette's indices, not its colours.

    Raises:
        UnreadableImage: It is damaged, or has different channels.
    """
    try:
        mask = np.asarray(open_image(value, within))
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise arbitrary exceptions for arbitrary bytes
        raise UnreadableImage(f"its mask cannot be decoded ({type(error).__name__})") from error
    if mask.ndim == 3:
        if (mask != mask[..., :1]).any():
            raise UnreadableImage("its mask holds colours, where each pixel must be the index of a class")
        mask = mask[..., 0]
    if not (np.issubdtype(mask.dtype, np.integer) or mask.dtype == bool):
        raise UnreadableImage(f"its mask holds {mask.dtype} values, where each pixel must be the index of a class")
    return mask


def _open_folders(folder: Path) -> datasets.DatasetDict | None:
    """Return the pairs of a folder with `images/` and `masks/`, by split; `None` if it is none.

    Raises:
        ValueError: An image has no mask of its name, or a mask no image.
    """
    masks = next((folder / name for name in MASK_FOLDERS if (folder / name).is_dir()), None)
    if masks is None or not (folder / IMAGE_FOLDER).is_dir():
        return None
    splits = {}
    for split, names in SPLIT_FOLDERS.items():
        place = next((name for name in names if (folder / IMAGE_FOLDER / name).is_dir()), None)
        if place is None:
            continue
        found = [_files(folder / IMAGE_FOLDER / place), _files(masks / place)]
        if alone := sorted(found[0].keys() ^ found[1].keys()):
            raise ValueError(
                f"{folder}: {len(alone):,} files of split {place} have no partner of the same name in "
                f"{IMAGE_FOLDER}/{place} and {masks.name}/{place}, such as {alone[0]!r}: complete or remove them"
            )
        columns = {name: [str(files[key]) for key in sorted(files)] for name, files in zip(_PAIR, found, strict=True)}
        splits[split] = datasets.Dataset.from_dict(columns, datasets.Features(dict.fromkeys(_PAIR, datasets.Image())))
    return datasets.DatasetDict(splits) if splits else None


_PAIR = ("image", "mask")


def _files(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by their path without a suffix."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder).with_suffix("")): path for path in paths}
