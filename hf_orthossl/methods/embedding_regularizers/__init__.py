"""Embedding regularizers: the registry, and one file for each kind.

All modules of this folder are imported, so that a new file registers a new kind.
"""

import importlib
import pkgutil

from .base import (
    EMBEDDING_REGULARIZERS,
    EmbeddingRegularizer,
    get_embedding_regularizer,
    register_embedding_regularizer,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_module.name}", __name__)

__all__ = [
    "EMBEDDING_REGULARIZERS",
    "EmbeddingRegularizer",
    "get_embedding_regularizer",
    "register_embedding_regularizer",
]
