"""Training: one optimizer step, shared by a `transformers.Trainer` and an accelerate loop.

Public names are imported on first use: the command line reads options without torch.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .arguments import OrthoSSLTrainingArguments
    from .callbacks import KNNCallback, LinearProbeCallback, OrthogonalityCallback, SpectraCallback
    from .data import TrainingData
    from .loop import pretrain_loop
    from .trainer import OrthoSSLTrainer

# Public name → module that defines it.
_HOMES = {
    "KNNCallback": "callbacks",
    "LinearProbeCallback": "callbacks",
    "OrthoSSLTrainer": "trainer",
    "OrthoSSLTrainingArguments": "arguments",
    "OrthogonalityCallback": "callbacks",
    "SpectraCallback": "callbacks",
    "TrainingData": "data",
    "pretrain_loop": "loop",
}

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
