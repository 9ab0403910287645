"""Import public names on first use, so that importing their package is fast."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` (PEP 562) of a package whose public names are imported on first use.

    Args:
        package (`str`): The package's `__name__`.
        homes (mapping of `str` to `str`): The module of the package, relative to it, that defines each public name.

    Example:
        >>> __getattr__, __dir__ = lazy_names(__name__, {"Views": "augment.views"})
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{homes[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__
