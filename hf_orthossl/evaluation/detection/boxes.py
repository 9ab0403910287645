"""Recognize what the four numbers of a data set's boxes mean, and convert them to corners."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Format → what its four numbers are. The first is COCO's, which data sets on the Hub share.
BOX_FORMATS = {
    "coco": "x, y, width, height in pixels",
    "xyxy": "the corners x, y, x, y in pixels",
    "cxcywh": "centre x, y, width, height in pixels",
    "coco_normalized": "normalized x, y, width, height",
    "xyxy_normalized": "the corners x, y, x, y, normalized",
    "cxcywh_normalized": "normalized centre x, y, width, height",
}
# A box fits a format if it has an area and lies within its image up to one pixel and this share of its sides.
_TOLERANCE = 0.01
# The share of boxes that need not fit a format, because annotations have errors, and the share, and least number, of
# those that do not fit it by which a format is out of question.
_FEW, _MANY, _LEAST = 0.02, 0.1, 3
# With fewer boxes, nothing is concluded from boxes that fit no format.
_ENOUGH = 20


@dataclass(frozen=True)
class BoxFormat:
    """The format of a split's boxes.

    Args:
        name (`str`, defaults to "coco"): A key of `BOX_FORMATS`.
        others (`tuple[str, ...]`): Formats that the boxes fit as well; empty if the format was given.
    """

    name: str = "coco"
    others: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the format in words, with what to do if it is the wrong one."""
        text = BOX_FORMATS[self.name]
        if not self.others:
            return text
        fitting = " or ".join(f"{BOX_FORMATS[name]} (--box_format {name})" for name in self.others)
        return f"{text}; they would fit as {fitting} too"


def to_corners(boxes: Tensor, sizes: Tensor, box_format: str) -> Tensor:
    """Return boxes as corners x1, y1, x2, y2 in pixels.

    Args:
        boxes (`Tensor` of shape `(N, 4)`): Boxes, float64.
        sizes (`Tensor` of shape `(N, 2)` or `(2,)`): Width and height of their images.
        box_format (`str`): A key of `BOX_FORMATS`.
    """
    layout, _, normalized = box_format.partition("_")
    first, second = boxes[:, :2], boxes[:, 2:]
    if layout == "coco":
        second = first + second
    elif layout == "cxcywh":
        first, second = first - second / 2, first + second / 2
    if normalized:
        first, second = first * sizes, second * sizes
    return torch.cat([first, second], dim=1)


def recognize_format(
    boxes: Tensor, sizes: Tensor, areas: Tensor | None = None, where: str = "the data set"
) -> BoxFormat:
    """Return the format that all boxes of a split fit, COCO's if several do.

    Boxes are normalized if no number is above 1. Of x, y, width, height, of corners, and of centres, those are excluded
    by which many boxes have no area or extend beyond their images. Where `areas` equal those of one reading only, they
    decide. A few boxes that fit badly are taken for errors.

    Args:
        boxes (`Tensor` of shape `(N, 4)`): All boxes, float64.
        sizes (`Tensor` of shape `(N, 2)`): Width and height of their images.
        areas (`Tensor` of shape `(N,)`, *optional*): The areas that the data set states, NaN where it does not.
        where (`str`, defaults to "the data set"): What the boxes belong to, for the error.

    Raises:
        ValueError: Most boxes fit no format, or they fit several and not COCO's.
    """
    known = boxes.isfinite().all(1) & boxes.any(1)
    boxes, sizes = boxes[known], sizes[known]
    areas = None if areas is None else areas[known]
    if not len(boxes):
        return BoxFormat("coco")
    is_normalized = bool(boxes.max() <= 1 + _TOLERANCE) and bool(sizes.max() > 2)
    names = [name for name in BOX_FORMATS if name.endswith("_normalized") == is_normalized]
    misfits = {name: int((~_fits(boxes, sizes, name)).sum()) for name in names}
    inside = [name for name in names if misfits[name] <= _FEW * len(boxes)]
    fitting = inside if areas is None else _of_area(boxes, sizes, areas, inside)
    usual = names[0]
    if usual in fitting:
        return BoxFormat(usual, tuple(name for name in fitting if name != usual))
    # By its areas, or because many boxes do not fit it.
    excluded = usual in inside or misfits[usual] >= max(_LEAST, _MANY * len(boxes))
    if excluded and len(fitting) == 1:
        return BoxFormat(fitting[0])
    if excluded and fitting:
        raise ValueError(
            f"the boxes of {where} fit as {' and as '.join(BOX_FORMATS[name] for name in fitting)}: pass --box_format "
            f"{' or '.join(fitting)}"
        )
    if len(boxes) >= _ENOUGH and misfits[usual] > len(boxes) / 2:
        counts = ", ".join(f"{count:,} as {name}" for name, count in misfits.items())
        raise ValueError(
            f"most of the {len(boxes):,} boxes of {where} extend beyond their images or have no area, however they are "
            f"read ({counts}): check that they belong to these images, or pass --box_format {usual} to clip them"
        )
    return BoxFormat(usual)


def common_format(formats: dict[str, BoxFormat], where: str) -> BoxFormat:
    """Return the one format of several splits.

    Args:
        formats (`dict[str, BoxFormat]`): The format of each split.
        where (`str`): The data set, for the error.

    Raises:
        ValueError: No format fits all splits.
    """
    possible = [{one.name, *one.others} for one in formats.values()]
    shared = [name for name in BOX_FORMATS if all(name in names for names in possible)]
    if not shared:
        found = ", ".join(f"{BOX_FORMATS[one.name]} in {split}" for split, one in formats.items())
        raise ValueError(
            f"the boxes of {where} differ between its splits ({found}): convert one of them, or pass --box_format if "
            "they are the same"
        )
    return BoxFormat(shared[0], tuple(shared[1:]))


def _fits(boxes: Tensor, sizes: Tensor, name: str) -> Tensor:
    corners = to_corners(boxes, sizes, name)
    slack = 1 + _TOLERANCE * sizes
    has_area = (corners[:, 2:] > corners[:, :2]).all(1)
    return has_area & (corners[:, :2] >= -slack).all(1) & (corners[:, 2:] <= sizes + slack).all(1)


def _of_area(boxes: Tensor, sizes: Tensor, areas: Tensor, names: list[str]) -> list[str]:
    """Return those of the formats whose areas are the stated ones, or all of them if the areas decide nothing."""

    def share(area: Callable[[Tensor, Tensor], Tensor], name: str) -> float:
        corners = to_corners(boxes, sizes, name)
        expected = area(corners[:, 2:] - corners[:, :2], sizes)
        return float(((areas - expected).abs() <= _TOLERANCE * expected.abs()).double().mean())

    # Areas of normalized boxes may be stated in pixels or as shares of the image.
    kinds = (lambda sides, size: sides.prod(1), lambda sides, size: (sides / size).prod(1))
    equal = {name: max(share(kind, name) for kind in kinds) for name in names}
    confirmed = [name for name in names if equal[name] > 1 - _MANY]
    return confirmed if confirmed and all(equal[n] < 0.5 for n in names if n not in confirmed) else names
