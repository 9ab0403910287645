"""Measure dimensional collapse: spectra of weights and features.

Public names are imported on first use: a page that shows spectra does not need torch.
"""

from ..lazy import lazy_names

# Public name → module that defines it.
_HOMES = {
    "SketchedCovariance": "covariance",
    "StreamingCovariance": "covariance",
    "covariance_eigenvalues": "eigenvalues",
    "normalized_eigenvalues": "eigenvalues",
    "singular_values": "eigenvalues",
    "plot_spectra": "figures",
    "filter_correlation": "figures",
    "plot_filter_correlation": "figures",
    "plot_representations": "figures",
    "alpha_req": "measures",
    "condition_number": "measures",
    "count_positive": "measures",
    "effective_rank": "measures",
    "lidar": "measures",
    "participation_ratio": "measures",
    "rankme": "measures",
    "stable_rank": "measures",
    "spectral_report": "probe",
    "weight_spectra": "probe",
    "SpectralReport": "report",
    "FeatureSpectrum": "spectrum",
    "WeightSpectrum": "spectrum",
    "guess_stages": "stages",
    "last_weights": "stages",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
