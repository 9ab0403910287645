"""The board as JSON, checked when it is made and again when it is read: a snapshot on the Hub is a stranger's too."""

import json
from collections.abc import Callable
from typing import Any

from . import values
from .schema import (
    FORMAT,
    LIBRARIES,
    METRICS,
    MOST_CURVES,
    MOST_POINTS,
    MOST_RESULTS,
    SOURCES,
    TASKS,
    Aside,
    Board,
    Entry,
    Measured,
    Spectra,
)
from .values import Refused

_MAX_BYTES = 256 * 2**20


def to_json(board: Board) -> str:
    """The board as one JSON object, without NaN or infinity."""
    content = {"format": FORMAT} | vars(board)
    return json.dumps(content, default=vars, allow_nan=False, separators=(",", ":")) + "\n"


def from_json(text: str | bytes) -> Board:
    """Reads what [`to_json`] wrote, checked: a snapshot on the Hub is a stranger's too.

    What is wrong with one entry puts that entry aside; the others stay.

    Raises:
        ValueError: it is no JSON, too large, or of another format.
    """
    if len(text) > _MAX_BYTES:
        raise ValueError(f"a board may have {_MAX_BYTES >> 20} MiB, this one is larger: build it anew")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"the board is not JSON ({str(error)[:80]}): build it anew with orthossl leaderboard"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"the board is not of format {FORMAT}: build it anew with this version's orthossl leaderboard")
    entries, asides = [], []
    for part in values.sequence("asides", content.get("asides")):
        kept = _attempt(aside_from, part, asides)
        asides += [kept] if kept else []
    for part in values.sequence("entries", content.get("entries")):
        kept = _attempt(entry_from, part, asides)
        entries += [kept] if kept else []
    collected_at = values.date("collected_at", content.get("collected_at"))
    return Board(entries, asides, collected_at, values.text("endpoint", content.get("endpoint")))


def entry_from(content: Any) -> Entry:
    """An entry from JSON values; raises `Refused`."""
    content = values.mapping("entry", content)
    results = values.sequence("results", content.get("results"))
    if len(results) > MOST_RESULTS:
        raise Refused("results", f"has {len(results)} numbers, at most {MOST_RESULTS} are shown")
    spectra = content.get("spectra")
    return Entry(
        repo_id=values.repo_id("repo_id", content.get("repo_id")),
        revision=values.revision("revision", content.get("revision")),
        author=values.name("author", content.get("author")),
        last_modified=_maybe(values.date, "last_modified", content),
        backbone=values.name("backbone", content.get("backbone")),
        method=values.name("method", content.get("method"), 40),
        regularizer=_maybe(values.name, "regularizer", content),
        gamma=_maybe(values.number, "gamma", content),
        pretrained_on=_maybe(values.name, "pretrained_on", content),
        image_size=values.count("image_size", content.get("image_size"), 10_000),
        parameters=_maybe(values.count, "parameters", content),
        results=[measured_from(result) for result in results],
        spectra=None if spectra is None else spectra_from(spectra),
        library_version=_maybe(values.name, "library_version", content),
        weights=_maybe(values.revision, "weights", content),
        library=_one_of("library", content.get("library"), LIBRARIES),
        remote_code=values.flag("remote_code", content.get("remote_code")),
        steps=_maybe(values.count, "steps", content),
        epochs=_maybe(values.number, "epochs", content),
        images_per_step=_maybe(values.count, "images_per_step", content),
    )


def measured_from(content: Any) -> Measured:
    """A result from JSON values; raises `Refused`."""
    content = values.mapping("result", content)
    protocol = values.text("protocol", content.get("protocol"), 300)
    if not protocol:
        raise Refused("protocol", "is missing: a number without its protocol cannot be compared")
    measured = Measured(
        task=_one_of("task", content.get("task"), TASKS),
        dataset=values.name("dataset", content.get("dataset")),
        split=values.name("split", content.get("split"), 60),
        metric=_one_of("metric", content.get("metric"), METRICS),
        value=values.number("value", content.get("value"), 0, 1),
        protocol=protocol,
        low=_maybe(values.number, "low", content, 0, 1),
        high=_maybe(values.number, "high", content, 0, 1),
        source=_one_of("source", content.get("source", "author"), SOURCES),
        date=_maybe(values.date, "date", content),
        revision=_maybe(values.revision, "revision", content),
    )
    if (measured.low is None) != (measured.high is None) or not _within(measured):
        raise Refused("interval", f"{measured.low} to {measured.high} does not hold the value {measured.value:g}")
    return measured


def spectra_from(content: Any) -> Spectra:
    """Spectra from JSON values; raises `Refused`."""
    content = values.mapping("spectra", content)
    summary, curves, lengths = (values.mapping(part, content.get(part)) for part in ("summary", "curves", "lengths"))
    if len(summary) > 40 or len(curves) > MOST_CURVES or set(curves) != set(lengths):
        raise Refused("spectra", "has too many scalars or curves, or curves without their lengths")
    found = Spectra({}, {}, {})
    for key, value in summary.items():
        found.summary[values.name("spectra", key)] = values.number(f"spectra {values.shown(key)}", value)
    for key, curve in curves.items():
        label, where = values.name("spectra", key), f"spectra {values.shown(key)}"
        found.lengths[label] = values.count(where, lengths[key])
        points = values.numbers(where, curve, 0, 1)
        if not 0 < len(points) <= min(MOST_POINTS, found.lengths[label]):
            raise Refused(where, f"has {len(points)} points, of {found.lengths[label]} eigenvalues")
        if points != sorted(points, reverse=True):
            raise Refused(where, "must be in descending order")
        found.curves[label] = points
    return found


def aside_from(content: Any) -> Aside:
    """An aside from JSON values; raises `Refused`."""
    content = values.mapping("aside", content)
    return Aside(
        # Of a listing's own malformed lines even the name may be none.
        repo_id=values.text("repo_id", content.get("repo_id"), 120),
        revision=_maybe(values.revision, "revision", content),
        field=values.text("field", content.get("field"), 120),
        reason=values.text("reason", content.get("reason"), 300),
    )


def _attempt(read: Callable[[Any], Any], part: Any, asides: list[Aside]) -> Any:
    try:
        return read(part)
    except Refused as error:
        name = part.get("repo_id") if isinstance(part, dict) else None
        asides.append(Aside(values.shown(name or "?", 100).strip("'"), None, error.field, error.reason))
        return None


def _maybe(check: Callable, field: str, content: dict, *limits: Any) -> Any:
    value = content.get(field)
    return None if value is None else check(field, value, *limits)


def _one_of(field: str, value: Any, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise Refused(field, f"must be one of {', '.join(known)}, got {values.shown(value)}")
    return value


def _within(measured: Measured) -> bool:
    # A mean over seeds may lie a rounding error outside.
    return measured.low is None or measured.low - 1e-3 <= measured.value <= measured.high + 1e-3
