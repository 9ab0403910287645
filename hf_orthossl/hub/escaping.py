"""Text from users and files, made safe to stand in Markdown, HTML, YAML and Python."""

import re
import unicodedata
from typing import Any

LONGEST = 300
# Entities cannot form structure in Markdown; the others are escaped as every dialect of it knows.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "~": "&#126;", "$": "&#36;"}
_ENTITIES |= {mark: f"\\{mark}" for mark in "\\`*[]"}
# Renderers turn these into links by themselves, entities or not; an empty comment keeps them text.
_AUTOLINKS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)|(?<=mailto)(?=:)", re.IGNORECASE)
_APART = "<!-- -->"


class Safe(str):
    """Markdown of our own making, which `escape` leaves as it is."""

    __slots__ = ()


def clean(value: Any, longest: int = LONGEST) -> str:
    """One line of printable text: runs of blanks become one, control characters `�`, and what is too long is cut.

    Args:
        value: Anything; numbers are shown with up to six digits.
        longest (`int`, defaults to 300): Characters kept.
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    # Cut before it is worked on: a file may hold anything.
    text = " ".join(str(value)[: 10 * longest].split())
    text = "".join("�" if unicodedata.category(character)[0] == "C" else character for character in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def escape(value: Any) -> Safe:
    """Markdown that shows a value as it is, within a line or a table cell."""
    if isinstance(value, Safe):
        return value
    text = "".join(_ENTITIES.get(character, character) for character in clean(value))
    # Within a word an underscore means nothing, and names are full of them.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return Safe(_AUTOLINKS.sub(_APART, text))


def literal(value: str) -> Safe:
    """A Python string literal of exactly this value, with nothing in it that Markdown or HTML could read."""
    text = repr(value)
    if not {'"', "'"} & set(value):
        text = f'"{text[1:-1]}"'
    return Safe(text.replace("<", "\\x3c").replace("`", "\\x60"))
