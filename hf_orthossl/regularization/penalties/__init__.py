"""Penalties: the registry, and one file for each penalty.

Every module of this folder is imported here, so that adding a penalty is adding a file.
"""

import importlib
import pkgutil

from .base import PENALTIES, Penalty, get_penalty, register_penalty

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_module.name}", __name__)

__all__ = ["PENALTIES", "Penalty", "get_penalty", "register_penalty"]
