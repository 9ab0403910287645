"""Test images with what is in them and what was found, side by side."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ...spectra.figures import COLORS, new_figure, save_figure
from .data import DetectionDataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 4.2
# Beyond as many boxes, names would cover the image: colours and the key beneath say them.
_NAMED_BOXES = 6


def draw_detections(
    dataset: DetectionDataset,
    index: int,
    detections: dict[str, Tensor],
    path: str | PathLike,
    *,
    least_score: float = 0.5,
) -> Path:
    """Draws one image twice: with its true boxes, and with those found.

    Each class has a colour that colour-blind eyes tell apart, which a key names; from the eighth class on colours come
    again, with dashed lines. Difficult boxes are dotted.

    Args:
        dataset ([`DetectionDataset`]): The images.
        index (`int`): Which of them.
        detections (`dict`): `boxes` `(N, 4)` in pixels of the original image, `scores` and `labels` `(N,)`.
        path (`str` or path): The file to write; its suffix chooses the format.
        least_score (`float`, defaults to 0.5): Leave out what is less certain.
    """
    image, truth = dataset.image(index), dataset.truth(index)
    certain = detections["scores"] >= least_score
    found = {key: part[certain] for key, part in detections.items()}
    classes = sorted({*truth["labels"].tolist(), *found["labels"].tolist()})
    height = _WIDTH * image.height / image.width
    figure = new_figure(2 * _WIDTH, height + 0.8)
    left, right = figure.subplots(1, 2)
    for axes, boxes, title in (
        (left, truth, f"true: {len(truth['labels'])}"),
        (right, found, f"found with score ≥ {least_score:g}: {len(found['labels'])}"),
    ):
        axes.imshow(np.asarray(image), interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
        _draw_boxes(axes, boxes, dataset.class_names)
    if classes:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], linewidth=2.5, **_style(label)) for label in classes]
        names = [dataset.class_names[label] for label in classes]
        figure.legend(lines, names, loc="outside lower center", ncols=min(len(names), 7), fontsize=9, frameon=False)
    return save_figure(figure, path)


def chosen_images(count: int, total: int) -> Sequence[int]:
    """Up to `count` of `total` positions, evenly spread."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def _draw_boxes(axes: "Axes", boxes: dict[str, Tensor], names: list[str]) -> None:
    from matplotlib.patches import Rectangle

    scores = boxes.get("scores")
    for number, (box, label) in enumerate(zip(boxes["boxes"].tolist(), boxes["labels"].tolist(), strict=True)):
        style = _style(label)
        if "difficult" in boxes and boxes["difficult"][number]:
            style["linestyle"] = ":"
        corner, sides = (box[0] - 0.5, box[1] - 0.5), (box[2] - box[0], box[3] - box[1])
        # On a white line, so that no colour is lost on a ground of its own.
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor="white", linewidth=3))
        axes.add_patch(
            Rectangle(corner, *sides, fill=False, edgecolor=style["color"], linestyle=style["linestyle"], linewidth=1.8)
        )
        words = [names[label]] if len(boxes["labels"]) <= _NAMED_BOXES else []
        words += [f"{float(scores[number]):.2f}"] if scores is not None else []
        if words:
            plate = {"facecolor": "white", "edgecolor": style["color"], "linewidth": 0.8, "alpha": 0.9, "pad": 1}
            below = box[1] < 12  # at the upper edge there is no room above
            axes.text(
                *(box[0], box[1] + (1 if below else -1)),
                " ".join(words),
                fontsize=7,
                va="top" if below else "bottom",
                bbox=plate,
            )


def _style(label: int) -> dict[str, str]:
    return {"color": COLORS[label % len(COLORS)], "linestyle": "-" if label < len(COLORS) else "--"}
