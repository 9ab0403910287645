"""The loss landscape of self-supervised learning: which directions a linear encoder will lose, and why."""

from .correlations import CanonicalCorrelations, canonical_correlations
from .covariances import StreamingViewCovariance, ViewCovariances, view_batches, view_covariances
from .figures import plot_directions, plot_forecast
from .forecast import forecast
from .forecast_report import Forecast
from .imbalance import ClassDirections, class_directions
from .label_signal import LabelSignal, label_signal
from .landscape import LinearLandscape
from .minimum import Minimum, simplex_projection
from .objective import Objective
from .stationary import CollapseThreshold, OriginHessian, StationaryPoint

__all__ = [
    "CanonicalCorrelations",
    "ClassDirections",
    "CollapseThreshold",
    "Forecast",
    "LabelSignal",
    "LinearLandscape",
    "Minimum",
    "Objective",
    "OriginHessian",
    "StationaryPoint",
    "StreamingViewCovariance",
    "ViewCovariances",
    "canonical_correlations",
    "class_directions",
    "forecast",
    "label_signal",
    "plot_directions",
    "plot_forecast",
    "simplex_projection",
    "view_batches",
    "view_covariances",
]
