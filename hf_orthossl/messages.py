"""Messages for people: suggest the name that was meant, shorten an error to its first line, warn only once."""

import difflib
import logging
from collections.abc import Iterable


def suggest(value: object, known: Iterable[str], most: int = 1, otherwise: str | None = None) -> str:
    """Return the remedy for an unknown name, as the end of an error line.

    Args:
        value (`object`): What was given.
        known (iterable of `str`): The names that exist.
        most (`int`, defaults to 1): The number of names to suggest.
        otherwise (`str`, *optional*): The remedy where no known name resembles `value`, if there are too many to list.

    Returns:
        `str`: `"did you mean 'simclr'?"` where known names resemble `value`, else `"choose from byol, simclr"`.

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
    """Return a value as an error line shows it: itself where it is short, else the name of its class."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"an object of class {type(value).__name__}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, or the name of its class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning, but only the first time that this process logs it."""
    if (logger.name, message) not in _warned:
        _warned.add((logger.name, message))
        logger.warning(message)


def warn_above_bars(logger: logging.Logger, message: str) -> None:
    """Log a warning above the progress bars, which are drawn again below it."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        logger.warning(message)


_warned: set[tuple[str, str]] = set()
