"""Object detection: fine-tune Faster R-CNN (C4 and FPN) or DETR on an encoder, and score it."""

from .annotations import Annotations, correct_boxes, read_boxes
from .data import DetectionBatch, DetectionDataset, collate_detection, detection_splits
from .drawing import draw_detections
from .finetune import build_detector, detect, detection_results, finetune_detector
from .metrics import coco_average_precision, detection_scores, voc_average_precision
from .models import Detector

__all__ = [
    "Annotations",
    "DetectionBatch",
    "DetectionDataset",
    "Detector",
    "build_detector",
    "coco_average_precision",
    "collate_detection",
    "correct_boxes",
    "detect",
    "detection_results",
    "detection_scores",
    "detection_splits",
    "draw_detections",
    "finetune_detector",
    "read_boxes",
    "voc_average_precision",
]
