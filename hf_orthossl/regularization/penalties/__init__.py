"""Penalties: the registry, and one file for each penalty.

All modules of this folder are imported, so that a new file registers a new penalty.
"""

import importlib
import pkgutil

from .base import MAX_STRENGTH, PENALTIES, Penalty, get_penalty, register_penalty

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_module.name}", __name__)

__all__ = ["MAX_STRENGTH", "PENALTIES", "Penalty", "get_penalty", "register_penalty"]
