"""Average precision of detections: COCO's, computed by pycocotools, and both versions of Pascal VOC's."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

VOC_YEARS = (2007, 2012)
_Boxes = Sequence[dict[str, Tensor]]


def require_extra() -> None:
    """Raise a ValueError if torchmetrics or pycocotools is not installed."""
    missing = [name for name in ("torchmetrics", "pycocotools") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"detection needs {' and '.join(missing)}, not installed: pip install 'hf-orthossl[detection]'"
        )


def detection_scores(predictions: _Boxes, truths: _Boxes, num_classes: int) -> dict[str, float]:
    """Return COCO's AP, AP50 and AP75 and Pascal VOC's AP50 of 2007 and 2012, each in [0, 1].

    Args:
        predictions (sequence of `dict`): See [`coco_average_precision`].
        truths (sequence of `dict`): See [`voc_average_precision`].
        num_classes (`int`): Number of classes C; labels are 0 to C − 1.
    """
    voc = {
        f"VOC{year % 100:02d}_AP50": voc_average_precision(predictions, truths, num_classes, year) for year in VOC_YEARS
    }
    return coco_average_precision(predictions, truths) | {name: mean for name, (mean, _) in voc.items()}


def coco_average_precision(predictions: _Boxes, truths: _Boxes) -> dict[str, float]:
    """Return COCO's AP (mean over IoU 0.50 to 0.95), AP50 and AP75, by torchmetrics and pycocotools.

    Precision is averaged over 101 points of recall and uses the 100 best detections of each image; classes without
    true boxes are excluded. Boxes of crowds may be detected any number of times; difficult boxes, which COCO does not
    have, count like all others.

    Args:
        predictions (sequence of `dict`): For each image `boxes` `(N, 4)` (corners, in pixels), `scores` `(N,)` and
            `labels` `(N,)`.
        truths (sequence of `dict`): For each image `boxes` `(M, 4)`, `labels` `(M,)` and optionally `crowd` `(M,)`.

    Raises:
        ValueError: If `truths` has no boxes, the two differ in length, or the [detection] extra is not installed.
    """
    require_extra()
    from torchmetrics.detection import MeanAveragePrecision

    _check(predictions, truths)
    # The default thresholds of torchmetrics are float32, in which a recall of exactly 0.3 is below 0.30000001.
    thresholds = {
        "rec_thresholds": np.linspace(0, 1, 101).tolist(),
        "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(),
    }
    metric = MeanAveragePrecision(backend="pycocotools", **thresholds)
    metric.warn_on_many_detections = False
    given = [{key: part[key] for key in ("boxes", "scores", "labels")} for part in predictions]
    wanted = [
        {"boxes": part["boxes"], "labels": part["labels"], "iscrowd": _marks(part, "crowd").long()} for part in truths
    ]
    metric.update(given, wanted)
    values = metric.compute()
    return {name: float(values[key]) for name, key in (("AP", "map"), ("AP50", "map_50"), ("AP75", "map_75"))}


def voc_average_precision(
    predictions: _Boxes, truths: _Boxes, num_classes: int, year: int = 2012, iou_threshold: float = 0.5
) -> tuple[float, dict[int, float]]:
    """Return Pascal VOC's mean average precision and that of each class, in [0, 1].

    Detections are evaluated in descending order of score. A detection that overlaps most with a difficult box is
    ignored; one that overlaps most with a box already detected, or with no box by at least the threshold, is wrong.
    Difficult boxes need not be detected, and neither do boxes of crowds, which VOC does not have. Classes with no other
    boxes are excluded. Overlaps are those of continuous boxes, which for whole pixels equals the devkit's "+ 1".

    Source: Everingham et al. (2010), section 4.2, and its devkits: in 2007 the mean of the best precision at recalls of
    at least 0, 0.1, …, 1; from 2010 on the area under the envelope of the precision.

    Args:
        predictions (sequence of `dict`): See [`coco_average_precision`].
        truths (sequence of `dict`): For each image `boxes` `(M, 4)`, `labels` `(M,)` and optionally `difficult` and
            `crowd` `(M,)`.
        num_classes (`int`): Number of classes C; labels are 0 to C − 1.
        year (`int`, defaults to 2012): 2007 or 2012.
        iou_threshold (`float`, defaults to 0.5): Minimum intersection over union, in (0, 1].

    Returns:
        `tuple[float, dict[int, float]]`: The mean, and the average precision of each class.

    Raises:
        ValueError: If the year is unknown, all boxes are difficult, or the two differ in length.
    """
    if year not in VOC_YEARS:
        raise ValueError(f"year is {year!r}: choose from {', '.join(map(str, VOC_YEARS))}")
    _check(predictions, truths)
    per_class = {}
    for label in range(num_classes):
        correct, total = _judged(predictions, truths, label, iou_threshold)
        if total:
            hits = correct.cumsum(0)
            precision = hits / torch.arange(1, len(hits) + 1)
            # At each rank, the best precision at this rank or a later one.
            envelope = precision.flip(0).cummax(0).values.flip(0)
            per_class[label] = (
                _eleven_points(hits, envelope, total) if year == 2007 else _area(correct, envelope, total)
            )
    if not per_class:
        raise ValueError("all true boxes are difficult: VOC's metric needs at least one that is not")
    return sum(per_class.values()) / len(per_class), per_class


def _judged(predictions: _Boxes, truths: _Boxes, label: int, threshold: float) -> tuple[Tensor, int]:
    """Return whether each detection of a class is correct, by descending score, and the number of true boxes."""
    scores, verdicts, total = [], [], 0
    for predicted, truth in zip(predictions, truths, strict=True):
        own = truth["labels"] == label
        difficult = (_marks(truth, "difficult") | _marks(truth, "crowd"))[own]
        total += int((~difficult).sum())
        chosen = (predicted["labels"] == label).nonzero().flatten()
        chosen = chosen[predicted["scores"][chosen].argsort(descending=True, stable=True)]
        overlaps = box_iou(predicted["boxes"][chosen].double(), truth["boxes"][own].double())
        free = torch.ones(int(own.sum()), dtype=torch.bool)
        for detection, row in zip(chosen, overlaps, strict=True):
            best = int(row.argmax()) if len(row) else -1
            meets = best >= 0 and row[best] >= threshold
            if meets and difficult[best]:
                continue
            scores.append(predicted["scores"][detection].double())
            verdicts.append(bool(meets and free[best]))
            if meets:
                free[best] = False
    if not scores:
        return torch.zeros(0, dtype=torch.long), total
    order = torch.stack(scores).argsort(descending=True, stable=True)
    return torch.tensor(verdicts)[order].long(), total


def _eleven_points(hits: Tensor, envelope: Tensor, total: int) -> float:
    # Compare integers: 3 of 10 must reach a recall of 0.3, but 3 · 0.1 in floating point is larger.
    reached = [(10 * hits >= point * total).nonzero() for point in range(11)]
    return sum(float(envelope[ranks[0, 0]]) for ranks in reached if len(ranks)) / 11


def _area(correct: Tensor, envelope: Tensor, total: int) -> float:
    return float((envelope * correct).sum()) / total


def _marks(part: dict[str, Any], name: str) -> Tensor:
    return part.get(name, torch.zeros(len(part["labels"]), dtype=torch.bool))


def _check(predictions: _Boxes, truths: _Boxes) -> None:
    if len(predictions) != len(truths):
        raise ValueError(
            f"predictions has {len(predictions)} images and truths {len(truths)}: pass one element per image in both"
        )
    if not any(len(part["boxes"]) for part in truths):
        raise ValueError("truths has no boxes: average precision needs at least one")
