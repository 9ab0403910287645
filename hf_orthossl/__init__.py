"""Self-supervised pretraining of timm and Hugging Face vision backbones with orthogonality regularization.

Public names are imported when first used, so that `import hf_orthossl` costs next to nothing.
"""

import importlib

__version__ = "0.1.0"

# Public name → module that defines it.
_HOMES = {
    "OrthogonalityRegularizer": "regularization",
    "select_matrices": "regularization",
    "SpectralReport": "spectra",
    "spectral_report": "spectra",
    "load_encoder": "encoders",
    "export_encoder": "encoders",
    "load_source": "data",
    "Views": "data",
    "SSLConfig": "modeling",
    "SSLModel": "modeling",
    "OrthoSSLTrainer": "training",
    "OrthoSSLTrainingArguments": "training",
    "OrthogonalityCallback": "training",
    "SpectraCallback": "training",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str):
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
