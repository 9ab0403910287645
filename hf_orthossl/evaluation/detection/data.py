"""Detection data sets as torch data sets: images, boxes, and the two augmentations of a plain fine-tune."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...data import ImageSource, TooManyUnreadable, UnreadableImage, available_splits, decode_image, load_source
from ...data.decoding import to_tensor
from ...data.unreadable import LIMIT, Unreadable
from ..frozen import HELD_OUT_SPLITS
from .annotations import Annotations, read_annotations
from .shapes import shapes

# Longer over shorter side, at most: the 1333 over 800 pixels of Detectron's recipes.
LONGEST = 1333 / 800
LARGEST_SIDE = 800


@dataclass
class DetectionBatch:
    """Images of several sizes with what is in them.

    Args:
        images (`list[Tensor]`): uint8 `(3, h, w)`.
        targets (`list[dict]`): Per image `boxes` `(N, 4)` (corners in pixels of `images`), `labels` `(N,)`, `difficult`
            and `crowd` `(N,)` boolean, `scale` `(4,)` (factors from `boxes` to pixels of the original), and `index`
            (position in the data set).
        unreadable (`list[Unreadable]`): What could not be decoded, and is missing here.
    """

    images: list[Tensor]
    targets: list[dict[str, Any]]
    unreadable: list[Unreadable]


class DetectionDataset(Dataset):
    """Images of one split with their boxes, resized to one length of the shorter side.

    In training, images are flipped left to right with probability ½ and boxes of crowds are left out; VOC's difficult
    boxes are trained on, as in Detectron2. That and resizing are the whole augmentation.

    Args:
        source ([`ImageSource`]): The images.
        annotations ([`Annotations`]): Their boxes.
        class_names (`Sequence[str]`): Names by label; boxes of other classes are left out.
        image_size (`int`): Length of the shorter side, in pixels; the longer side gets at most 1.67 times that.
        train (`bool`, defaults to `False`): Whether to augment.
    """

    def __init__(
        self,
        source: ImageSource,
        annotations: Annotations,
        class_names: Sequence[str],
        image_size: int,
        *,
        train: bool = False,
    ):
        if not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size is {image_size!r}: it must be a positive number of pixels")
        self.name, self.split = source.name, source.split
        self.class_names = list(class_names)
        self.image_size = image_size
        self.train = train
        self._notes = annotations.notes(source.split)
        self._unreadable: dict[int, Unreadable] = {}
        self._annotations = annotations
        self._column = source.image_column
        self._images = source.dataset.select_columns([source.image_column]).with_format(None)
        places = {name: place for place, name in enumerate(self.class_names)}
        labels = [torch.tensor([places.get(name, -1) for name in names]) for names in annotations.classes]
        self._labels = [label.long() for label in labels]
        if foreign := sum(int((label < 0).sum()) for label in self._labels):
            self._notes.append(f"{foreign:,} boxes of {source.split} are of classes absent from training: left out.")

    def __len__(self) -> int:
        return len(self._annotations.rows)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_boxes(self) -> int:
        return sum(int((label >= 0).sum()) for label in self._labels)

    def image(self, index: int) -> Image.Image:
        """The image as it was, upright RGB."""
        return decode_image(self._images[self._annotations.rows[index]][self._column])

    def truth(self, index: int) -> dict[str, Tensor]:
        """`boxes` in pixels of the original image, `labels`, `difficult` and `crowd`."""
        known = self._labels[index] >= 0
        found = self._annotations
        parts = (found.boxes[index], self._labels[index], found.difficult[index], found.crowd[index])
        return {key: part[known] for key, part in zip(("boxes", "labels", "difficult", "crowd"), parts, strict=True)}

    def note_unreadable(self, images: Iterable[Unreadable]) -> None:
        """Takes note of images that could not be decoded.

        Raises:
            TooManyUnreadable: these are more than 1 % of the data set.
        """
        self._unreadable |= {image.index: image for image in images}
        if len(self._unreadable) > LIMIT * len(self):
            raise TooManyUnreadable.of(self._unreadable.values(), len(self))

    @property
    def notes(self) -> list[str]:
        """What was mended, dropped or left out so far, one sentence each."""
        missing = len(self._unreadable)
        return self._notes + ([f"{missing:,} images of {self.split} cannot be decoded: left out."] if missing else [])

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]] | Unreadable:
        """Image and target; or, of an image that cannot be decoded, why."""
        try:
            image = self.image(index)
        except UnreadableImage as error:
            row = self._annotations.rows[index]
            return Unreadable(row, f"row {row}", str(error))
        original = image.size
        image = _resized(image, self.image_size)
        pixels = to_tensor(image)
        scale = torch.tensor([original[0] / image.width, original[1] / image.height]).repeat(2)
        target = self.truth(index)
        target["boxes"] = target["boxes"] / scale
        if self.train:
            target = {key: part[~target["crowd"]] for key, part in target.items()}
            if torch.rand(()) < 0.5:
                pixels = pixels.flip(-1)
                target["boxes"] = _mirrored(target["boxes"], image.width)
        return pixels, target | {"scale": scale, "index": index}


def detection_splits(
    dataset: str | datasets.DatasetDict,
    *,
    name: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    image_column: str | None = None,
    image_size: int | None = None,
    progress: bool = False,
) -> tuple[DetectionDataset, DetectionDataset]:
    """The training and test split of a detection data set, with classes matched by name.

    Args:
        dataset: `"shapes"` (embedded), a folder, a Hub id, or a data set already loaded, with the columns that
            [`read_annotations`] reads.
        name (`str`, *optional*): Configuration of a Hub data set.
        train_split, test_split (`str`, *optional*): Default to "train" and the first of test, validation, valid, val.
        image_column (`str`, *optional*): Column of images; found by type.
        image_size (`int`, *optional*): Length of the shorter side, in pixels; defaults to the images' own, at most 800.
        progress (`bool`, defaults to `False`): Show a progress bar while boxes are read.

    Raises:
        ValueError: no boxes in a split, no test split, no class in common, or what [`load_source`] and
            [`read_annotations`] refuse.
    """
    title = dataset if isinstance(dataset, str) else None
    opened = shapes() if dataset == "shapes" else dataset
    columns = {"name": name, "image_column": image_column}
    train = load_source(opened, split=train_split, **columns)
    if test_split is None:
        test_split = _held_out(opened, name, train)
    test = load_source(opened, split=test_split, **columns)
    train.name = test.name = title or train.name
    found = [read_annotations(source, progress=progress) for source in (train, test)]
    for source, annotations in zip((train, test), found, strict=True):
        if not annotations.names:
            raise ValueError(f"data set {train.name}, split {source.split}: there is no usable box in it")
    class_names = found[0].names
    if not set(class_names) & set(found[1].names):
        raise ValueError(
            f"data set {train.name}: split {test.split} has classes {', '.join(found[1].names[:5])}, none of which "
            f"occurs in split {train.split}: check both splits"
        )
    if image_size is None:
        image_size = min(round(train.shorter_side), LARGEST_SIDE)
    return (
        DetectionDataset(train, found[0], class_names, image_size, train=True),
        DetectionDataset(test, found[1], class_names, image_size),
    )


def collate_detection(items: list) -> DetectionBatch:
    """Items of a [`DetectionDataset`] as lists; unreadable images are left out and named."""
    readable = [item for item in items if not isinstance(item, Unreadable)]
    return DetectionBatch(
        images=[image for image, _ in readable],
        targets=[target for _, target in readable],
        unreadable=[item for item in items if isinstance(item, Unreadable)],
    )


def _held_out(dataset: Any, name: str | None, train: ImageSource) -> str:
    found = [split for split in HELD_OUT_SPLITS if split in available_splits(dataset, name) and split != train.split]
    if not found:
        raise ValueError(
            f"data set {train.name} has no split named {', '.join(HELD_OUT_SPLITS)}: pass --test_split, or cut one "
            "off, as in --train_split 'train[:80%]' --test_split 'train[80%:]'"
        )
    return found[0]


def _resized(image: Image.Image, shorter: int) -> Image.Image:
    scale = min(shorter / min(image.size), shorter * LONGEST / max(image.size))
    size = tuple(max(round(side * scale), 1) for side in image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([width - right, top, width - left, bottom], dim=1)
