"""Draw test images with their true boxes and the detected boxes side by side."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from ...spectra.figures import COLORS, new_figure, save_figure
from .data import DetectionDataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 4.2
# With more boxes, class names would cover the image; only colours and the legend then show the classes.
_NAMED_BOXES = 6


def draw_detections(
    dataset: DetectionDataset,
    index: int,
    detections: dict[str, Tensor],
    path: str | PathLike,
    *,
    least_score: float = 0.5,
) -> Path:
    """Draw one image twice: with its true boxes, and with the detected boxes.

    Each class has a colour from a palette for colour-blind readers, and a legend names the classes; from the eighth
    class on, colours repeat with dashed lines. Difficult boxes are dotted.

    Args:
        dataset ([`DetectionDataset`]): The images.
        index (`int`): Position of the image in the data set.
        detections (`dict`): `boxes` `(N, 4)` in pixels of the original image, `scores` and `labels` `(N,)`.
        path (`str` or path): The file to write; its suffix determines the format.
        least_score (`float`, defaults to 0.5): Minimum score of the boxes drawn.

    Returns:
        `Path`: The file.
    """
    image, truth = dataset.image(index), dataset.truth(index)
    certain = detections["scores"] >= least_score
    detected = {key: part[certain] for key, part in detections.items()}
    classes = sorted({*truth["labels"].tolist(), *detected["labels"].tolist()})
    height = _WIDTH * image.height / image.width
    figure = new_figure(2 * _WIDTH, height + 0.8)
    left, right = figure.subplots(1, 2)
    for axes, boxes, title in (
        (left, truth, f"true: {len(truth['labels'])}"),
        (right, detected, f"detected with score ≥ {least_score:g}: {len(detected['labels'])}"),
    ):
        axes.imshow(np.asarray(image), interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
        _draw_boxes(axes, boxes, dataset.class_names)
    if classes:
        from matplotlib.lines import Line2D

        styles = [_style(label) for label in classes]
        lines = [Line2D([], [], linewidth=2.5, color=color, linestyle=line) for color, line in styles]
        names = [dataset.class_names[label] for label in classes]
        figure.legend(lines, names, loc="outside lower center", ncols=min(len(names), 7), fontsize=9, frameon=False)
    return save_figure(figure, path)


def chosen_images(count: int, total: int) -> Sequence[int]:
    """Return up to `count` of `total` positions, evenly spaced."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def _draw_boxes(axes: "Axes", boxes: dict[str, Tensor], names: list[str]) -> None:
    from matplotlib.patches import Rectangle

    scores = boxes.get("scores")
    for number, (box, label) in enumerate(zip(boxes["boxes"].tolist(), boxes["labels"].tolist(), strict=True)):
        color, line = _style(label)
        if "difficult" in boxes and boxes["difficult"][number]:
            line = ":"
        corner, sides = (box[0] - 0.5, box[1] - 0.5), (box[2] - box[0], box[3] - box[1])
        # Draw a wider white line below, so that the box is visible on a background of the same colour.
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor="white", linewidth=3))
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=color, linestyle=line, linewidth=1.8))
        words = [names[label]] if len(boxes["labels"]) <= _NAMED_BOXES else []
        words += [f"{float(scores[number]):.2f}"] if scores is not None else []
        if words:
            plate = {"facecolor": "white", "edgecolor": color, "linewidth": 0.8, "alpha": 0.9, "pad": 1}
            below = box[1] < 12  # no room above the box at the upper edge
            axes.text(
                *(box[0], box[1] + (1 if below else -1)),
                " ".join(words),
                fontsize=7,
                va="top" if below else "bottom",
                bbox=plate,
            )


def _style(label: int) -> tuple[str, Literal["-", "--", ":"]]:
    """Return the colour and line style of a class."""
    return COLORS[label % len(COLORS)], "-" if label < len(COLORS) else "--"
