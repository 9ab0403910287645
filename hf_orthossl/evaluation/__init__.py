"""Measuring frozen encoders."""

from .accuracy import Accuracy, accuracy
from .cache import FeatureCache
from .features import Features, extract_features
from .frozen import LabelledFeatures, knn_results, labelled_splits, linear_results
from .knn import knn_accuracy, knn_scores
from .linear_probe import LinearClassifier, lbfgs_probe, sgd_probe
from .monitor import KNNMonitor
from .results import Result, read_results, write_results
from .tables import results_table

__all__ = [
    "Accuracy",
    "FeatureCache",
    "Features",
    "KNNMonitor",
    "LabelledFeatures",
    "LinearClassifier",
    "Result",
    "accuracy",
    "extract_features",
    "knn_accuracy",
    "knn_results",
    "knn_scores",
    "labelled_splits",
    "lbfgs_probe",
    "linear_results",
    "read_results",
    "results_table",
    "sgd_probe",
    "write_results",
]
