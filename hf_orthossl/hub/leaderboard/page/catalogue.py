"""The view of a visitor as a query string, and the board filtered, searched and sorted for it.

Any view can be shared as a link, and a link opens that view.
"""

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from threading import Lock
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

from ..board.rank import MAIN_METRICS, Measurement, Pair, Row, Standing, measurements, paired, rank, standings
from ..schema import Board, BoardResult, Entry

PAGES = {
    "table": "Table",
    "overall": "All tasks",
    "scatter": "Accuracy and rank",
    "pairs": "With and without",
    "rejected": "Rejected",
}
# Reached from a row, not from the menu.
DETAILS = ("model", "compare")
COLUMNS = {
    "rank": "Rank",
    "model": "Model",
    "method": "Method",
    "backbone": "Backbone",
    "regularizer": "Remedies",
    "pretrained_on": "Pretrained on",
    "value": "Value",
    "effective_rank": "Effective rank",
    "by": "Measured by",
}
# Larger is better, so the first click shows the largest.
DESCENDING = ("value", "effective_rank")
SIZES = {
    "xs": ("under 5 M", 0, 5e6),
    "s": ("5 to 15 M", 5e6, 15e6),
    "m": ("15 to 50 M", 15e6, 50e6),
    "l": ("50 to 150 M", 50e6, 150e6),
    "xl": ("over 150 M", 150e6, float("inf")),
}
MAX_COMPARED = 4
# Unknown authors may publish as many names as they like; search finds those that a list leaves out.
MAX_CHOICES = 100
_LONGEST = 200
_MUONS = ("Muon", "AdaMuon")
_FILTERS = ("backbone", "method", "regularizer", "pretrained_on")
_MAX_RANKED = 16
# Measurements side by side; more would not fit beside each other.
_MAX_TASKS = 6


@dataclass(frozen=True)
class View:
    """One state of the page. Every value comes from a visitor's address bar; unknown ones are ignored."""

    # Of `PAGES` or `DETAILS`, with the Hub ids that the latter show.
    show: str = "table"
    model: str = ""
    compare: tuple[str, ...] = ()
    # The measurement that models are ranked by; the most common one by default.
    task: str = ""
    dataset: str = ""
    metric: str = ""
    # Only models with exactly these; the penalty may also be "any" or "none", whatever other remedies there are, and
    # the size is a key of `SIZES`.
    backbone: str = ""
    method: str = ""
    regularizer: str = ""
    pretrained_on: str = ""
    size: str = ""
    # Only numbers from this one of `SOURCES`.
    by: str = ""
    # Only models whose names and settings contain all these words.
    q: str = ""
    # A column, "up" or "down", and the page of the table.
    sort: str = "rank"
    order: str = "up"
    n: int = 1

    @classmethod
    def from_query(cls, query: str) -> Self:
        """Return the view that a query string names, with or without its question mark; never fail."""
        try:
            # Half of a surrogate pair is not a letter, and no page could be sent with it.
            text = str(query)[:4000].encode("utf-8", "ignore").decode()
            pairs = parse_qsl(text.removeprefix("?"), max_num_fields=60, errors="replace")
        except ValueError:
            return cls()
        names = {field.name for field in dataclasses.fields(cls)} - {"compare", "n"}
        values: dict[str, Any] = {name: value.strip()[:_LONGEST] for name, value in pairs if name in names}
        given = dict(pairs)
        # The form sends two choices in one value each; a data set may have any name.
        measure = given.get("measure", "")[:_LONGEST]
        if measure.count("|") > 1:
            task, _, rest = measure.partition("|")
            values |= dict(zip(("task", "dataset", "metric"), (task, *rest.rsplit("|", 1)), strict=True))
        if "." in given.get("sorting", ""):
            values |= dict(zip(("sort", "order"), given["sorting"].split(".", 1), strict=True))
        compare = list(dict.fromkeys(value.strip()[:_LONGEST] for name, value in pairs if name == "compare" and value))
        number = given.get("n", "")
        # `int` would work through thousands of digits.
        n = int(number) if number.isascii() and number.isdigit() and len(number) < 6 else 1
        allowed = {"show": (*PAGES, *DETAILS), "sort": COLUMNS, "order": ("up", "down"), "size": SIZES}
        values = {name: value for name, value in values.items() if value in allowed.get(name, (value,))}
        return cls(**values, compare=tuple(compare[:MAX_COMPARED]), n=max(n, 1))

    def query(self, **changes: Any) -> str:
        """Return the query string of this view with some values changed; defaults are left out."""
        view = dataclasses.replace(self, **changes)
        values = [(field, getattr(view, field.name)) for field in dataclasses.fields(view) if field.name != "compare"]
        kept = [(field.name, value) for field, value in values if value != field.default]
        return "?" + urlencode(kept + [("compare", name) for name in view.compare])

    def to(self, **changes: Any) -> str:
        """Return the same for the first page of the table: the current page means nothing in another selection."""
        return self.query(**{"n": 1} | changes)

    def sorted_by(self, column: str) -> str:
        """Return the query string of a click on a column's header: sort by it, or reverse the order."""
        first = "down" if column in DESCENDING else "up"
        other = "up" if self.order == "down" else "down"
        return self.to(sort=column, order=other if column == self.sort else first)

    def toggled(self, model: str) -> str:
        """Return the query string with a model added to the comparison, or removed from it."""
        if model in self.compare:
            return self.query(compare=tuple(name for name in self.compare if name != model))
        return self.query(compare=(*self.compare, model)[-MAX_COMPARED:])


@dataclass(frozen=True)
class Line:
    """An encoder in the table; `row` is `None` if it lacks the measurement that others are ranked by."""

    entry: Entry
    row: Row | None

    @property
    def result(self) -> BoardResult | None:
        """Return the result that the encoder is ranked by."""
        return self.row.result if self.row else None


class Catalogue:
    """Look things up in one board, which never changes; `penalties` has titles of penalties by name."""

    def __init__(self, board: Board, penalties: Mapping[str, str] | None = None):
        self.board = board
        self.penalties = dict(penalties or {})
        self.entries = {entry.repo_id: entry for entry in board.entries}
        self.measurements = measurements(board)
        self._counts = Counter(
            key for entry in board.entries for key in {(r.task, r.dataset.lower(), r.metric) for r in entry.results}
        )
        self.choices = {name: self._common(name) for name in _FILTERS}
        self._words = {entry.repo_id: _searchable(entry) for entry in board.entries}
        self._ranked: OrderedDict[Measurement, dict[str, Row]] = OrderedDict()
        self._lock = Lock()

    def measurement(self, view: View) -> Measurement | None:
        """Return what a view ranks by: the most common measurement that fits it, or the most common of all."""
        for task, dataset, metric in self.measurements:
            fits_data = view.dataset.lower() in ("", dataset.lower())
            if fits_data and view.task in ("", task) and view.metric in ("", metric):
                return task, dataset, metric
        return self.measurements[0] if self.measurements else None

    def count(self, measurement: Measurement) -> int:
        """Return the number of encoders that have a measurement."""
        task, dataset, metric = measurement
        return self._counts[task, dataset.lower(), metric]

    def ranked(self, measurement: Measurement | None) -> dict[str, Row]:
        """Return rows by Hub id, best first; the last few measurements are kept."""
        if measurement is None:
            return {}
        with self._lock:
            if measurement not in self._ranked:
                self._ranked[measurement] = {row.entry.repo_id: row for row in rank(self.board, *measurement)}
            self._ranked.move_to_end(measurement)
            if len(self._ranked) > _MAX_RANKED:
                self._ranked.popitem(last=False)
            return self._ranked[measurement]

    def lines(self, view: View) -> list[Line]:
        """Return the encoders that fit a view, in its order; those without the value it sorts by come last."""
        ranked = self.ranked(self.measurement(view))
        lines = [Line(entry, ranked.get(entry.repo_id)) for entry in self.board.entries if self._fits(entry, view)]
        if view.by:
            lines = [line for line in lines if line.result and line.result.source == view.by]
        lines.sort(key=lambda line: (line.row.rank if line.row else len(ranked) + 1, line.entry.repo_id.lower()))
        keyed = [(_sort_key(line, view.sort), line) for line in lines]
        known = sorted((pair for pair in keyed if pair[0] is not None), key=itemgetter(0), reverse=view.order == "down")
        return [line for _, line in known] + [line for key, line in keyed if key is None]

    @cached_property
    def tasks(self) -> list[Measurement]:
        """Return the measurements of most encoders, of at least two: one metric for each task and data set."""
        found: dict[tuple[str, str], Measurement] = {}
        for measurement in self.measurements:
            task, dataset, metric = measurement
            if metric in MAIN_METRICS and self.count(measurement) > 1:
                found.setdefault((task, dataset.lower()), measurement)
        return list(found.values())[:_MAX_TASKS]

    @cached_property
    def standings(self) -> list[Standing]:
        """Return the places of all encoders in `tasks` together, best first."""
        return standings({measurement: self.ranked(measurement) for measurement in self.tasks})

    def fitting_standings(self, view: View) -> list[Standing]:
        """Return the places, among all encoders, of those that fit a view."""
        return [standing for standing in self.standings if self._fits(standing.entry, view)]

    def pairs(self, view: View) -> list[Pair]:
        """Return encoders without and with a penalty that both fit a view, apart from the penalty it asks for."""
        measurement = self.measurement(view)
        if measurement is None:
            return []
        either = dataclasses.replace(view, regularizer="")
        return [
            (without, with_, difference)
            for without, with_, difference in paired(self.board, *measurement)
            if self._fits(without, either)
            and self._fits(with_, either)
            and view.regularizer in ("", "any", "none", with_.regularizer)
        ]

    def _fits(self, entry: Entry, view: View) -> bool:
        _, low, high = SIZES[view.size] if view.size else ("", 0, float("inf"))
        penalties = ("", entry.regularizer or "none", "any" if entry.regularizer else "none")
        return (
            all(getattr(view, name) in ("", getattr(entry, name)) for name in ("backbone", "method", "pretrained_on"))
            and view.regularizer in penalties
            and (not view.size or (entry.parameters is not None and low <= entry.parameters < high))
            and all(word in self._words[entry.repo_id] for word in view.q.casefold().split())
        )

    def _common(self, name: str) -> list[str]:
        counts = Counter(filter(None, (getattr(entry, name) for entry in self.board.entries)))
        return sorted((value for value, _ in counts.most_common(MAX_CHOICES)), key=str.casefold)


def effective_rank(entry: Entry) -> float | None:
    """Return the effective rank of the representation, if one was published that is possible."""
    summary = entry.spectra.summary if entry.spectra else {}
    value, dim = summary.get("effective_rank", 0), summary.get("dim", 0)
    slack = 1 + 1e-6
    return value if 1 / slack <= value <= dim * slack else None


def remedies(entry: Entry) -> list[tuple[str, str]]:
    """Return what acted against collapse in words, each with its weight: [("SO", "γ = 1e-4"), ("Muon", "")]."""
    found = []
    if entry.regularizer:
        kind, symbol, weight = entry.regularizer.upper(), "γ", entry.gamma
        if entry.penalty_mode == "decoupled":
            kind, symbol, weight = f"{kind}, decoupled{'' if entry.strength is None else ','}", "λ", entry.strength
        found.append((kind, symbol, weight))
    if entry.constrain:
        found.append(("orthonormal weights", "", None))
    if entry.embedding_regularizer:
        of = f" of {entry.embedding_layer}s" if entry.embedding_layer else ""
        found.append((f"{entry.embedding_regularizer.upper()}{of}", "w", entry.embedding_weight))
    if entry.whitening:
        found.append(("feature whitening", "w", entry.whitening))
    if entry.optimizer in _MUONS:
        found.append((entry.optimizer, "", None))
    if not entry.remedies_read:
        found.append(("settings that could not be read", "", None))
    return [
        (name, "" if weight is None else f"{symbol} = {weight:.3g}".replace("e-0", "e-"))
        for name, symbol, weight in found
    ]


def _searchable(entry: Entry) -> str:
    parts = (entry.repo_id, entry.backbone, entry.method, entry.pretrained_on)
    return " ".join([*filter(None, parts), *(name for name, _ in remedies(entry))]).casefold()


def _sort_key(line: Line, column: str) -> Any:
    """Return what a column is sorted by; `None` where there is nothing."""
    entry, row = line.entry, line.row
    match column:
        case "rank" | "value" | "by":
            return row and {"rank": row.rank, "value": row.result.value, "by": row.result.source}[column]
        case "effective_rank":
            return effective_rank(entry)
        case "regularizer":
            weight = entry.strength if entry.penalty_mode == "decoupled" else entry.gamma
            others = [name for name, _ in remedies(entry)]
            return entry.regularizer or "", entry.penalty_mode or "", weight or 0.0, others
    value = entry.repo_id if column == "model" else getattr(entry, column)
    return value.lower() if value else None
