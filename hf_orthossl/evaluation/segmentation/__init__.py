"""Evaluate the places of images: train a linear probe on patch tokens or feature maps to segment them."""

from .data import SegmentationDataset, segmentation_splits
from .probe import SegmentationProbe, intersection_over_union, segmentation_results

__all__ = [
    "SegmentationDataset",
    "SegmentationProbe",
    "intersection_over_union",
    "segmentation_results",
    "segmentation_splits",
]
