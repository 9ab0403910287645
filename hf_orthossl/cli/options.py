"""The options of `orthossl pretrain` and `scripts/pretrain.py`, as dataclasses."""

from dataclasses import dataclass, field

from ..methods import parse_assignments
from ..regularization import PENALTIES
from ..training import OrthoSSLTrainingArguments


@dataclass
class DataArguments:
    """What to train on."""

    _argument_group_name = "data"

    dataset: str = field(
        default="digits",
        metadata={"help": "Hub id, folder of images, folder of parquet files, or 'digits' (built in)"},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "configuration of a Hub data set"})
    split: str = field(default="train", metadata={"help": "the part to train on"})
    image_column: str | None = field(default=None, metadata={"help": "column of images (default: found by type)"})
    label_column: str | None = field(
        default=None, metadata={"help": "column of labels, for kNN only (default: found by type)"}
    )
    streaming: bool = field(default=False, metadata={"help": "read the data set as it goes, without a copy"})
    knn_images: int = field(
        default=2048,
        metadata={"help": "labelled images in the kNN bank before and after training; 0 for none"},
    )


@dataclass
class ModelArguments:
    """What to train."""

    _argument_group_name = "model"

    backbone: str = field(
        default="resnet10t",
        metadata={"help": "timm name, Hub id or encoder folder (orthossl methods lists ours)"},
    )
    pretrained: bool = field(default=False, metadata={"help": "start from the backbone's published weights"})
    image_size: int | None = field(
        default=None,
        metadata={"help": "side of the views in pixels (default: the images' own up to 224, else the backbone's)"},
    )
    backbone_config: list[str] | None = field(
        default=None,
        metadata={"help": "further backbone arguments, as in patch_size=4", "metavar": "KEY=VALUE"},
    )
    method: str = field(default="simclr", metadata={"help": "a name from orthossl methods"})
    method_config: list[str] | None = field(
        default=None, metadata={"help": "hyper-parameters, as in temperature=0.2", "metavar": "KEY=VALUE"}
    )
    regularizer: str = field(default="so", metadata={"help": f"{', '.join(PENALTIES)} or none"})
    gamma: float | None = field(
        default=None,
        metadata={
            "help": "weight of the penalty (default: "
            + ", ".join(f"{kind.default_gamma:g} for {name}" for name, kind in PENALTIES.items())
            + ")"
        },
    )
    regularizer_config: list[str] | None = field(
        default=None,
        metadata={"help": "further arguments of the penalty, as in iterations=4 or probes=8", "metavar": "KEY=VALUE"},
    )
    penalty_every: int = field(
        default=1, metadata={"help": "compute the penalty at every so many steps only, times as many"}
    )
    whitening: float = field(
        default=0.0, metadata={"help": "weight of feature whitening on the predictor's output, the paper's baseline"}
    )

    def __post_init__(self):
        for name in ("backbone_config", "method_config", "regularizer_config"):
            value = getattr(self, name)
            if not isinstance(value, dict):
                setattr(self, name, parse_assignments(value or []))
        if self.gamma is None:
            known = PENALTIES.get(self.regularizer)
            self.gamma = 1e-6 if known is None else known.default_gamma


@dataclass
class PretrainArguments(OrthoSSLTrainingArguments):
    """How to train: [`OrthoSSLTrainingArguments`] under a heading of their own."""

    _argument_group_name = "training"
