"""Marked sections of a card: each update rewrites the sections and keeps the owner's text byte for byte."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# A marker is alone on its line; within a sentence it is text.
_MARKER = re.compile(r"^[ \t]*<!--[ \t]*(?P<close>/?)orthossl:(?P<name>[\w-]+)[ \t]*-->[ \t]*\r?$", re.MULTILINE)
_OFFERED = re.compile(r"^<!--[ \t]*orthossl-sections:(?P<names>[\w \t-]*)-->[ \t]*\r?$", re.MULTILINE)
_OUR_COMMENT = re.compile(r"<!-- Between two orthossl markers.*?-->", re.DOTALL)
_REMEDY = "fix the markers, each on a separate line, or remove both"
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*(?:\r?\n|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Section:
    """The position of a section in a text: `start` to `end` with its markers, `inside` to `till` without them."""

    name: str
    start: int
    inside: int
    till: int
    end: int


def split_front_matter(card: str) -> tuple[str, str]:
    """Split a card into its YAML, without fences and empty if there is none, and its body."""
    match = _FRONT_MATTER.match(card)
    return (match["yaml"], card[match.end() :]) if match else ("", card)


def find_sections(body: str) -> dict[str, Section]:
    """Find the marked sections `<!-- orthossl:NAME -->` … `<!-- /orthossl:NAME -->` of a text, in order.

    Returns:
        `dict[str, Section]`: Name of each section → its position.

    Raises:
        ValueError: A marker is missing, repeated or inside another section; the message contains its name and line.
    """
    sections: dict[str, Section] = {}
    opened: re.Match | None = None
    for marker in _MARKER.finditer(body):
        name, where = marker["name"], f"line {_line(body, marker)} of the card's body"
        if marker["close"]:
            if opened is None or opened["name"] != name:
                raise ValueError(f"{where}: <!-- /orthossl:{name} --> closes a section that is not open: {_REMEDY}")
            sections[name] = Section(name, opened.start(), opened.end(), marker.start(), marker.end())
            opened = None
        elif opened is not None:
            raise ValueError(
                f"{where}: section {name} begins before section {opened['name']} (line {_line(body, opened)}) has "
                f"ended: {_REMEDY}"
            )
        elif name in sections:
            raise ValueError(f"{where}: section {name} appears twice: remove one of the two")
        else:
            opened = marker
    if opened is not None:
        where = f"line {_line(body, opened)} of the card's body"
        raise ValueError(f"{where}: section {opened['name']} never ends: {_REMEDY}")
    return sections


def merge_sections(previous: str, new: str, *, ours: bool) -> str:
    """Update the sections of an earlier body and keep what its owner wrote around, between or instead of them.

    Sections in both bodies are updated; all other text of the earlier body is unchanged. A section whose markers the
    owner removed is not added again; a section that did not exist when the card was written is appended.

    Args:
        previous (`str`): The earlier body.
        new (`str`): The newly rendered body.
        ours (`bool`): Whether this package wrote the earlier card, even if no section of it is left. All sections
            are appended to a card of another origin.

    Returns:
        `str`: The merged body, with the line breaks of the earlier one.

    Raises:
        ValueError: The markers of the earlier body do not match.
    """
    line_break = "\r\n" if "\r\n" in previous else "\n"
    new = new.replace("\n", line_break)
    theirs, fresh = find_sections(previous), find_sections(new)
    parts, done = [], 0
    for name, section in theirs.items():
        if name in fresh:
            parts += [previous[done : section.inside], new[fresh[name].inside : fresh[name].till]]
            done = section.till
    body = "".join(parts) + previous[done:]

    offered = _OFFERED.search(previous)
    known = set(offered["names"].split()) if offered else set(fresh) if ours or theirs else set()
    missing = [section for name, section in fresh.items() if name not in known | set(theirs)]
    added = [new[section.start : section.end].rstrip("\r") for section in missing]
    if offered:
        names = [*offered["names"].split(), *(name for name in fresh if name not in known)]
        body = body.replace(offered[0].rstrip("\r"), offered_line(names), 1)
    elif added:
        added.append(offered_line(fresh))
    if not added:
        return body
    body += line_break if body and not body.endswith("\n") else ""
    body += line_break if body.strip() else ""
    return body + (2 * line_break).join(added) + line_break


def owners_text(body: str) -> str:
    """Return the text of a body outside marked sections and this package's comments, with normalized spaces."""
    for section in reversed(find_sections(body).values()):
        body = body[: section.start] + body[section.end :]
    return " ".join(_OUR_COMMENT.sub("", _OFFERED.sub("", body)).split())


def offered_line(names: Iterable[str]) -> str:
    """Return the comment that lists the sections a card has had, so that removed ones are not added again."""
    return f"<!-- orthossl-sections: {' '.join(names)} -->"


def _line(text: str, match: re.Match) -> int:
    return text.count("\n", 0, match.start()) + 1
