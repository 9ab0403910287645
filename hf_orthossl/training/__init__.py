"""Training: one step shared by two fronts, a `transformers.Trainer` and an accelerate loop."""

from .arguments import OrthoSSLTrainingArguments
from .callbacks import OrthogonalityCallback
from .loop import pretrain_loop
from .probe_callbacks import KNNCallback, LinearProbeCallback
from .spectra_callback import SpectraCallback
from .trainer import OrthoSSLTrainer

__all__ = [
    "KNNCallback",
    "LinearProbeCallback",
    "OrthoSSLTrainer",
    "OrthoSSLTrainingArguments",
    "OrthogonalityCallback",
    "SpectraCallback",
    "pretrain_loop",
]
