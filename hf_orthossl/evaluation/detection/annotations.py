"""Read the boxes of a data set: convert and clip them to their images, drop empty ones, and count both."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...data import ImageSource, UnreadableImage
from ...data.decoding import image_size
from ...data.opening import image_name
from ...data.unreadable import Unreadable, check_unreadable
from ...terminal import progress_bar
from .boxes import BoxFormat, recognize_format, to_corners

_CATEGORY_NAMES = ("category", "categories", "category_id", "label", "labels")
# Minimum side of a box in pixels. Thinner boxes are in effect empty, and could vanish in float32 when flipped.
_THINNEST = 0.1
_WORDS = {
    "clipped": "{:,} boxes of {} extended beyond their image and were clipped",
    "empty": "{:,} boxes of {} have no area within their image and were dropped",
    "nameless": "{:,} boxes of {} have no class and were dropped",
    "without boxes": "{:,} images of {} have no boxes and are used without",
    "unreadable": "{:,} images of {} cannot be read and were excluded",
}


@dataclass
class Annotations:
    """The boxes of a split, image by image.

    Args:
        rows (`list[int]`): Rows of the source, one per readable image.
        boxes (`list[Tensor]`): Boxes `(N, 4)` of each image, float32: x and y of two opposite corners, in pixels.
        classes (`list[list[str]]`): Class names of the N boxes of each image.
        difficult (`list[Tensor]`): VOC's marks `(N,)` of each image, boolean.
        crowd (`list[Tensor]`): COCO's marks `(N,)` of each image, boolean.
        names (`list[str]`): Names of the classes that occur, in the data set's order.
        counts (`Counter`): Numbers of boxes and images that were clipped, dropped or excluded.
        box_format ([`~boxes.BoxFormat`]): What the numbers of the boxes were in the data set.
    """

    rows: list[int] = field(default_factory=list)
    boxes: list[Tensor] = field(default_factory=list)
    classes: list[list[str]] = field(default_factory=list)
    difficult: list[Tensor] = field(default_factory=list)
    crowd: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    box_format: BoxFormat = field(default_factory=BoxFormat)

    def notes(self, split: str) -> list[str]:
        """Return one sentence for each way in which boxes or images were clipped, dropped or excluded."""
        return [f"{words.format(self.counts[kind], split)}." for kind, words in _WORDS.items() if self.counts[kind]]


@dataclass
class RawBoxes:
    """The boxes of a split as the data set states them, image by image.

    Args:
        rows (`list[int]`): Rows of the source, one per readable image.
        boxes (`list[Tensor]`): The four numbers `(N, 4)` of the boxes of each image, float64.
        sizes (`list[tuple[int, int]]`): Width and height of each image.
        objects (`list[dict]`): What is known of the boxes of each image, as lists.
        known (`list[str]`, *optional*): Names of the classes, if `key` holds indices.
        key (`str`): The list of `objects` with the classes.
        unreadable (`int`): Number of images that cannot be read.
    """

    rows: list[int]
    boxes: list[Tensor]
    sizes: list[tuple[int, int]]
    objects: list[dict[str, list]]
    known: list[str] | None
    key: str
    unreadable: int

    def recognize_format(self, where: str) -> BoxFormat:
        """Return the format of the boxes, see [`~boxes.recognize_format`]."""
        counts = [len(boxes) for boxes in self.boxes]
        if not sum(counts):
            return BoxFormat("coco")
        sizes = torch.tensor(self.sizes, dtype=torch.float64).repeat_interleave(torch.tensor(counts), dim=0)
        stated = [objects.get("area") or [None] * n for objects, n in zip(self.objects, counts, strict=True)]
        areas = None
        if all(len(values) == n for values, n in zip(stated, counts, strict=True)):
            flat = [math.nan if area is None else float(area) for values in stated for area in values]
            areas = torch.tensor(flat, dtype=torch.float64)
        return recognize_format(torch.cat(self.boxes), sizes, areas, where)


def read_boxes(source: ImageSource, *, progress: bool = False) -> RawBoxes:
    """Read all boxes of a split as they are; only the headers of the images are read.

    Args:
        source ([`ImageSource`]): A split with a column `objects`, which has `bbox` (four numbers of any of
            `BOX_FORMATS`, relative to the upright image) and `category` (indices or names), and optionally `area`,
            `difficult` and `iscrowd`, as a mapping of lists or a list of mappings.
        progress (`bool`, defaults to `False`): Show a progress bar.

    Raises:
        ValueError: If the column is missing, the lists of a row differ in length, or more images than allowed cannot
            be read.
    """
    parts, key = _columns(source)
    raw = RawBoxes([], [], [], [], getattr(parts[key], "names", None), key, 0)
    unreadable = []
    columns = source.dataset.select_columns([source.image_column, "objects"]).with_format(None)
    rows = progress_bar(columns, "boxes", progress)
    for row, record in enumerate(rows):
        try:
            height, width = image_size(record[source.image_column], page=source.page(row), within=source.within)
        except UnreadableImage as error:
            unreadable.append(Unreadable(row, image_name(record[source.image_column], row), str(error)))
            continue
        objects = _as_lists(record["objects"], parts)
        _check_lengths(objects, ("bbox", key), source, row)
        raw.rows.append(row)
        numbers = [[math.nan if number is None else number for number in box] for box in objects.pop("bbox")]
        raw.boxes.append(torch.tensor(numbers, dtype=torch.float64).reshape(-1, 4))
        raw.sizes.append((width, height))
        raw.objects.append(objects)
    check_unreadable(unreadable, source.num_rows, source.max_unreadable)
    raw.unreadable = len(unreadable)
    return raw


def correct_boxes(raw: RawBoxes, box_format: BoxFormat) -> Annotations:
    """Return the boxes as corners within their images, and count those that were clipped or dropped.

    Args:
        raw ([`RawBoxes`]): The boxes.
        box_format ([`~boxes.BoxFormat`]): What their numbers are.
    """
    annotations, seen = Annotations(rows=raw.rows, box_format=box_format), set()
    for boxes, size, objects in zip(raw.boxes, raw.sizes, raw.objects, strict=True):
        corners, clipped = _corners(boxes, size, box_format.name)
        named = torch.tensor([category is not None for category in objects[raw.key]], dtype=torch.bool)
        solid = ((corners[:, 2:] - corners[:, :2]) >= _THINNEST).all(1)
        usable = solid & named
        annotations.counts["empty"] += int((named & ~solid).sum())
        annotations.counts["nameless"] += int((~named).sum())
        annotations.counts["clipped"] += int((clipped & usable).sum())
        annotations.counts["without boxes"] += int(not usable.any())
        categories = [category for category, keep in zip(objects[raw.key], usable, strict=True) if keep]
        seen.update(categories)
        annotations.boxes.append(corners[usable])
        annotations.classes.append([_name(category, raw.known) for category in categories])
        for mark, name in ((annotations.difficult, "difficult"), (annotations.crowd, "iscrowd")):
            mark.append(_marks(objects.get(name), len(usable))[usable])
    annotations.counts["unreadable"] = raw.unreadable
    annotations.names = [_name(category, raw.known) for category in sorted(seen)]
    return annotations


def _columns(source: ImageSource) -> tuple[Mapping[str, Any], str]:
    """Return the features of `objects`, and the name of the one with the classes."""
    objects = source.dataset.features.get("objects")
    objects = getattr(objects, "feature", objects)
    parts = objects if isinstance(objects, Mapping) else {}
    parts = {name: getattr(part, "feature", part) if name != "bbox" else part for name, part in parts.items()}
    key = next((name for name in _CATEGORY_NAMES if name in parts), None)
    if "bbox" not in parts or key is None:
        raise ValueError(
            f"data set {source.name} has no column 'objects' with 'bbox' and 'category', which detection needs: pass "
            "another data set, or the built-in --dataset shapes"
        )
    return parts, key


def _as_lists(objects: Any, parts: Mapping[str, Any]) -> dict[str, list]:
    """Return the objects of a row as a mapping of lists; missing lists are empty."""
    if isinstance(objects, list):
        return {name: [item[name] for item in objects] for name in parts}
    return {name: (objects or {}).get(name) or [] for name in parts}


def _check_lengths(objects: dict[str, list], names: tuple[str, ...], source: ImageSource, row: int) -> None:
    lengths = {name: len(objects[name]) for name in names}
    if len(set(lengths.values())) > 1 or any(len(box or ()) != 4 for box in objects["bbox"]):
        counts = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise ValueError(
            f"data set {source.name}, split {source.split}, row {row}: objects has {counts}: each box must have 4 "
            "numbers and one category"
        )


def _corners(boxes: Tensor, size: tuple[int, int], box_format: str) -> tuple[Tensor, Tensor]:
    """Return the corners within the image, and which boxes were clipped; boxes that are not finite become empty."""
    given = torch.where(boxes.isfinite().all(1, keepdim=True), boxes, 0.0)
    sides = torch.tensor(size, dtype=torch.float64)
    corners = to_corners(given, sides, box_format)
    inside = corners.clamp(min=0).minimum(sides.repeat(2))
    return inside.float(), ((corners - inside).abs() > _THINNEST).any(1)


def _marks(values: list | None, count: int) -> Tensor:
    # If any marks are missing, no box is marked.
    usable = values if values is not None and len(values) == count else [False] * count
    return torch.tensor([bool(value) for value in usable], dtype=torch.bool)


def _name(category: Any, known: list[str] | None) -> str:
    return str(category) if known is None else known[category]
