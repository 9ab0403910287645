"""Pascal VOC's average precision of detected objects, without difficult boxes."""

from typing import Any

import datasets
import evaluate
import torch

from hf_orthossl.evaluation.detection.metrics import voc_average_precision
from hf_orthossl.metrics import show_card

_DESCRIPTION = """
Average precision of detections as the Pascal VOC challenges score it (Everingham et al., 2010): the mean over classes,
where detections of difficult boxes count as neither correct nor wrong.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of dict): per image `boxes` (N x 4, as x1, y1, x2, y2 in pixels), `scores` (N) and `labels` (N).
    references (list of dict): per image `boxes` (M x 4), `labels` (M) and `difficult` (M booleans).
    num_classes (int, optional): the number C of classes, with labels 0 to C - 1; by default the largest label of the
        references plus one.
    year (int, defaults to 2012): 2007 for the 11-point average, 2012 for the area under the curve.
    iou_threshold (float, defaults to 0.5): the minimum intersection over union of a correct detection.

Returns:
    `ap` (float, in [0, 1]) and `per_class` (dict of class to float).

Examples:
    >>> metric = evaluate.load("hf_orthossl/metrics/voc_ap")
    >>> detections = [{"boxes": [[0.0, 0.0, 9.0, 9.0]], "scores": [0.9], "labels": [0]}]
    >>> truth = [{"boxes": [[0.0, 0.0, 10.0, 10.0]], "labels": [0], "difficult": [False]}]
    >>> metric.compute(predictions=detections, references=truth)["ap"]
    1.0
"""

_CITATION = """
@article{everingham2010pascal,
  title   = {The {PASCAL} {V}isual {O}bject {C}lasses ({VOC}) challenge},
  author  = {Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
  journal = {International Journal of Computer Vision},
  volume  = {88},
  year    = {2010}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class VocAp(evaluate.Metric):
    """Pascal VOC's average precision of detected objects, without difficult boxes."""

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.Sequence(datasets.Sequence(datasets.Value("float64"), length=4))
        labels = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {
                        "boxes": boxes,
                        "scores": datasets.Sequence(datasets.Value("float64")),
                        "labels": labels,
                    },
                    "references": {
                        "boxes": boxes,
                        "labels": labels,
                        "difficult": datasets.Sequence(datasets.Value("bool")),
                    },
                }
            ),
            reference_urls=["https://doi.org/10.1007/s11263-009-0275-4"],
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        num_classes: int | None = None,
        year: int = 2012,
        iou_threshold: float = 0.5,
    ) -> dict[str, Any]:
        kinds = {"boxes": torch.float64, "scores": torch.float64, "labels": torch.int64, "difficult": torch.bool}
        detections, truths = (
            [{name: torch.tensor(values, dtype=kinds[name]) for name, values in image.items()} for image in images]
            for images in (predictions, references)
        )
        for image in (*detections, *truths):
            image["boxes"] = image["boxes"].reshape(-1, 4)
        if num_classes is None:
            num_classes = max((int(truth["labels"].max()) for truth in truths if len(truth["labels"])), default=-1) + 1
        mean, per_class = voc_average_precision(detections, truths, num_classes, year, iou_threshold)
        return {"ap": mean, "per_class": per_class}


if __name__ == "__main__":  # as the application of its Space
    show_card(__file__)
