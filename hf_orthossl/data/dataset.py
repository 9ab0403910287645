"""Map-style torch data set of images, its batches, and the shape of its items: whole images or random crops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..messages import describe
from .augment.crop import cut, height_and_width, random_resized_crop, resized
from .augment.recipes import Recipe, get_recipe
from .columns import unformatted
from .decoding import decode_channels, to_tensor
from .image_cache import CHOICES, ImageCache, fits_in_memory
from .opening import UnreadableImage, image_name
from .sources import ImageSource
from .unreadable import TooManyUnreadable, Unreadable, allowed

# Stop searching for a replacement of an unreadable image after this many unreadable images in a row.
_PATIENCE = 32
# Whole images are sent to the device if they have at most this many times the pixels of a view. Larger ones are
# cropped during decoding, which is cheaper than transferring them and cropping them on the device.
_LARGEST = 4
# What happens to images that cannot be read.
UNREADABLE = ("replace", "omit")


@dataclass(frozen=True)
class Shape:
    """The shape of a data set's items: whole images, or one random crop per view; exactly one field is set.

    Args:
        whole (`tuple[int, int]`, *optional*): The height and width of whole images, in pixels.
        crops (`tuple[int, ...]`, *optional*): The side of each crop that is made during decoding, in pixels.
    """

    whole: tuple[int, int] | None = None
    crops: tuple[int, ...] | None = None

    @classmethod
    def of(cls, source: ImageSource, views: Recipe | None, image_size: int | None) -> "Shape":
        """Return the shape that suits the images of a source.

        Args:
            source ([`ImageSource`]): The images.
            views ([`Recipe`], *optional*): The recipe of the views to be made of the batches.
            image_size (`int`, *optional*): The side of the encoder's input, in pixels.

        Raises:
            TypeError: `image_size` is not an integer.
            ValueError: The images are smaller than the views, or differ in size and no `image_size` is given.
        """
        if image_size is not None and not isinstance(image_size, int | np.integer):
            raise TypeError(f"image_size must be a positive number of pixels, got {describe(image_size)}")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size is {image_size}: it must be a positive number of pixels")
        if views is None and image_size is not None:
            return cls(whole=(image_size, image_size))
        common = source.image_size
        if image_size is None:
            if common is None:
                raise ValueError(f"images of data set {source.name} differ in size: pass image_size")
            if views is None:
                return cls(whole=common)
            image_size = min(common)
        assert views is not None
        largest = max(views.sizes(image_size))
        if source.shorter_side < largest:
            height, width = common or sorted(source.sampled_sizes, key=min)[len(source.sampled_sizes) // 2]
            raise ValueError(
                f"images of data set {source.name} are {'' if common else 'mostly '}{width}×{height}, smaller than "
                f"image_size {largest}: pass --image_size {min(height, width)} or larger images"
            )
        if common is not None and common[0] * common[1] <= _LARGEST * largest**2:
            return cls(whole=common)
        return cls(crops=views.sizes(image_size))


def fit(image: Image.Image | np.ndarray, height: int, width: int) -> Image.Image | np.ndarray:
    """Resize an image (bicubic, keeping proportions) to cover `height` × `width` pixels, then crop its centre."""
    own_height, own_width = height_and_width(image)
    if (own_height, own_width) == (height, width):
        return image
    scale = max(height / own_height, width / own_width)
    covered = (max(round(own_height * scale), height), max(round(own_width * scale), width))
    if (own_height, own_width) != covered:
        image = resized(image, *covered, Image.Resampling.BICUBIC)
    return cut(image, (covered[0] - height) // 2, (covered[1] - width) // 2, height, width)


class ItemMaker:
    """Turns one row of a source into an item; shared by the map-style and the streaming data set.

    Args:
        source ([`ImageSource`]): The source of the rows.
        views ([`Recipe`] or `str`, *optional*): The recipe of the views that a training step will make, or its name.
        image_size (`int`, *optional*): The side of the encoder's input, in pixels.
        seed (`int`, defaults to 0): Determines the crops that are made during decoding.

    Raises:
        TypeError: `views` is neither a recipe nor the name of one, or `image_size` is not an integer.
        ValueError: The images are smaller than the views, differ in size and no `image_size` is given, or have channels
            or pages that cannot be used.
    """

    def __init__(self, source: ImageSource, views: Recipe | str | None, image_size: int | None, seed: int):
        self.source = source
        self.views = None if views is None else get_recipe(views)
        self.seed = seed
        self.shape = Shape.of(source, self.views, image_size)
        self._pixels = source.pixels
        # In shared memory, so that persistent workers see the number of the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines the crops, also in running workers."""
        self._epoch.fill_(epoch)

    def __call__(self, value: Any, label: Any, index: int, epoch: int | None = None) -> dict[str, Any]:
        """Return the item of one row.

        Args:
            value (`Any`): The undecoded image.
            label (`Any`): The class index, its name, or `None`.
            index (`int`): The number of the row in the source.
            epoch (`int`, *optional*): The epoch that determines the crops; defaults to that of
                [`~ItemMaker.set_epoch`].

        Raises:
            UnreadableImage: The image cannot be decoded.
        """
        image = decode_channels(value, self._pixels, page=self.source.page(index), within=self.source.within)
        item = {"labels": self.source.class_index(label), "index": index, "unreadable": []}
        if self.shape.whole is not None:
            return item | {"pixel_values": to_tensor(fit(image, *self.shape.whole))}
        assert self.views is not None
        assert self.shape.crops is not None
        epoch = int(self._epoch) if epoch is None else epoch
        generator = np.random.default_rng((self.seed % 2**63, epoch, index))
        return item | {
            "crops": [
                to_tensor(random_resized_crop(image, spec, size, generator))
                for spec, size in zip(self.views.views, self.shape.crops, strict=True)
            ]
        }

    def blank(self, unreadable: Unreadable) -> dict[str, Any]:
        """Return the black item of an image that cannot be read."""
        channels = self.source.num_channels
        item = {"labels": -1, "index": unreadable.index, "unreadable": [unreadable]}
        if self.shape.whole is not None:
            return item | {"pixel_values": torch.zeros(channels, *self.shape.whole, dtype=torch.uint8)}
        assert self.shape.crops is not None
        return item | {"crops": [torch.zeros(channels, size, size, dtype=torch.uint8) for size in self.shape.crops]}


class ImageDataset(Dataset):
    """Images of a source as uint8 tensors.

    Each item has `labels` (-1 without a label), `index` (the row in the source), `unreadable`, and one of:

    - `pixel_values` `(C, H, W)` uint8, with the `num_channels` of the source: the whole image, in the size that all
      images share; views are made of it on the device. An image of another size is resized and centre-cropped. Without
      views and with `image_size` S, the shorter side is resized to S (bicubic) and the centre is cropped to
      `(C, S, S)`.
    - `crops`, one `(C, s, s)` uint8 tensor per view, if image sizes differ or are much larger than `image_size`: random
      resized crops made during decoding, determined by the seed, the epoch and the index.

    An unreadable image is reported in `unreadable` as `(index, name, reason)`. For training it is replaced by the next
    readable one, with the label and index of that one. For measuring its item is black, with its own index and the
    label -1, and [`without_unreadable`] removes it from a batch.

    Args:
        source ([`ImageSource`]): The images, from [`load_source`].
        views ([`Recipe`] or `str`, *optional*): The recipe of the views to be made of the batches, or its name.
        image_size (`int`, *optional*): The side of the encoder's input, in pixels. Needed if image sizes differ.
        seed (`int`, defaults to 0): Determines the crops made during decoding.
        indices (`Sequence[int]`, *optional*): The rows to use, in this order; defaults to all rows.
        cache_images (`str`, defaults to `"never"`): Whether decoded whole images stay in memory: "auto" for images of
            at most 96 pixels that fill at most a quarter of the free memory, "always", or "never". The items do not
            depend on it.
        unreadable (`str`, defaults to `"replace"`): What happens to images that cannot be read: "replace" them, for
            training, or "omit" them, for measuring.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The source is a stream, its images are smaller than the views, `image_size` is missing, or
            `cache_images` is "always" although crops are made during decoding.

    Example:
        >>> data = ImageDataset(load_source("digits"), views="digits", image_size=32)
        >>> data[0]["pixel_values"].shape
        torch.Size([3, 32, 32])
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        views: Recipe | str | None = None,
        image_size: int | None = None,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        cache_images: str = "never",
        unreadable: str = "replace",
    ):
        require_source(source)
        if not isinstance(source.dataset, datasets.Dataset):
            raise ValueError(f"dataset {source.name} is a stream: use StreamingImageDataset")
        self.source = source
        self.indices = None if indices is None else [int(index) for index in indices]
        if unreadable not in UNREADABLE:
            raise ValueError(f"unreadable {unreadable!r} is unknown: choose from {', '.join(UNREADABLE)}")
        self.omits = unreadable == "omit"
        self._make_item = ItemMaker(source, views, image_size, seed)
        columns = [source.image_column] + ([source.label_column] if source.label_column else [])
        self._rows = unformatted(source.dataset.select_columns(columns), source.image_column)
        self._cache = self._make_cache(cache_images)

    def __len__(self) -> int:
        return len(self._rows) if self.indices is None else len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines the crops made during decoding."""
        self._make_item.set_epoch(epoch)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return the items at several positions, reading their rows from the table at once.

        Raises:
            TooManyUnreadable: No replacement is found for an unreadable image.
        """
        rows = [self._row(position) for position in positions]
        if self._cache is None:
            return self._decode(positions, rows)
        missing = self._cache.missing(rows)
        decoded = self._decode([positions[m] for m in missing], [rows[m] for m in missing])
        for item in decoded:
            self._cache.add(item)
        new = dict(zip(missing, decoded, strict=True))
        return [new[place] if place in new else self._cache[row] for place, row in enumerate(rows)]

    def _decode(self, positions: Sequence[int], rows: list[int]) -> list[dict[str, Any]]:
        """Return the items of rows at the given positions, without using the cache."""
        if not rows:
            return []
        table = self._rows[rows]
        images = table[self.source.image_column]
        labels = table[self.source.label_column] if self.source.label_column else [None] * len(rows)
        items = []
        for position, row, image, label in zip(positions, rows, images, labels, strict=True):
            try:
                items.append(self._make_item(image, label, row))
            except UnreadableImage as error:
                unreadable = Unreadable(row, image_name(image, row), str(error))
                items.append(self._make_item.blank(unreadable) if self.omits else self._replace(position, unreadable))
        return items

    def _make_cache(self, choice: str) -> ImageCache | None:
        if choice not in CHOICES:
            raise ValueError(f"cache_images {choice!r} is unknown: choose from {', '.join(CHOICES)}")
        shape = self._make_item.shape.whole
        if choice == "always" and shape is None:
            raise ValueError(
                f"cache_images is always, but the images of {self.source.name} are cropped at random when they are "
                "decoded, differently in every epoch: use auto"
            )
        if (
            shape is None
            or choice == "never"
            or (choice == "auto" and not fits_in_memory(len(self), shape, self.source.num_channels))
        ):
            return None
        if shape not in self.source.decoded:
            self.source.decoded[shape] = ImageCache(len(self._rows), shape, self.source.num_channels)
        return self.source.decoded[shape]

    def _row(self, position: int) -> int:
        size = len(self)
        if not -size <= position < size:
            raise IndexError(f"position {position} is out of range for a data set of {size} images")
        position = int(position) % size
        return position if self.indices is None else self.indices[position]

    def _replace(self, position: int, first: Unreadable) -> dict[str, Any]:
        """Return the next readable item after a position, and the unreadable images that it replaces."""
        unreadable = [first]
        # With more unreadable images than this, the run stops anyway.
        limit = self.source.max_unreadable
        patience = min(max(_PATIENCE, allowed(len(self), limit) + 1), len(self))
        while len(unreadable) < patience:
            position = (position + 1) % len(self)
            row = self._row(position)
            value = self._rows[row]
            image = value[self.source.image_column]
            try:
                item = self._make_item(image, value.get(self.source.label_column), row)
            except UnreadableImage as error:
                unreadable.append(Unreadable(row, image_name(image, row), str(error)))
            else:
                return item | {"unreadable": unreadable}
        raise TooManyUnreadable.of(unreadable, len(self), limit)


def require_source(source: ImageSource) -> None:
    """Raise `TypeError` unless a data set's source was opened by [`load_source`]."""
    if not isinstance(source, ImageSource):
        raise TypeError(f"source must be an ImageSource, got {describe(source)}: open it with load_source")


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the items of an [`ImageDataset`] into a batch.

    Args:
        items (`list[dict]`): The items.

    Returns:
        `dict`: `pixel_values` `(B, C, H, W)` uint8 or `crops` (one `(B, C, s, s)` uint8 tensor per view), `labels` and
        `index` `(B,)` int64, and `unreadable`, one list of `(index, name, reason)` for the whole batch.
    """
    batch: dict[str, Tensor | list] = {
        "labels": torch.tensor([item["labels"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        # Plain tuples, because the Trainer rebuilds every sequence of a batch from an iterator, which a named tuple
        # does not accept.
        "unreadable": [tuple(image) for item in items for image in item["unreadable"]],
    }
    if "crops" in items[0]:
        batch["crops"] = [torch.stack(crops) for crops in zip(*(item["crops"] for item in items), strict=True)]
    else:
        batch["pixel_values"] = torch.stack([item["pixel_values"] for item in items])
    return batch


def without_unreadable(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch of an [`ImageDataset`] that omits unreadable images without their rows, which may be none."""
    if not batch["unreadable"]:
        return batch
    left_out = {index for index, *_ in batch["unreadable"]}
    kept = torch.tensor([index not in left_out for index in batch["index"].tolist()])
    rest: dict[str, Any] = {name: value[kept] for name, value in batch.items() if isinstance(value, Tensor)}
    if "crops" in batch:
        rest["crops"] = [crops[kept] for crops in batch["crops"]]
    return rest | {"unreadable": batch["unreadable"]}
