"""Options of `orthossl evaluate` and of its tasks."""

from dataclasses import dataclass, field
from typing import Literal

from ...data.options import ImageOptions
from ...messages import suggest
from ..parsing import parse

FROZEN = ("knn", "linear")
# Tasks that run in several processes.
SHARED = (*FROZEN, "transfer")
TASKS = (*FROZEN, "finetune", "transfer", "detection", "segmentation")
DESCRIPTION = (
    "Measure encoders on labelled images: kNN and linear probes on features that are extracted once and cached, "
    "fine-tuning, transfer to other data sets, detection and segmentation. "
    "MODEL is a run folder, an encoder folder, a timm name or a Hub id; several models are compared in one table."
)


@dataclass
class EvaluateArguments(ImageOptions):
    """Options of the measurements: models, tasks, data and probes."""

    _argument_group_name = "measurements"

    models: list[str] = field(
        kw_only=True,
        metadata={"positional": True, "metavar": "MODEL", "help": "run folder, encoder folder, timm name or Hub id"},
    )
    task: list[str] = field(
        default_factory=lambda: list(FROZEN),
        metadata={"help": f"one or more of {', '.join(TASKS)} (default: {' and '.join(FROZEN)})"},
    )
    train_split: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "split to train probes on (default: train)", "group": "data"}
    )
    test_split: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "split to score on (default: test or validation)", "group": "data"},
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "side of the input; detection: shorter side (default: the model's or the images')"},
    )
    untrained: bool = field(default=False, metadata={"help": "use random weights, for comparison"})
    k: int = field(default=20, metadata={"help": "number of neighbours that vote"})
    protocol: Literal["sgd", "lbfgs"] = field(
        default="sgd",
        metadata={"help": "how linear probes are trained"},
    )
    epochs: int = field(default=100, metadata={"help": "passes over the data with sgd"})
    learning_rate: float = field(default=0.1, metadata={"help": "learning rate of sgd"})
    probe_batch_size: int = field(default=256, metadata={"help": "batch size of sgd"})
    label_noise: float = field(default=0.0, metadata={"help": "also probe with this share of labels wrong"})
    imbalance: float = field(
        default=1.0,
        metadata={"help": "also probe with classes of up to X times the size"},
    )
    seeds: int = field(default=1, metadata={"help": "repetitions of whatever is trained"})
    seed: int = field(default=0, metadata={"help": "first seed, also of untrained weights"})
    batch_size: int = field(default=256, metadata={"help": "images per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, … (default: a GPU if there is one)"})
    cache: str | None = field(default=None, metadata={"help": "folder of features, or none (default: in HF_HOME)"})
    push_to_hub: bool = field(
        default=False,
        metadata={"help": "add the results to the models' repositories"},
    )
    output_dir: str = field(default="runs/evaluate", metadata={"metavar": "DIR", "help": "folder of results.json"})

    def __post_init__(self):
        super().__post_init__()
        for task in self.task:
            if task not in TASKS:
                raise ValueError(f"task {task!r} is unknown: {suggest(task, TASKS)}")
        if self.push_to_hub and self.untrained:
            raise ValueError("push_to_hub and untrained exclude each other: leave out one of them")
        if self.seeds < 1 or self.batch_size < 1:
            raise ValueError(f"seeds is {self.seeds} and batch_size {self.batch_size}: both must be 1 or more")


@dataclass
class FineTuneOptions:
    """Options of fine-tuning the whole encoder with a linear head."""

    _argument_group_name = "fine-tuning"

    finetune_epochs: int = field(default=50, metadata={"help": "passes over the images at most"})
    finetune_lr: float = field(default=1e-3, metadata={"help": "learning rate of the head"})
    finetune_batch_size: int = field(default=128, metadata={"help": "images per step"})
    layer_decay: float = field(default=0.75, metadata={"help": "rate of each layer over the next one's"})
    mixup: float = field(default=0.0, metadata={"help": "α of mixup; 0 for none"})
    cutmix: float = field(default=0.0, metadata={"help": "α of CutMix; 0 for none"})
    label_smoothing: float = field(default=0.0, metadata={"help": "share of labels spread over classes"})
    validation_share: float = field(default=0.1, metadata={"help": "share held out to choose an epoch"})
    patience: int = field(default=10, metadata={"help": "epochs without gain before it stops"})
    bf16: bool = field(default=False, metadata={"help": "fine-tune in bfloat16"})


@dataclass
class TransferOptions:
    """Options of the transfer task; its linear probes follow the options of the linear task."""

    _argument_group_name = "transfer"

    transfer_sets: list[str] | None = field(
        default=None,
        metadata={
            "help": "sets of the suite, Hub ids or folders (default: cifar10 cifar100 food101 flowers102 dtd gtsrb)"
        },
    )
    transfer_data: str | None = field(default=None, metadata={"help": "folder that has sets of the Hub as subfolders"})
    transfer_knn: bool = field(default=False, metadata={"help": "also measure kNN on each set"})

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes of these options."""
        return ("linear", "knn") if self.transfer_knn else ("linear",)


@dataclass
class DetectionArguments:
    """Options of fine-tuning and scoring a detector, for which `hf-orthossl[detection]` must be installed."""

    _argument_group_name = "detection"

    detector: Literal["fpn", "c4", "detr"] = field(default="fpn", metadata={"help": "Faster R-CNN, or RT-DETR v2"})
    steps: int = field(default=200, metadata={"help": "optimizer steps"})
    detection_batch_size: int = field(default=8, metadata={"help": "images per step"})
    detection_optimizer: Literal["adamw", "sgd"] = field(
        default="adamw", metadata={"help": "optimizer; the paper's is sgd"}
    )
    detection_lr: float | None = field(
        default=None,
        metadata={"help": "rate (default: by optimizer, detector and batch)"},
    )
    batch_norm: Literal["trained", "frozen"] = field(
        default="trained",
        metadata={"help": "the encoder's; frozen for batches of 1 or 2"},
    )
    box_format: str | None = field(
        default=None,
        metadata={
            "help": "numbers of a box: coco, xyxy or cxcywh, also with _normalized (default: recognized)",
            "metavar": "FORMAT",
        },
    )
    roi_samples: int = field(default=64, metadata={"help": "proposals per image for fpn and c4"})
    fpn_channels: int = field(default=128, metadata={"help": "width of fpn"})
    drawn_images: int = field(default=8, metadata={"help": "test images to save with boxes or masks"})

    def __post_init__(self):
        if min(self.steps, self.detection_batch_size, self.roi_samples, self.fpn_channels) < 1 or self.drawn_images < 0:
            raise ValueError(
                f"steps is {self.steps}, detection_batch_size {self.detection_batch_size}, "
                f"roi_samples {self.roi_samples} and fpn_channels {self.fpn_channels}: they must be 1 or more; "
                f"drawn_images is {self.drawn_images}: it must be 0 or more"
            )


@dataclass
class SegmentationArguments:
    """Options of the linear probe that segments images."""

    _argument_group_name = "segmentation"

    mask_column: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "column of masks (default: found by name)"}
    )
    ignore_values: list[int] = field(
        default_factory=lambda: [255], metadata={"help": "values in masks that do not count"}
    )
    segmentation_steps: int = field(default=1000, metadata={"help": "optimizer steps of the probe"})
    segmentation_batch_size: int = field(default=16, metadata={"help": "images per step"})
    segmentation_lr: float = field(default=1e-3, metadata={"help": "highest learning rate of the probe"})


def read(
    argv: list[str], prog: str = "orthossl evaluate"
) -> tuple[EvaluateArguments, FineTuneOptions, TransferOptions, DetectionArguments, SegmentationArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    kinds = [EvaluateArguments, FineTuneOptions, TransferOptions, DetectionArguments, SegmentationArguments]
    (args, finetune, transfer, detection, segmentation), _ = parse(prog, DESCRIPTION, kinds, argv)
    return args, finetune, transfer, detection, segmentation
