"""Evaluate encoders: frozen, fine-tuned, on other data sets, and as detectors.

Public names are imported on first use: the leaderboard's page reads [`Result`] without torch, and only fine-tuning
needs the trainer of `transformers`.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .features import FeatureCache, Features, extract_features
    from .finetune import EncoderClassifier, FineTuned, FineTuningArguments, finetune_encoder
    from .frozen import LabelledFeatures, knn_results, labelled_splits, linear_results
    from .knn import KNNMonitor, knn_accuracy, knn_scores
    from .linear_probe import LinearClassifier, lbfgs_probe, sgd_probe
    from .results import Result, read_results, write_results
    from .scoring import Accuracy, accuracy
    from .tables import results_table, transfer_table
    from .transfer import Transfer, TransferSet, transfer_sets, transfer_suite

# Public name → module that defines it.
_HOMES = {
    "Accuracy": "scoring",
    "EncoderClassifier": "finetune",
    "FeatureCache": "features",
    "Features": "features",
    "FineTuned": "finetune",
    "FineTuningArguments": "finetune",
    "KNNMonitor": "knn",
    "LabelledFeatures": "frozen",
    "LinearClassifier": "linear_probe",
    "Result": "results",
    "Transfer": "transfer",
    "TransferSet": "transfer",
    "accuracy": "scoring",
    "extract_features": "features",
    "finetune_encoder": "finetune",
    "knn_accuracy": "knn",
    "knn_results": "frozen",
    "knn_scores": "knn",
    "labelled_splits": "frozen",
    "lbfgs_probe": "linear_probe",
    "linear_results": "frozen",
    "read_results": "results",
    "results_table": "tables",
    "sgd_probe": "linear_probe",
    "transfer_sets": "transfer",
    "transfer_suite": "transfer",
    "transfer_table": "tables",
    "write_results": "results",
}

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
