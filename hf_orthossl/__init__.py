"""Self-supervised pretraining of timm and Hugging Face vision backbones with orthogonality regularization.

Public names are imported on first use, so that `import hf_orthossl` is fast.
"""

from .lazy import lazy_names

__version__ = "0.1.0"

# Public name → module that defines it.
_HOMES = {
    "OrthogonalityRegularizer": "regularization",
    "Penalty": "regularization",
    "register_penalty": "regularization",
    "select_matrices": "regularization",
    "SpectralReport": "spectra",
    "spectral_report": "spectra",
    "load_encoder": "encoders",
    "export_encoder": "encoders",
    "export_program": "encoders",
    "ModuleEncoder": "encoders",
    "load_source": "data",
    "Views": "data",
    "draw_views": "data.view_sheet",
    "SSLConfig": "configuration",
    "SSLModel": "modeling",
    "SSLMethod": "methods",
    "register_method": "methods",
    "EmbeddingRegularizer": "methods",
    "register_embedding_regularizer": "methods",
    "pretrain": "pretraining",
    "compare": "comparison",
    "write_report": "reporting",
    "OrthoSSLTrainer": "training",
    "OrthoSSLTrainingArguments": "training",
    "OrthogonalityCallback": "training",
    "SpectraCallback": "training",
}

__all__ = ["__version__", *sorted(_HOMES)]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
