"""Helpers for errors and warnings: suggest the nearest name, shorten to one line, show no secret, warn only once."""

import difflib
import logging
import os
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Self

# An access token of the Hub; the login and the signature in an address.
TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
_SIGNED = re.compile(r"(?<=[?&])([\w-]*(?:token|key|signature|sig|credential)=)[^&\s'\"]+", re.IGNORECASE)
# Variables that hold tokens.
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class Secret(str):
    """Text that is used and never written: it is not pickled, and its `repr` and [`without_secrets`] hide it."""

    _known: ClassVar[set[str]] = set()

    def __new__(cls, text: str) -> Self:
        """Return the text, which [`without_secrets`] hides from now on."""
        cls._known.add(str(text))
        return super().__new__(cls, text)

    def __repr__(self) -> str:
        return "'***'"

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def without_secrets(text: str) -> str:
    """Return a text without access tokens, and without logins and signatures in addresses.

    Example:
        >>> without_secrets("https://me:password@example.com/images?token=abc does not answer")
        "https://example.com/images?token=*** does not answer"
    """
    for secret in (*Secret._known, *(os.environ.get(name, "") for name in _VARIABLES)):
        # A few letters may be part of any word.
        if len(secret) >= 8:
            text = text.replace(secret, "***")
    return _SIGNED.sub(r"\1***", _LOGIN.sub("", TOKEN.sub("***", text)))


def suggest(value: object, known: Iterable[str], most: int = 1, otherwise: str | None = None) -> str:
    """Return the end of an error message about an unknown name: the nearest known names, or all of them.

    Args:
        value (`object`): The unknown name.
        known (iterable of `str`): The names that exist.
        most (`int`, defaults to 1): The number of names to suggest.
        otherwise (`str`, *optional*): Replaces the list of all names if no known name resembles `value`.

    Returns:
        `str`: `"did you mean 'simclr'?"` if known names resemble `value`, else `"choose from byol, simclr"`.

    Example:
        >>> suggest("simcrl", ["byol", "simclr"])
        "did you mean 'simclr'?"
    """
    names = list(known)
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(value).lower(), by_lower, n=most, cutoff=0.6)
    if close:
        return f"did you mean {', '.join(repr(by_lower[name]) for name in close)}?"
    return otherwise or f"choose from {', '.join(names)}"


def describe(value: object) -> str:
    """Return the `repr` of a value for an error message, or the name of its class if the `repr` is long."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"an object of class {type(value).__name__}"


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's text, or the name of its class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def readable_size(size: float) -> str:
    """Return a number of bytes for reading, as in "1.2 MB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning once per process."""
    if (logger.name, message) not in _warned:
        _warned.add((logger.name, message))
        logger.warning(without_secrets(message))


def warn_above_bars(logger: logging.Logger, message: str) -> None:
    """Log a warning without breaking up the progress bars, which are redrawn below it."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        logger.warning(without_secrets(message))


_warned: set[tuple[str, str]] = set()
