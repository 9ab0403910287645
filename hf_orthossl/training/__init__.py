"""Training: one optimizer step, shared by a `transformers.Trainer` and an accelerate loop."""

from .arguments import OrthoSSLTrainingArguments
from .callbacks import KNNCallback, LinearProbeCallback, OrthogonalityCallback, SpectraCallback
from .data import TrainingData
from .loop import pretrain_loop
from .trainer import OrthoSSLTrainer

__all__ = [
    "KNNCallback",
    "LinearProbeCallback",
    "OrthoSSLTrainer",
    "OrthoSSLTrainingArguments",
    "OrthogonalityCallback",
    "SpectraCallback",
    "TrainingData",
    "pretrain_loop",
]
