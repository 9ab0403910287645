"""Measuring encoders: frozen, fine-tuned, on other data sets.

What fine-tuning needs of `transformers` is imported when first used, as nothing else here does.
"""

from ..lazy import lazy_names
from .accuracy import Accuracy, accuracy
from .features import FeatureCache, Features, extract_features
from .frozen import LabelledFeatures, knn_results, labelled_splits, linear_results
from .knn import KNNMonitor, knn_accuracy, knn_scores
from .linear_probe import LinearClassifier, lbfgs_probe, sgd_probe
from .results import Result, read_results, write_results
from .tables import results_table, transfer_table
from .transfer import Transfer, TransferSet, transfer_sets, transfer_suite

__all__ = [
    "Accuracy",
    "EncoderClassifier",
    "FeatureCache",
    "Features",
    "FineTuned",
    "FineTuningArguments",
    "KNNMonitor",
    "LabelledFeatures",
    "LinearClassifier",
    "Result",
    "Transfer",
    "TransferSet",
    "accuracy",
    "extract_features",
    "finetune_encoder",
    "knn_accuracy",
    "knn_results",
    "knn_scores",
    "labelled_splits",
    "lbfgs_probe",
    "linear_results",
    "read_results",
    "results_table",
    "sgd_probe",
    "transfer_sets",
    "transfer_suite",
    "transfer_table",
    "write_results",
]

_LAZY = {
    "EncoderClassifier": "finetune",
    "FineTuned": "finetune",
    "FineTuningArguments": "finetune",
    "finetune_encoder": "finetune",
}

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
