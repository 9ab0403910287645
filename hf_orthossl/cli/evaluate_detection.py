"""`orthossl evaluate --task detection`: its options, and the call that they end in."""

from dataclasses import dataclass, field
from pathlib import Path

from ..encoders import Encoder
from ..evaluation import Result
from ..evaluation.detection import DetectionDataset, detection_results, detection_splits
from ..evaluation.detection.finetune import OPTIMIZERS
from ..evaluation.detection.metrics import require_extra
from ..evaluation.detection.models import BATCH_NORM, HEADS
from ..messages import suggest


@dataclass
class DetectionArguments:
    """How to fine-tune and score a detector; needs the extra `hf-orthossl[detection]`."""

    _argument_group_name = "detection"

    detector: str = field(
        default="fpn", metadata={"help": "Faster R-CNN with fpn, or c4 (the paper's), or detr (RT-DETR v2)"}
    )
    steps: int = field(default=200, metadata={"help": "optimizer steps"})
    detection_batch_size: int = field(default=8, metadata={"help": "images per step; 9 in the paper"})
    detection_optimizer: str = field(
        default="adamw", metadata={"help": "adamw, which needs fewer steps, or sgd (the paper's)"}
    )
    detection_lr: float | None = field(
        default=None,
        metadata={
            "help": "learning rate (default: 5e-4 for adamw, 2e-4 with detr, the paper's 0.01 per 9 images for sgd)"
        },
    )
    batch_norm: str = field(
        default="trained", metadata={"help": "of the encoder: trained, or frozen for batches of one or two images"}
    )
    roi_samples: int = field(
        default=64, metadata={"help": "proposals per image that fpn and c4 learn from; 512 in Detectron"}
    )
    fpn_channels: int = field(default=128, metadata={"help": "width of fpn; 256 in Detectron"})
    drawn_images: int = field(default=8, metadata={"help": "test images to save with boxes drawn"})

    def __post_init__(self):
        for name, value, known in (
            ("detector", self.detector, HEADS),
            ("batch_norm", self.batch_norm, BATCH_NORM),
            ("detection_optimizer", self.detection_optimizer, OPTIMIZERS),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown: {suggest(value, known)}")
        if min(self.steps, self.detection_batch_size, self.roi_samples, self.fpn_channels) < 1 or self.drawn_images < 0:
            raise ValueError("steps, detection_batch_size, roi_samples and fpn_channels must be 1 or more")


def boxed_splits(
    dataset: str, image_size: int | None, **columns: str | None
) -> tuple[DetectionDataset, DetectionDataset]:
    """The two splits of a detection set; says first if the extra is missing."""
    require_extra()
    return detection_splits(dataset, image_size=image_size, progress=True, **columns)


def describe_boxes(splits: tuple[DetectionDataset, DetectionDataset]) -> str:
    """What the two splits hold, in one line."""
    train, test = splits
    parts = (f"{split.num_boxes:,} boxes in {len(split):,} images of {split.split}" for split in splits)
    return f"{train.name}: {train.num_classes} classes, {', '.join(parts)}, shorter side {test.image_size} px"


def measure_detection(
    encoder: Encoder,
    splits: tuple[DetectionDataset, DetectionDataset],
    args: DetectionArguments,
    *,
    seeds: range,
    num_workers: int,
    figures: Path,
) -> list[Result]:
    """One fine-tuning per seed; drawings are of the first."""
    results = []
    for seed in seeds:
        results += detection_results(
            encoder,
            *splits,
            head=args.detector,
            batch_norm=args.batch_norm,
            roi_samples=args.roi_samples,
            fpn_channels=args.fpn_channels,
            steps=args.steps,
            batch_size=args.detection_batch_size,
            optimizer=args.detection_optimizer,
            learning_rate=args.detection_lr,
            seed=seed,
            num_workers=num_workers,
            progress=True,
            figures=figures if seed == seeds[0] else None,
            num_figures=args.drawn_images,
        )
    return results
