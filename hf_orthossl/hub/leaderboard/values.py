"""Values written by strangers, one check each: what passes is safe to rank, to plot and to show as text."""

import datetime
import math
import re
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..escaping import clean

LARGEST = 1e15
_SHA = re.compile(r"[0-9a-f]{7,64}")
_DATE = re.compile(r"\d{4}-\d\d-\d\d(T[\d:.]{5,15}(Z|[+-]\d\d:?\d\d)?)?")


class Refused(ValueError):
    """A value that has no place on the board.

    Args:
        field (`str`): Which one.
        reason (`str`): What is wrong with it, one plain sentence that quotes at most a few characters of it.
    """

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def shown(value: Any, longest: int = 40) -> str:
    """A value quoted in a reason: one short line, with the codes of letters that are not ASCII."""
    try:
        # As long a text as is worked on, whatever a file holds.
        words = str(value[: 2 * longest] if isinstance(value, str | list) else value)
    except (ValueError, RecursionError):
        # An integer of thousands of digits has no text.
        return f"a {type(value).__name__} that cannot be shown"
    quoted = ascii(words[:longest])
    return (quoted if isinstance(value, str) else quoted[1:-1]) + ("..." if len(words) > longest else "")


def text(field: str, value: Any, longest: int = 200) -> str:
    """One line of printable text, cleaned and cut."""
    if not isinstance(value, str):
        raise Refused(field, f"must be text, got {shown(value)}")
    return clean(value, longest)


def name(field: str, value: Any, longest: int = 96) -> str:
    """A name by which the board groups and filters: plain ASCII on one line, so that none can pass for another."""
    if not isinstance(value, str) or not value.strip():
        raise Refused(field, f"must be a name, got {shown(value)}")
    if len(value) > longest:
        raise Refused(field, f"is longer than {longest} characters: {shown(value)}")
    if not (value.isascii() and value.isprintable()):
        raise Refused(field, f"holds letters that could pass for others, or that cannot be seen: {shown(value)}")
    return " ".join(value.split())


def mapping(field: str, value: Any) -> dict:
    """A JSON object."""
    if not isinstance(value, dict):
        raise Refused(field, f"must be an object, got {shown(value)}")
    return value


def sequence(field: str, value: Any) -> list:
    """A JSON list."""
    if not isinstance(value, list):
        raise Refused(field, f"must be a list, got {shown(value)}")
    return value


def repo_id(field: str, value: Any) -> str:
    """The Hub's `owner/name`."""
    try:
        if not isinstance(value, str) or value.count("/") != 1:
            raise HFValidationError
        validate_repo_id(value)
    except HFValidationError:
        raise Refused(field, f"must be owner/name, got {shown(value)}") from None
    return value


def revision(field: str, value: Any) -> str:
    """Id of a commit, 7 to 64 hexadecimal digits."""
    if not isinstance(value, str) or not _SHA.fullmatch(value):
        raise Refused(field, f"must be the id of a commit, got {shown(value)}")
    return value


def date(field: str, value: Any) -> str:
    """An ISO 8601 date or time."""
    if isinstance(value, datetime.date):
        value = value.isoformat()
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        raise Refused(field, f"must be a date as in 2026-01-31, got {shown(value)}")
    return value


def number(field: str, value: Any, low: float = -LARGEST, high: float = LARGEST) -> float:
    """A finite number in `[low, high]`; never text, true or false."""
    # The comparison also refuses integers too large for a float.
    if type(value) not in (int, float) or not low <= value <= high or not math.isfinite(value):
        raise Refused(field, f"must be a number from {low:g} to {high:g}, got {shown(value)}")
    return float(value)


def numbers(field: str, value: Any, low: float, high: float) -> list[float]:
    """A list of finite numbers in `[low, high]`, checked as a whole: a board has millions."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float}:
        raise Refused(field, f"must be a list of numbers, got {shown(value)}")
    # NaN hides from the first two comparisons, not from a sum.
    if value and not (low <= min(value) and max(value) <= high and math.isfinite(sum(value))):
        raise Refused(field, f"must hold numbers from {low:g} to {high:g}")
    return list(map(float, value))


def flag(field: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Refused(field, f"must be true or false, got {shown(value)}")
    return value


def count(field: str, value: Any, high: int = 2**53) -> int:
    """A whole number from 0."""
    if type(value) is not int or not 0 <= value <= high:
        raise Refused(field, f"must be a whole number from 0, got {shown(value)}")
    return value
