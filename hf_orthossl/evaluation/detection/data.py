"""Detection data sets as torch data sets: images and boxes, resized and flipped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...data import ImageSource, UnreadableImage, decode_image, load_source
from ...data.decoding import to_tensor
from ...data.opening import image_name
from ...data.unreadable import Unreadable, check_unreadable
from ...messages import suggest
from ..frozen import held_out_split
from .annotations import Annotations, correct_boxes, read_boxes
from .boxes import BOX_FORMATS, BoxFormat, common_format
from .coco import open_coco

# Maximum ratio of longer to shorter side: 1333 to 800 pixels, as in Detectron's recipes.
LONGEST = 1333 / 800
LARGEST_SIDE = 800


@dataclass
class DetectionBatch:
    """A batch of images of several sizes with their boxes.

    Args:
        images (`list[Tensor]`): Images `(3, h, w)`, uint8.
        targets (`list[dict]`): For each image `boxes` `(N, 4)` (corners in pixels of `images`), `labels` `(N,)`,
            `difficult` and `crowd` `(N,)` boolean, `scale` `(4,)` (factors from `boxes` to pixels of the original), and
            `index` (position in the data set).
        unreadable (`list[Unreadable]`): Images that could not be decoded and are not in the batch.
    """

    images: list[Tensor]
    targets: list[dict[str, Any]]
    unreadable: list[Unreadable]


class DetectionDataset(Dataset):
    """Images of one split with their boxes, all resized to the same length of the shorter side.

    In training, images are flipped left to right with probability ½ and boxes of crowds are excluded; VOC's difficult
    boxes are used for training, as in Detectron2. There is no other augmentation.

    Args:
        source ([`ImageSource`]): The images.
        annotations ([`Annotations`]): Their boxes.
        class_names (`Sequence[str]`): Names by label; boxes of other classes are excluded.
        image_size (`int`): Length of the shorter side, in pixels; the longer side has at most 1.67 times that.
        train (`bool`, defaults to `False`): Whether the images are for training.
        notes (iterable of `str`, *optional*): Sentences on what was left out when the split was opened.

    Raises:
        ValueError: If `image_size` is not a positive integer.
    """

    def __init__(
        self,
        source: ImageSource,
        annotations: Annotations,
        class_names: Sequence[str],
        image_size: int,
        *,
        train: bool = False,
        notes: Iterable[str] = (),
    ):
        if not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size is {image_size!r}: it must be a positive number of pixels")
        self.name, self.split = source.name, source.split
        self.class_names = list(class_names)
        self.image_size = image_size
        self.train = train
        self.box_format = annotations.box_format
        self._notes = [*notes, *annotations.notes(source.split)]
        self._unreadable: dict[int, Unreadable] = {}
        self._annotations = annotations
        self._source = source
        self._column = source.image_column
        self._images = source.dataset.select_columns([source.image_column]).with_format(None)
        places = {name: place for place, name in enumerate(self.class_names)}
        labels = [torch.tensor([places.get(name, -1) for name in names]) for names in annotations.classes]
        self._labels = [label.long() for label in labels]
        if foreign := sum(int((label < 0).sum()) for label in self._labels):
            self._notes.append(
                f"{foreign:,} boxes of {source.split} are of classes absent from training and were excluded."
            )

    def __len__(self) -> int:
        return len(self._annotations.rows)

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)

    @property
    def num_boxes(self) -> int:
        """Return the number of boxes in all images."""
        return sum(int((label >= 0).sum()) for label in self._labels)

    def image(self, index: int) -> Image.Image:
        """Return an image in its original size, upright, in RGB."""
        row = self._annotations.rows[index]
        source, value = self._source, self._images[row][self._column]
        return decode_image(value, source.pixels, page=source.page(row), within=source.within)

    def truth(self, index: int) -> dict[str, Tensor]:
        """Return the `boxes` of an image in pixels of the original, with `labels`, `difficult` and `crowd`."""
        known = self._labels[index] >= 0
        all_boxes = self._annotations
        parts = (all_boxes.boxes[index], self._labels[index], all_boxes.difficult[index], all_boxes.crowd[index])
        return {key: part[known] for key, part in zip(("boxes", "labels", "difficult", "crowd"), parts, strict=True)}

    def note_unreadable(self, images: Iterable[Unreadable]) -> None:
        """Record images that could not be decoded.

        Raises:
            TooManyUnreadable: If they are more than are allowed.
        """
        self._unreadable |= {image.index: image for image in images}
        check_unreadable(list(self._unreadable.values()), len(self), self._source.max_unreadable)

    @property
    def notes(self) -> list[str]:
        """Return a sentence for each way in which boxes or images have been clipped, dropped or excluded so far."""
        missing = len(self._unreadable)
        return self._notes + (
            [f"{missing:,} images of {self.split} cannot be decoded and were excluded."] if missing else []
        )

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]] | Unreadable:
        """Return image and target; for an image that cannot be decoded, return the reason."""
        try:
            image = self.image(index)
        except UnreadableImage as error:
            row = self._annotations.rows[index]
            return Unreadable(row, image_name(self._images[row][self._column], row), str(error))
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
    dataset: str | list[str] | datasets.DatasetDict,
    *,
    name: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    image_column: str | None = None,
    image_size: int | None = None,
    box_format: str | None = None,
    progress: bool = False,
) -> tuple[DetectionDataset, DetectionDataset]:
    """Open the training and test split of a detection data set, with classes matched by name.

    Args:
        dataset (`str` or `DatasetDict`): "shapes" (built in), a folder of images with COCO's JSON files (see
            [`open_coco`]), or a folder, a Hub id or a loaded data set with the columns that [`read_boxes`] reads.
        name (`str`, *optional*): Configuration of a Hub data set.
        train_split (`str`, *optional*): The training split; "train" by default.
        test_split (`str`, *optional*): The test split; the first of test, validation, valid and val by default.
        image_column (`str`, *optional*): Column of images; found by type by default.
        image_size (`int`, *optional*): Length of the shorter side, in pixels; by default that of the images, at most
            800.
        box_format (`str`, *optional*): What the four numbers of a box are, a key of `BOX_FORMATS`; by default it is
            recognized from all boxes, see [`~boxes.recognize_format`].
        progress (`bool`, defaults to `False`): Show a progress bar while reading boxes.

    Returns:
        `tuple[DetectionDataset, DetectionDataset]`: The training and the test split.

    Raises:
        ValueError: If a split has no boxes, there is no test split, the splits share no class or no format of boxes, or
            [`load_source`], [`open_coco`] or [`read_boxes`] rejects the data.
    """
    if box_format is not None and box_format not in BOX_FORMATS:
        raise ValueError(f"box_format {box_format!r} is unknown: {suggest(box_format, BOX_FORMATS)}")
    title = dataset if isinstance(dataset, str) else None
    coco = open_coco(Path(dataset)) if isinstance(dataset, str) and Path(dataset).is_dir() else None
    opened = dataset if coco is None else coco.splits
    columns = {"name": name, "image_column": image_column}
    train = load_source(opened, split=train_split, **columns)
    test = train.with_split(test_split or held_out_split(train))
    train.name = test.name = title or train.name
    raw = {source.split: read_boxes(source, progress=progress) for source in (train, test)}
    if box_format is None:
        formats = {split: part.recognize_format(f"{train.name}, split {split}") for split, part in raw.items()}
        meant = common_format(formats, train.name)
    else:
        meant = BoxFormat(box_format)
    boxes = [correct_boxes(raw[source.split], meant) for source in (train, test)]
    for source, annotations in zip((train, test), boxes, strict=True):
        if not annotations.names:
            raise ValueError(f"data set {train.name}, split {source.split}, has no usable box: pass another split")
    class_names = boxes[0].names
    if not set(class_names) & set(boxes[1].names):
        raise ValueError(
            f"data set {train.name}: split {test.split} has classes {', '.join(boxes[1].names[:5])}, none of which "
            f"occurs in split {train.split}: check both splits"
        )
    if image_size is None:
        image_size = min(round(train.shorter_side), LARGEST_SIDE)
    notes = [[] if coco is None else coco.notes[source.split.partition("[")[0]] for source in (train, test)]
    return (
        DetectionDataset(train, boxes[0], class_names, image_size, train=True, notes=notes[0]),
        DetectionDataset(test, boxes[1], class_names, image_size, notes=notes[1]),
    )


def collate_detection(items: list) -> DetectionBatch:
    """Return items of a [`DetectionDataset`] as a batch that lists unreadable images separately."""
    readable = [item for item in items if not isinstance(item, Unreadable)]
    return DetectionBatch(
        images=[image for image, _ in readable],
        targets=[target for _, target in readable],
        unreadable=[item for item in items if isinstance(item, Unreadable)],
    )


def _resized(image: Image.Image, shorter: int) -> Image.Image:
    scale = min(shorter / min(image.size), shorter * LONGEST / max(image.size))
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([width - right, top, width - left, bottom], dim=1)
