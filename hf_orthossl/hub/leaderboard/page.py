"""The page for one view: menu, filters, and the table, scatter, pairs or what was left out."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from ..words import METRICS, REGULARIZERS
from . import charts
from .catalogue import Catalogue, effective_rank
from .model_page import compare_page, model_page
from .ranking import best
from .rendering import hub_address, in_words, render
from .view import DESCENDING, PAGES, SIZES, View

PAGE_SIZE = 50
_TITLES = {
    "rank": "Rank",
    "model": "Model",
    "method": "Method",
    "backbone": "Backbone",
    "regularizer": "Penalty",
    "pretrained_on": "Pretrained on",
    "value": "Value",
    "effective_rank": "Effective rank",
    "by": "Measured by",
}
_SORTINGS = ("rank.up", "effective_rank.down", "effective_rank.up", "model.up", "backbone.up", "method.up")
_SOURCES = [("", "anyone"), ("verified", "author, verified"), ("board", "this board"), ("author", "author only")]


def render_page(catalogue: Catalogue, query: str, base_url: str = "") -> str:
    """The HTML that a query string asks for; any query has a page.

    Args:
        catalogue ([`Catalogue`]): The board.
        query (`str`): From a visitor's address bar.
        base_url (`str`, *optional*): Where the board is served, for badges, such as "https://owner-board.hf.space".
    """
    view = View.from_query(query)
    common = {
        "view": view,
        "pages_of": PAGES,
        "asides": len(catalogue.board.asides),
        "collected_at": catalogue.board.collected_at,
        "endpoint": catalogue.board.endpoint,
        "hub_address": partial(hub_address, catalogue.board.endpoint),
    }
    if view.show in ("model", "compare"):
        make = model_page if view.show == "model" else compare_page
        return render(f"{view.show}.html", **common, **make(catalogue, view, base_url))
    pages: dict[str, Callable] = {"table": _table, "scatter": _scatter, "pairs": _pairs, "aside": _aside}
    return render(f"{view.show}.html", **common, **_form(catalogue, view), **pages[view.show](catalogue, view))


def _form(catalogue: Catalogue, view: View) -> dict[str, Any]:
    """Filters, and the words for what models are ranked by."""
    chosen = catalogue.measurement(view)
    measures = [("|".join(m), f"{in_words(m)} ({catalogue.count(m):,})") for m in _with(catalogue.measurements, chosen)]
    names = {kind: words[0].upper() + words[1:] for kind, words in REGULARIZERS.items()}

    def choices(name: str, first: str) -> list[tuple[str, str]]:
        current = getattr(view, name)
        values = catalogue.choices[name] + ([current] if current and current not in catalogue.choices[name] else [])
        return [("", first), *((value, value) for value in values)]

    penalties = [("", "all"), ("none", "none"), ("any", "any")]
    kinds = [value for value, _ in choices("regularizer", "") if value not in ("", "none", "any")]
    filters = [
        ("method", "Method", choices("method", "all")),
        ("backbone", "Backbone", choices("backbone", "all")),
        ("regularizer", "Penalty", penalties + [(kind, names.get(kind, kind)) for kind in kinds]),
        ("pretrained_on", "Pretrained on", choices("pretrained_on", "all")),
        ("size", "Parameters", [("", "all"), *((size, words) for size, (words, *_) in SIZES.items())]),
    ]
    if view.show == "table":
        filters.append(("by", "Measured by", _SOURCES))
    narrowed = [name for name, *_ in filters] + ["q"]
    sortings = dict.fromkeys((*_SORTINGS, f"{view.sort}.{view.order}"))
    return {
        "measures": measures,
        "measure": "|".join(chosen) if chosen else "",
        "measure_words": in_words(chosen),
        "metric_name": METRICS.get(chosen[2], chosen[2]) if chosen else "value",
        "filters": filters,
        "sortings": [(sorting, _sorting_words(sorting)) for sorting in sortings],
        "filtered": any(getattr(view, name) for name in narrowed),
        "reset": view.to(**dict.fromkeys(narrowed, "")),
    }


def _table(catalogue: Catalogue, view: View) -> dict[str, Any]:
    lines, measurement = catalogue.lines(view), catalogue.measurement(view)
    measured = sum(line.row is not None for line in lines)
    words = f"{len(lines):,} of {len(catalogue.entries):,} models"
    if measurement:
        name = METRICS.get(measurement[2], measurement[2])
        words += f", {measured:,} of them ranked by {in_words(measurement)}"
    columns = [
        (column, name[0].upper() + name[1:] if column == "value" and measurement else title)
        for column, title in _TITLES.items()
    ]
    return {
        **_cut(lines, view),
        "columns": columns,
        "status": words + ".",
        "download": view.query(show="table", compare=(), n=1),
        "empty": _nothing(catalogue, "No model fits these filters: remove one of them."),
    }


def _scatter(catalogue: Catalogue, view: View) -> dict[str, Any]:
    lines, chosen = catalogue.lines(view), catalogue.measurement(view)
    points = []
    for line in lines:
        rank = effective_rank(line.entry)
        if line.result and rank is not None:
            label = f"{line.entry.repo_id}: {line.result.value:.3f}, effective rank {rank:.1f}"
            href = view.query(show="model", model=line.entry.repo_id)
            points.append(charts.Point(rank, line.result.value, int(bool(line.entry.regularizer)), label, href))
    xs, ys = [point.x for point in points], [point.y for point in points]
    chart = charts.scatter(points, "effective rank", METRICS.get(chosen[2], chosen[2])) if points else ""
    return {
        "chart": chart,
        "keys": [charts.key(0), charts.key(1)],
        "correlation": charts.rank_correlation(xs, ys),
        "status": f"{len(points):,} of {len(lines):,} models have both numbers.",
        "as_table": view.to(show="table", sort="effective_rank", order="down"),
        "empty": _nothing(catalogue, "No model that fits these filters has both an accuracy and published spectra."),
    }


def _pairs(catalogue: Catalogue, view: View) -> dict[str, Any]:
    pairs, chosen = catalogue.pairs(view), catalogue.measurement(view)
    known = [difference for _, _, difference in pairs if difference is not None]
    better = sum(difference > 0 for difference in known)
    status = f"{len(pairs):,} pairs."
    if known:
        status = f"With a penalty {better:,} of {len(known):,} pairs are better; "
        status += f"the median difference is {median(known):+.3f}."
    cut = _cut(pairs, view)
    cut["rows"] = [
        {
            "without": without,
            "with_": with_,
            "difference": difference,
            "results": [best(entry, *chosen) for entry in (without, with_)],
            "ranks": [effective_rank(entry) for entry in (without, with_)],
        }
        for without, with_, difference in cut["rows"]
    ]
    empty = "No two models that fit these filters differ by the penalty alone."
    return {**cut, "status": status, "empty": _nothing(catalogue, empty)}


def _aside(catalogue: Catalogue, view: View) -> dict[str, Any]:
    words = view.q.casefold().split()
    fitting = [
        aside
        for aside in catalogue.board.asides
        if all(word in f"{aside.repo_id} {aside.field} {aside.reason}".casefold() for word in words)
    ]
    count = len(catalogue.board.asides)
    return {
        **_cut(fitting, view),
        "status": f"{len(fitting):,} of {count:,} entries.",
        "empty": "Nothing was left out." if not count else "No entry fits this search.",
    }


def _cut(values: list, view: View) -> dict[str, Any]:
    """The rows of one page, its number, and the number of the last."""
    last = max(1, -(-len(values) // PAGE_SIZE))
    number = min(view.n, last)
    return {"rows": values[(number - 1) * PAGE_SIZE : number * PAGE_SIZE], "number": number, "last": last}


def _with(measurements: list, chosen: tuple | None) -> list:
    listed = measurements[:100]
    return listed if chosen is None or chosen in listed else [*listed, chosen]


def _sorting_words(sorting: str) -> str:
    column, order = sorting.split(".")
    if column in DESCENDING:
        return f"{_TITLES[column]}, {'largest' if order == 'down' else 'smallest'} first"
    if column == "rank":
        return "Rank, best first" if order == "up" else "Rank, last first"
    return f"{_TITLES[column]}, {'A to Z' if order == 'up' else 'Z to A'}"


def _nothing(catalogue: Catalogue, otherwise: str) -> str:
    if catalogue.entries:
        return otherwise
    return "No model is on this board yet: publish one with orthossl publish, and the next refresh finds it."
