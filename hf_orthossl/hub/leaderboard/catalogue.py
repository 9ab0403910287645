"""A board made ready to be looked things up in: filtered, searched and sorted for one view of the page."""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any

from .ranking import Row, measurements, paired, rank
from .schema import Board, Entry, Measured
from .view import SIZES, View

Measurement = tuple[str, str, str]
# Strangers may publish as many names as they like; search finds those that a list does not hold.
MOST_CHOICES = 100
_FILTERS = ("backbone", "method", "regularizer", "pretrained_on")
_MOST_RANKED = 16


@dataclass(frozen=True)
class Line:
    """An encoder in the table; `row` is `None` where it lacks the measurement that others are ranked by."""

    entry: Entry
    row: Row | None

    @property
    def result(self) -> Measured | None:
        return self.row.result if self.row else None


class Catalogue:
    """Looks things up in one board.

    Args:
        board ([`Board`]): Never changed; a fresh board has a catalogue of its own.
    """

    def __init__(self, board: Board):
        self.board = board
        self.entries = {entry.repo_id: entry for entry in board.entries}
        self.measurements: list[Measurement] = measurements(board)
        self.counts = Counter(
            key for entry in board.entries for key in {(r.task, r.dataset.lower(), r.metric) for r in entry.results}
        )
        self.choices = {name: self._common(name) for name in _FILTERS}
        self._words = {entry.repo_id: _searchable(entry) for entry in board.entries}
        self._ranked: OrderedDict[Measurement, dict[str, Row]] = OrderedDict()
        self._lock = Lock()

    def measurement(self, view: View) -> Measurement | None:
        """What a view ranks by: the most common measurement that fits what it names, or the most common of all."""
        wanted = (view.task, view.dataset.lower(), view.metric)
        for measurement in self.measurements:
            has = (measurement[0], measurement[1].lower(), measurement[2])
            if all(not want or want == value for want, value in zip(wanted, has, strict=True)):
                return measurement
        return self.measurements[0] if self.measurements else None

    def count(self, measurement: Measurement) -> int:
        """How many encoders have a measurement."""
        task, dataset, metric = measurement
        return self.counts[task, dataset.lower(), metric]

    def ranked(self, measurement: Measurement | None) -> dict[str, Row]:
        """Rows by Hub id, best first; kept for the measurements that were asked for last."""
        if measurement is None:
            return {}
        with self._lock:
            if measurement not in self._ranked:
                self._ranked[measurement] = {row.entry.repo_id: row for row in rank(self.board, *measurement)}
            self._ranked.move_to_end(measurement)
            if len(self._ranked) > _MOST_RANKED:
                self._ranked.popitem(last=False)
            return self._ranked[measurement]

    def lines(self, view: View) -> list[Line]:
        """All encoders that a view lets through, in its order; those without what it sorts by come last."""
        ranked = self.ranked(self.measurement(view))
        lines = [Line(entry, ranked.get(entry.repo_id)) for entry in self.board.entries if self._fits(entry, view)]
        if view.by:
            lines = [line for line in lines if line.result and line.result.source == view.by]
        lines.sort(key=lambda line: (line.row.rank if line.row else len(ranked) + 1, line.entry.repo_id.lower()))
        keys = {line.entry.repo_id: _sort_key(line, view.sort) for line in lines}
        known = [line for line in lines if keys[line.entry.repo_id] is not None]
        missing = [line for line in lines if keys[line.entry.repo_id] is None]
        known.sort(key=lambda line: keys[line.entry.repo_id], reverse=view.order == "down")
        return known + missing

    def pairs(self, view: View) -> list[tuple[Entry, Entry, float | None]]:
        """Encoders without and with a penalty, both of which a view lets through, whatever penalty it asks for."""
        measurement = self.measurement(view)
        if measurement is None:
            return []
        wanted = view.regularizer if view.regularizer not in ("any", "none") else ""
        pairs = paired(self.board, *measurement)
        fitting = [p for p in pairs if all(self._fits(entry, view, penalty=False) for entry in p[:2])]
        return [pair for pair in fitting if not wanted or pair[1].regularizer == wanted]

    def _fits(self, entry: Entry, view: View, *, penalty: bool = True) -> bool:
        for name in ("backbone", "method", "pretrained_on"):
            wanted = getattr(view, name)
            if wanted and wanted != getattr(entry, name):
                return False
        if penalty and view.regularizer:
            wanted = {"any": entry.regularizer is not None, "none": entry.regularizer is None}
            if not wanted.get(view.regularizer, view.regularizer == entry.regularizer):
                return False
        if view.size:
            _, low, high = SIZES[view.size]
            if entry.parameters is None or not low <= entry.parameters < high:
                return False
        words = self._words[entry.repo_id]
        return all(word in words for word in view.q.casefold().split())

    def _common(self, name: str) -> list[str]:
        counts = Counter(filter(None, (getattr(entry, name) for entry in self.board.entries)))
        return sorted((value for value, _ in counts.most_common(MOST_CHOICES)), key=str.casefold)


def effective_rank(entry: Entry) -> float | None:
    """Of the representation, where it was published and can be one."""
    summary = entry.spectra.summary if entry.spectra else {}
    rank, most = summary.get("effective_rank", 0), summary.get("dim", 0)
    slack = 1 + 1e-6
    return rank if 1 / slack <= rank <= most * slack else None


def _searchable(entry: Entry) -> str:
    parts = (entry.repo_id, entry.backbone, entry.method, entry.regularizer, entry.pretrained_on)
    return " ".join(filter(None, parts)).casefold()


def _sort_key(line: Line, column: str) -> Any:
    """What a column is sorted by; `None` where there is nothing."""
    entry = line.entry
    match column:
        case "rank":
            return line.row.rank if line.row else None
        case "value":
            return line.result.value if line.result else None
        case "by":
            return line.result.source if line.result else None
        case "effective_rank":
            return effective_rank(entry)
        case "model":
            return entry.repo_id.lower()
        case "regularizer":
            return (entry.regularizer or "", entry.gamma or 0.0)
    value = getattr(entry, column)
    return value.lower() if value else None
