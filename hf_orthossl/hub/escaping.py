"""Escape untrusted text for Markdown, HTML, YAML and Python."""

import re
import unicodedata
from typing import Any

LONGEST = 300
# As entities these have no special meaning; all dialects of Markdown support a backslash before the others.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "~": "&#126;", "$": "&#36;"}
_ENTITIES |= {mark: f"\\{mark}" for mark in "\\`*[]"}
# Renderers turn these into links, even if they are written as entities; an empty comment in between prevents it.
_AUTOLINKS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)|(?<=mailto)(?=:)", re.IGNORECASE)
_APART = "<!-- -->"


class Safe(str):
    """Markdown that this package wrote, which `escape` leaves unchanged."""

    __slots__ = ()


def clean(value: Any, longest: int = LONGEST) -> str:
    """Return a value as one line of printable text.

    Runs of white space become one space, control characters become `�`, and text that is too long is truncated with an
    ellipsis.

    Args:
        value (`Any`): Any value; a float is written with up to six digits.
        longest (`int`, defaults to 300): Maximum length of the result, in characters.
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    # A file may contain megabytes, so truncate first.
    text = " ".join(str(value)[: 10 * longest].split())
    text = "".join("�" if unicodedata.category(character)[0] == "C" else character for character in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def escape(value: Any) -> Safe:
    """Return Markdown that shows a value literally, within a line or a table cell."""
    if isinstance(value, Safe):
        return value
    text = "".join(_ENTITIES.get(character, character) for character in clean(value))
    # An underscore within a word has no meaning in Markdown, and names contain many.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return Safe(_AUTOLINKS.sub(_APART, text))


def literal(value: str) -> Safe:
    """Return a Python string literal of this value that contains no markup of Markdown or HTML."""
    text = repr(value)
    if not {'"', "'"} & set(value):
        text = f'"{text[1:-1]}"'
    return Safe(text.replace("<", "\\x3c").replace("`", "\\x60"))
