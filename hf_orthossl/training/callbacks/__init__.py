"""Callbacks: the penalty, spectra and accuracies in any `transformers.Trainer` or training loop."""

from .orthogonality import OrthogonalityCallback
from .probes import KNNCallback, LinearProbeCallback
from .spectra import SpectraCallback

__all__ = ["KNNCallback", "LinearProbeCallback", "OrthogonalityCallback", "SpectraCallback"]
