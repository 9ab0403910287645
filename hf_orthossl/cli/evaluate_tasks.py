"""The tasks of `orthossl evaluate` with options of their own: fine-tuning, transfer, detection."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data import ImageSource
from ..encoders import Encoder
from ..evaluation import (
    FineTuningArguments,
    Result,
    Transfer,
    TransferSet,
    finetune_encoder,
    transfer_sets,
    transfer_table,
)
from ..evaluation.detection import DetectionDataset, detection_results, detection_splits
from ..evaluation.detection.finetune import OPTIMIZERS
from ..evaluation.detection.metrics import require_extra
from ..evaluation.detection.models import BATCH_NORM, HEADS
from ..messages import suggest


@dataclass
class FineTuneOptions:
    """Options of fine-tuning the whole encoder with a linear head."""

    _argument_group_name = "fine-tuning"

    finetune_epochs: int = field(default=50, metadata={"help": "maximum number of passes over the training images"})
    finetune_lr: float = field(default=1e-3, metadata={"help": "learning rate of the head"})
    finetune_batch_size: int = field(default=128, metadata={"help": "images per step"})
    layer_decay: float = field(default=0.75, metadata={"help": "factor of the learning rate per layer, head first"})
    mixup: float = field(default=0.0, metadata={"help": "α of mixup; 0 for none"})
    cutmix: float = field(default=0.0, metadata={"help": "α of CutMix; 0 for none"})
    label_smoothing: float = field(default=0.0, metadata={"help": "share of the label spread over all classes"})
    validation_share: float = field(
        default=0.1, metadata={"help": "share of the training images held out to choose the best epoch"}
    )
    patience: int = field(default=10, metadata={"help": "epochs without improvement after which training stops"})
    bf16: bool = field(default=False, metadata={"help": "fine-tune in bfloat16"})

    def arguments(self, *, output_dir: str, device: str | None, num_workers: int, seed: int) -> FineTuningArguments:
        """Return the settings of [`finetune_encoder`].

        Args:
            output_dir (`str`): Folder of the best weights until training has ended.
            device (`str`, *optional*): The device; "cpu" does not use a GPU.
            num_workers (`int`): Number of processes that decode images.
            seed (`int`): Seed of training.

        Raises:
            ValueError: If an option is out of range.
        """
        return FineTuningArguments(
            output_dir,
            num_train_epochs=self.finetune_epochs,
            learning_rate=self.finetune_lr,
            per_device_train_batch_size=self.finetune_batch_size,
            layer_decay=self.layer_decay,
            mixup=self.mixup,
            cutmix=self.cutmix,
            label_smoothing_factor=self.label_smoothing,
            validation_share=self.validation_share,
            patience=self.patience,
            bf16=self.bf16,
            use_cpu=device == "cpu",
            dataloader_num_workers=num_workers,
            seed=seed,
            report_to=[],
        )


def measure_finetune(
    encoder: Encoder, train: ImageSource, test: ImageSource, runs: Sequence[FineTuningArguments]
) -> tuple[list[Result], list[str]]:
    """Fine-tune once for each element of `runs`, and return results and notes."""
    results: list[Result] = []
    notes: list[str] = []
    for args in runs:
        tuned = finetune_encoder(encoder, train, test, args)
        results += tuned.results
        notes = tuned.notes
    return results, notes


@dataclass
class TransferOptions:
    """Options of the transfer task; its linear probes follow the options of the linear task."""

    _argument_group_name = "transfer"

    transfer_sets: list[str] | None = field(
        default=None,
        metadata={
            "help": "names of the suite, Hub ids or folders (default: cifar10 cifar100 food101 flowers102 dtd gtsrb)"
        },
    )
    transfer_data: str | None = field(
        default=None, metadata={"help": "folder whose subfolders with these names replace the sets on the Hub"}
    )
    transfer_knn: bool = field(default=False, metadata={"help": "also measure kNN on each set"})

    @property
    def sets(self) -> list[TransferSet]:
        """The transfer sets of these options."""
        return transfer_sets(self.transfer_sets, self.transfer_data)

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes of these options."""
        return ("linear", "knn") if self.transfer_knn else ("linear",)


def transfer_summary(outcomes: dict[str, Transfer]) -> str:
    """Return the table of all models, each note once, and the failures.

    Args:
        outcomes (`dict[str, Transfer]`): Outcome of each model.
    """
    failures = {(model, name): why for model, one in outcomes.items() for name, why in one.failures.items()}
    notes = dict.fromkeys(note for one in outcomes.values() for note in one.notes)
    table = transfer_table([result for one in outcomes.values() for result in one.results], failures)
    reasons = dict.fromkeys(f"Failed: {name}: {why}" for (_, name), why in failures.items())
    return "\n".join([table, *(f"Note: {note}" for note in notes), *reasons])


@dataclass
class DetectionArguments:
    """Options of fine-tuning and scoring a detector, for which `hf-orthossl[detection]` must be installed."""

    _argument_group_name = "detection"

    detector: str = field(
        default="fpn", metadata={"help": "fpn or c4 (the paper's) for Faster R-CNN, or detr (RT-DETR v2)"}
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
        default="trained",
        metadata={"help": "encoder's batch norm: trained, or frozen for batches of one or two images"},
    )
    roi_samples: int = field(
        default=64, metadata={"help": "proposals per image that train fpn and c4; 512 in Detectron"}
    )
    fpn_channels: int = field(default=128, metadata={"help": "width of fpn; 256 in Detectron"})
    drawn_images: int = field(default=8, metadata={"help": "number of test images to save with their boxes drawn"})

    def __post_init__(self):
        for name, value, known in (
            ("detector", self.detector, HEADS),
            ("batch_norm", self.batch_norm, BATCH_NORM),
            ("detection_optimizer", self.detection_optimizer, OPTIMIZERS),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown: {suggest(value, known)}")
        if min(self.steps, self.detection_batch_size, self.roi_samples, self.fpn_channels) < 1 or self.drawn_images < 0:
            raise ValueError(
                f"steps is {self.steps}, detection_batch_size {self.detection_batch_size}, "
                f"roi_samples {self.roi_samples} and fpn_channels {self.fpn_channels}: they must be 1 or more; "
                f"drawn_images is {self.drawn_images}: it must be 0 or more"
            )


def boxed_splits(
    dataset: str, image_size: int | None, **columns: str | None
) -> tuple[DetectionDataset, DetectionDataset]:
    """Open the two splits of a detection set.

    Raises:
        ValueError: If the [detection] extra is not installed, or as in [`detection_splits`].
    """
    require_extra()
    return detection_splits(dataset, image_size=image_size, progress=True, **columns)


def describe_boxes(splits: tuple[DetectionDataset, DetectionDataset]) -> str:
    """Describe the two splits in one line."""
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
    """Fine-tune and score a detector for each seed; the first one's detections are drawn.

    Args:
        encoder ([`Encoder`]): The encoder.
        splits (`tuple[DetectionDataset, DetectionDataset]`): The training and the test split.
        args (`DetectionArguments`): The options.
        seeds (`range`): The seeds.
        num_workers (`int`): Number of processes that decode images.
        figures (`Path`): Folder for drawings.
    """
    results: list[Result] = []
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
