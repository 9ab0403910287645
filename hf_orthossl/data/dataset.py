"""Image sources as torch data sets of uint8 tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .augment.crop import crop_at_decode
from .augment.recipes import Recipe
from .decoding import UnreadableImage, decode_image, to_tensor
from .image_cache import CHOICES, ImageCache, fits_in_memory
from .sources import ImageSource
from .unreadable import LIMIT, TooManyUnreadable, Unreadable

# Unreadable images in a row after which the search for a stand-in may end.
_PATIENCE = 32


# Whole images travel to the device while they have at most this many times the pixels of a view; beyond, cropping
# at decode is cheaper than moving and multiplying them.
_LARGEST = 4


@dataclass(frozen=True)
class Shape:
    """Form of the items.

    Args:
        whole (`tuple[int, int]`, *optional*): Height and width of whole images.
        crops (`tuple[int, ...]`, *optional*): Sides of the crops, where they are made at decode.
    """

    whole: tuple[int, int] | None = None
    crops: tuple[int, ...] | None = None

    @classmethod
    def of(cls, source: ImageSource, views: Recipe | None, image_size: int | None) -> "Shape":
        """The form that suits the images.

        Raises:
            ValueError: the images are smaller than the views, or differ in size and no `image_size` is given.
        """
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size is {image_size}: it must be a positive number of pixels")
        if views is None and image_size is not None:
            return cls(whole=(image_size, image_size))
        common = source.image_size
        if image_size is None and common is None:
            raise ValueError(f"images of data set {source.name} differ in size: pass image_size")
        if views is None:
            return cls(whole=common)
        size = image_size or min(common)
        largest = max(views.sizes(size))
        if source.shorter_side < largest:
            height, width = common or sorted(source.sampled_sizes, key=min)[len(source.sampled_sizes) // 2]
            raise ValueError(
                f"images of data set {source.name} are {'' if common else 'mostly '}{width}×{height}, smaller than "
                f"image_size {largest}: pass --image_size {min(height, width)} or larger images"
            )
        if common is not None and common[0] * common[1] <= _LARGEST * largest**2:
            return cls(whole=common)
        return cls(crops=views.sizes(size))


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes (bicubic, keeping proportions) to cover `height` × `width` and crops the centre to exactly that."""
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    covered = (max(round(image.width * scale), width), max(round(image.height * scale), height))
    if image.size != covered:
        image = image.resize(covered, Image.Resampling.BICUBIC)
    left, top = (covered[0] - width) // 2, (covered[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


class ItemMaker:
    """Turns one row of a source into an item; shared by the map-style and the streaming data set.

    Args:
        source ([`ImageSource`]): Where rows come from.
        views ([`Recipe`], *optional*): Recipe of the views that a training step will make.
        image_size (`int`, *optional*): Side of the encoder's input, in pixels.
        seed (`int`, defaults to 0): Determines crops that are made at decode.

    Raises:
        ValueError: the images are smaller than the views, or differ in size and no `image_size` is given.
    """

    def __init__(self, source: ImageSource, views: Recipe | None, image_size: int | None, seed: int):
        self.source = source
        self.views = views
        self.seed = seed
        self.shape = Shape.of(source, views, image_size)
        self._classes = {name: number for number, name in enumerate(source.class_names or ())}
        # In shared memory, so that workers which outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __call__(self, value: Any, label: Any, index: int, epoch: int | None = None) -> dict[str, Any]:
        """The item of one row, in an epoch given here or by `set_epoch`; raises `UnreadableImage`."""
        image = decode_image(value)
        item = {"labels": self._label(label), "index": index, "unreadable": []}
        if self.shape.crops is None:
            return item | {"pixel_values": to_tensor(fit(image, *self.shape.whole))}
        epoch = int(self._epoch) if epoch is None else epoch
        generator = np.random.default_rng((self.seed % 2**63, epoch, index))
        return item | {
            "crops": [
                to_tensor(crop_at_decode(image, spec, size, generator))
                for spec, size in zip(self.views.views, self.shape.crops, strict=True)
            ]
        }

    def name(self, value: Any, index: int) -> str:
        """What a log calls the image of a row."""
        path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
        return path or f"row {index}"

    def _label(self, label: Any) -> int:
        if label is None:
            return -1
        return self._classes[label] if isinstance(label, str) else int(label)


class ImageDataset(Dataset):
    """Images of a source, decoded to uint8 RGB; training images with `views`, evaluation images without.

    An item is a `dict` with `labels` (`int`, −1 without label), `index` (row in the source), `unreadable` and

    - `pixel_values` `(3, H, W)` uint8: whole images, of the size all of them share; views are cut on the device. A
      stray image of another size is resized and centre-cropped to it. Without views and with `image_size` S: resized
      to S at the shorter side (bicubic) and centre-cropped to `(3, S, S)`.
    - or `crops`, one `(3, s, s)` uint8 tensor per view, where image sizes differ or are far above `image_size`:
      random resized crops made at decode, determined by seed, epoch and index.

    An unreadable image is replaced by the next readable one, which brings its own label and index, and is named in
    `unreadable` as `(index, name, reason)`.

    Args:
        source ([`ImageSource`]): Images.
        views ([`Recipe`], *optional*): Recipe of the views to be made of the batches.
        image_size (`int`, *optional*): Side of the encoder's input, in pixels; needed where image sizes differ.
        seed (`int`, defaults to 0): Determines crops made at decode.
        indices (`Sequence[int]`, *optional*): Rows to use, in this order; defaults to all.
        cache_images (`str`, defaults to `"never"`): Whether whole images stay in memory once they are decoded: "auto"
            for images of at most 96 pixels that fill at most a quarter of the free memory, "always", or "never". The
            items are the same.

    Raises:
        ValueError: the source is a stream, its images are smaller than the views, `image_size` is missing, or images
            cannot be kept as crops are made of them at decode.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        views: Recipe | None = None,
        image_size: int | None = None,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        cache_images: str = "never",
    ):
        if not isinstance(source.dataset, datasets.Dataset):
            raise ValueError(f"dataset {source.name} is a stream: use StreamingImageDataset")
        self.source = source
        self.indices = None if indices is None else [int(index) for index in indices]
        self._make = ItemMaker(source, views, image_size, seed)
        columns = [source.image_column] + ([source.label_column] if source.label_column else [])
        self._rows = source.dataset.select_columns(columns).with_format(None)
        self._cache = self._make_cache(cache_images)

    def __len__(self) -> int:
        return self.source.num_rows if self.indices is None else len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose crops are made at decode."""
        self._make.set_epoch(epoch)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The items at several positions, read from the table at once.

        Raises:
            TooManyUnreadable: no stand-in is found for an unreadable image.
        """
        rows = [self._row(position) for position in positions]
        if self._cache is None:
            return self._made(positions, rows)
        missing = self._cache.missing(rows)
        made = dict(zip(missing, self._made([positions[m] for m in missing], [rows[m] for m in missing]), strict=True))
        for item in made.values():
            self._cache.add(item)
        return [made[place] if place in made else self._cache[row] for place, row in enumerate(rows)]

    def _made(self, positions: Sequence[int], rows: list[int]) -> list[dict[str, Any]]:
        """The items of rows, which stand at these positions, from their files."""
        if not rows:
            return []
        table = self._rows[rows]
        images = table[self.source.image_column]
        labels = table[self.source.label_column] if self.source.label_column else [None] * len(rows)
        items = []
        for position, row, image, label in zip(positions, rows, images, labels, strict=True):
            try:
                items.append(self._make(image, label, row))
            except UnreadableImage as error:
                items.append(self._stand_in(position, Unreadable(row, self._make.name(image, row), str(error))))
        return items

    def _make_cache(self, choice: str) -> ImageCache | None:
        if choice not in CHOICES:
            raise ValueError(f"cache_images is {choice!r}: choose from {', '.join(CHOICES)}")
        shape = self._make.shape.whole
        if choice == "always" and shape is None:
            raise ValueError(
                f"cache_images is always, and of the images of {self.source.name} crops are made at decode, others in "
                "every epoch: leave it at auto"
            )
        keeps = choice == "always" or (choice == "auto" and shape is not None and fits_in_memory(len(self), shape))
        return ImageCache(self.source.num_rows, shape) if keeps else None

    def _row(self, position: int) -> int:
        size = len(self)
        if not -size <= position < size:
            raise IndexError(f"position {position} in a data set of {size} images")
        position = int(position) % size
        return position if self.indices is None else self.indices[position]

    def _stand_in(self, position: int, broken: Unreadable) -> dict[str, Any]:
        unreadable = [broken]
        # Beyond this many the run is bound to stop, so the search need not go on.
        patience = min(max(_PATIENCE, int(LIMIT * len(self)) + 1), len(self))
        while len(unreadable) < patience:
            position = (position + 1) % len(self)
            row = self._row(position)
            value = self._rows[row]
            image = value[self.source.image_column]
            try:
                item = self._make(image, value.get(self.source.label_column), row)
            except UnreadableImage as error:
                unreadable.append(Unreadable(row, self._make.name(image, row), str(error)))
            else:
                return item | {"unreadable": unreadable}
        raise TooManyUnreadable.of(unreadable, len(self))


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks the items of an [`ImageDataset`].

    Returns:
        `dict` with `pixel_values` `(B, 3, H, W)` uint8 or `crops` (one `(B, 3, s, s)` uint8 tensor per view),
        `labels` and `index` `(B,)` int64, and `unreadable`, one list of `(index, name, reason)` for the batch.
    """
    batch: dict[str, Tensor | list] = {
        "labels": torch.tensor([item["labels"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        # Plain tuples: the Trainer rebuilds every sequence of a batch from an iterator, which a named tuple refuses.
        "unreadable": [tuple(image) for item in items for image in item["unreadable"]],
    }
    if "crops" in items[0]:
        batch["crops"] = [torch.stack(crops) for crops in zip(*(item["crops"] for item in items), strict=True)]
    else:
        batch["pixel_values"] = torch.stack([item["pixel_values"] for item in items])
    return batch
