"""The loss landscape of self-supervised learning: which directions a linear encoder will lose, and why."""

from .benign import LabelSignal, label_signal
from .correlations import CanonicalCorrelations, canonical_correlations
from .covariances import StreamingViewCovariance, ViewCovariances, view_covariances
from .figures import plot_directions, plot_forecast
from .forecast import Forecast
from .forecasting import forecast
from .imbalance import Imbalance, imbalance
from .linear import LinearLandscape
from .minima import Minimum, simplex_projection
from .objective import Objective
from .sampling import view_batches
from .stationary import StationaryPoint
from .thresholds import CollapseThreshold, OriginHessian

__all__ = [
    "CanonicalCorrelations",
    "CollapseThreshold",
    "Forecast",
    "Imbalance",
    "LabelSignal",
    "LinearLandscape",
    "Minimum",
    "Objective",
    "OriginHessian",
    "StationaryPoint",
    "StreamingViewCovariance",
    "ViewCovariances",
    "canonical_correlations",
    "forecast",
    "imbalance",
    "label_signal",
    "plot_directions",
    "plot_forecast",
    "simplex_projection",
    "view_batches",
    "view_covariances",
]
