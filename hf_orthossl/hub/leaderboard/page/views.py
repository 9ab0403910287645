"""The HTML of every view: menu and filters, table, scatter, pairs, rejections, one model, several side by side.

Templates show every value as text: nothing that an unknown author wrote can become markup.
"""

import re
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from ....evaluation.results import METRICS, TASKS, Key
from ....spectra.stages import match_features
from ...encoder_record import loading_calls
from ...escaping import literal
from ...measurements import protocol_text
from ..board.rank import Measurement, best, most_trusted
from ..claims.verify import compare
from ..schema import BoardResult, Entry, Spectra, is_repo_id
from . import charts
from .catalogue import COLUMNS, DESCENDING, PAGES, SIZES, Catalogue, View, effective_rank, remedies
from .rendering import environment, render
from .routes import badge_svg, badge_words

PAGE_SIZE = 50
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?")
_WEIGHTS = "weights/"
_SORTINGS = ("rank.up", "effective_rank.down", "effective_rank.up", "model.up", "backbone.up", "method.up")
_SOURCES = [("", "anyone"), ("verified", "author, verified"), ("board", "this board"), ("author", "author only")]
_SPECTRAL = {
    "rankme": ("RankMe", "{:,.1f}"),
    "alpha": ("α-ReQ (decay of the eigenvalues; the larger, the fewer directions count)", "{:.2f}"),
    "participation_ratio": ("Participation ratio", "{:,.1f}"),
    "num_positive": ("Positive eigenvalues", "{:,.0f}"),
    "num_images": ("Images measured on", "{:,.0f}"),
    "weights_rank_mean": ("Weights: mean effective rank, share of the highest possible", "{:.0%}"),
    "weights_rank_min": ("Weights: lowest effective rank, share of the highest possible", "{:.0%}"),
}
_Values = dict[str, Any]


def render_page(catalogue: Catalogue, query: str, base_url: str = "") -> str:
    """Return the HTML of the view that a query string names; any query has a page.

    `base_url` is where the board is served, for badges, such as "https://owner-board.hf.space".
    """
    view = View.from_query(query)
    common = {
        "view": view,
        "num_rejected": len(catalogue.board.rejected),
        "collected_at": catalogue.board.collected_at,
        "endpoint": catalogue.board.endpoint,
        "hub_address": partial(hub_address, catalogue.board.endpoint),
    }
    if view.show in ("model", "compare"):
        make = model_page if view.show == "model" else compare_page
        values = make(catalogue, view, base_url)
    else:
        pages: dict[str, Callable[[Catalogue, View], _Values]]
        pages = {"table": _table, "overall": _overall, "scatter": _scatter, "pairs": _pairs, "rejected": _rejected}
        values = _form(catalogue, view) | pages[view.show](catalogue, view)
    return render(f"{view.show}.html", **common, **values)


def hub_address(endpoint: str, repo_id: str, revision: str | None = None) -> str | None:
    """Return the address of a model on the Hub; `None` if its name is not a Hub id."""
    if not is_repo_id(repo_id):
        return None
    base = endpoint if _ENDPOINT.fullmatch(endpoint) else "https://huggingface.co"
    return f"{base}/{quote(repo_id)}" + (f"/tree/{quote(revision, safe='')}" if revision else "")


def model_page(catalogue: Catalogue, view: View, base_url: str) -> _Values:
    """Return what the page of one model shows; `entry` is `None` for one that is not on the board."""
    entry, chosen = catalogue.entries.get(view.model), catalogue.measurement(view)
    if entry is None:
        return {"entry": None}
    ranked = catalogue.ranked(chosen)
    words = badge_words(catalogue, entry.repo_id, chosen)
    summary = entry.spectra.summary if entry.spectra else {}
    return {
        "entry": entry,
        "row": ranked.get(entry.repo_id),
        "ranked": len(ranked),
        "measure_words": in_words(chosen),
        "facts": _facts(entry),
        "panels": _panels([entry]),
        "spectral": [
            (label, form.format(summary[name])) for name, (label, form) in _SPECTRAL.items() if name in summary
        ],
        "results": _with_remarks(entry),
        "rejected": [one for one in catalogue.board.rejected if one.repo_id == entry.repo_id],
        "calls": loading_calls(entry, entry.repo_id, entry.revision),
        "location": literal(f"hf-hub:{entry.repo_id}@{entry.revision}"),
        "badge": badge_svg(*words),
        "badge_code": _badge_code(entry, view, base_url, ": ".join(words)),
    }


def compare_page(catalogue: Catalogue, view: View, base_url: str) -> _Values:
    """Return what the comparison shows; models that are not on the board are named."""
    models = [catalogue.entries[name] for name in view.compare if name in catalogue.entries]
    facts = [dict(_facts(entry)) for entry in models]
    labels = dict.fromkeys(label for own in facts for label in own)
    return {
        "models": models,
        "unknown": [name for name in view.compare if name not in catalogue.entries],
        "settings": [(label, [own.get(label, "–") for own in facts]) for label in labels],
        "results": _side_by_side(models),
        "panels": _panels(models),
    }


def in_words(measurement: Measurement | None) -> str:
    """Return a measurement as "kNN classification on cifar10, top-1 accuracy"."""
    if measurement is None:
        return ""
    task, dataset, metric = measurement
    return f"{TASKS.get(task, task)} on {dataset}, {METRICS.get(metric, metric)}"


def _form(catalogue: Catalogue, view: View) -> _Values:
    """Return the filters, and the words for what models are ranked by."""
    chosen, listed = catalogue.measurement(view), catalogue.measurements[:100]
    listed = listed if chosen is None or chosen in listed else [*listed, chosen]
    titles = {kind: title[:1].upper() + title[1:] for kind, title in catalogue.penalties.items()}
    titles |= {"none": "no penalty", "any": "any penalty"}

    def choices(name: str, *special: str) -> list[tuple[str, str]]:
        values = dict.fromkeys((*special, *catalogue.choices[name], *filter(None, [getattr(view, name)])))
        return [("", "all"), *((value, titles.get(value, value) if special else value) for value in values)]

    filters = [
        ("method", "Method", choices("method")),
        ("backbone", "Backbone", choices("backbone")),
        ("regularizer", "Penalty on weights", choices("regularizer", "none", "any")),
        ("pretrained_on", "Pretrained on", choices("pretrained_on")),
        ("size", "Parameters", [("", "all"), *((size, words) for size, (words, *_) in SIZES.items())]),
    ]
    if view.show == "table":
        filters.append(("by", "Measured by", _SOURCES))
    narrowed = [name for name, *_ in filters] + ["q"]
    sortings = dict.fromkeys((*_SORTINGS, f"{view.sort}.{view.order}"))
    return {
        "measures": [("|".join(m), f"{in_words(m)} ({catalogue.count(m):,})") for m in listed],
        "measure": "|".join(chosen) if chosen else "",
        "measure_words": in_words(chosen),
        "metric_name": METRICS.get(chosen[2], chosen[2]) if chosen else "value",
        "filters": filters,
        "sortings": [(sorting, _sorting_words(*sorting.split("."))) for sorting in sortings],
        "filtered": any(getattr(view, name) for name in narrowed),
        "reset": view.to(**dict.fromkeys(narrowed, "")),
    }


def _table(catalogue: Catalogue, view: View) -> _Values:
    lines, measurement = catalogue.lines(view), catalogue.measurement(view)
    columns, status = dict(COLUMNS), f"{len(lines):,} of {len(catalogue.entries):,} models"
    if measurement:
        metric = METRICS.get(measurement[2], measurement[2])
        columns["value"] = metric[0].upper() + metric[1:]
        ranked = sum(line.row is not None for line in lines)
        status += f", {ranked:,} of them ranked by {in_words(measurement)}"
    return {
        **_cut(lines, view),
        "columns": list(columns.items()),
        "status": f"{status}.",
        "download": view.query(show="table", compare=(), n=1),
        "empty": _nothing(catalogue, "No model fits these filters: remove one of them."),
    }


def _overall(catalogue: Catalogue, view: View) -> _Values:
    standings, tasks = catalogue.fitting_standings(view), catalogue.tasks
    measured = len(catalogue.standings)
    return {
        **_cut(standings, view),
        "all_tasks": [(measurement, _short(measurement), in_words(measurement)) for measurement in tasks],
        "best_of": {m: max((r.result.value for r in catalogue.ranked(m).values()), default=None) for m in tasks},
        "status": f"{len(standings):,} of {measured:,} models that were measured on one of {len(tasks)} tasks or more.",
        "empty": _nothing(catalogue, "No model that fits these filters was measured on a task that others share."),
    }


def _short(measurement: Measurement) -> str:
    """Return a column's title, such as "kNN, cifar10"."""
    task, dataset, metric = measurement
    words = {"knn": "kNN", "linear": "linear"}.get(task, task)
    return f"{words}, {dataset.rpartition('/')[2]}" + ("" if metric == "top1" else f", {METRICS.get(metric, metric)}")


def parameters_in_words(entry: Entry) -> str:
    """Return a number of parameters, such as "21.7 M"."""
    count = entry.parameters
    if count is None:
        return "unknown"
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,}"


def _scatter(catalogue: Catalogue, view: View) -> _Values:
    lines, chosen = catalogue.lines(view), catalogue.measurement(view)
    points = []
    for line in lines:
        rank = effective_rank(line.entry)
        if line.result and rank is not None and line.entry.spectra:
            dim = line.entry.spectra.summary["dim"]
            label = f"{line.entry.repo_id}: {line.result.value:.3f}, effective rank {rank:.1f} of {dim:,.0f}"
            href = view.query(show="model", model=line.entry.repo_id)
            points.append(charts.Point(rank / dim, line.result.value, _style(line.entry), label, href))
    chart: str = ""
    if points and chosen:
        chart = charts.scatter(points, "effective rank, share of the dimensions", METRICS.get(chosen[2], chosen[2]))
    return {
        "chart": chart,
        "correlation": charts.rank_correlation([point.x for point in points], [point.y for point in points]),
        "status": f"{len(points):,} of {len(lines):,} models have both numbers.",
        "as_table": view.to(show="table", sort="effective_rank", order="down"),
        "empty": _nothing(catalogue, "No model that fits these filters has both an accuracy and published spectra."),
    }


def _style(entry: Entry) -> int:
    """Return the mark of an encoder: 0 without a remedy, 1 with a penalty, 2 with other remedies alone."""
    return 1 if entry.regularizer else 2 if remedies(entry) else 0


def _pairs(catalogue: Catalogue, view: View) -> _Values:
    pairs, chosen = catalogue.pairs(view), catalogue.measurement(view)
    known = [difference for _, _, difference in pairs if difference is not None]
    status = f"{len(pairs):,} pairs."
    if known:
        better = sum(difference > 0 for difference in known)
        status = f"With a penalty {better:,} of {len(known):,} pairs are better; "
        status += f"the median difference is {median(known):+.3f}."
    empty = "No two models that fit these filters differ in the penalty alone."
    return {**_cut(pairs, view), "chosen": chosen, "status": status, "empty": _nothing(catalogue, empty)}


def _rejected(catalogue: Catalogue, view: View) -> _Values:
    words, rejected = view.q.casefold().split(), catalogue.board.rejected
    fitting = [
        one for one in rejected if all(word in f"{one.repo_id} {one.field} {one.reason}".casefold() for word in words)
    ]
    return {
        **_cut(fitting, view),
        "status": f"{len(fitting):,} of {len(rejected):,} entries.",
        "empty": "No entry fits this search." if rejected else "Nothing was rejected.",
    }


def _cut(values: list, view: View) -> _Values:
    """Return the rows of one page, its number, and the number of the last page."""
    last = max(1, -(-len(values) // PAGE_SIZE))
    number = min(view.n, last)
    return {"rows": values[(number - 1) * PAGE_SIZE : number * PAGE_SIZE], "number": number, "last": last}


def _sorting_words(column: str, order: str) -> str:
    words = ("A to Z", "Z to A")
    if column in DESCENDING:
        words = ("smallest first", "largest first")
    elif column == "rank":
        words = ("best first", "last first")
    return f"{COLUMNS[column]}, {words[order == 'down']}"


def _nothing(catalogue: Catalogue, otherwise: str) -> str:
    if catalogue.entries:
        return otherwise
    return "There is no model on this board yet: publish one with orthossl publish, and the next refresh adds it."


def _facts(entry: Entry) -> list[tuple[str, str]]:
    """Return the settings of an entry in words."""
    length = [(entry.steps, "steps"), (entry.epochs, "epochs"), (entry.images_per_step, "images per step")]
    return [
        ("Method", entry.method),
        ("Backbone", entry.backbone),
        ("Pretrained on", entry.pretrained_on or "not named"),
        ("Image size", f"{entry.image_size} × {entry.image_size} pixels"),
        (
            "Training",
            ", ".join(f"{value:,g} {unit}" for value, unit in length if value is not None) or "length unknown",
        ),
        ("Optimizer", entry.optimizer or "not recorded"),
        ("Parameters", parameters_in_words(entry)),
        ("Revision", entry.revision[:12]),
        ("Last changed", (entry.last_modified or "unknown")[:10]),
        ("hf_orthossl", entry.library_version or "not recorded"),
    ]


def _panels(models: list[Entry]) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """Return figures by section: (title, [(layer, chart)]); the same layer, or place, of all models in one chart."""
    features: list[dict[str, charts.Curve]] = [{} for _ in models]
    weights: list[dict[str, charts.Curve]] = [{} for _ in models]
    for style, entry in enumerate(models):
        spectra = entry.spectra or Spectra({})
        for name, values in spectra.curves.items():
            curve = charts.Curve(style, entry.repo_id, spectra.ranks(name), values, spectra.lengths[name])
            section = weights if name.startswith(_WEIGHTS) else features
            section[style][name.removeprefix(_WEIGHTS)] = curve
    sections = [("Features, layer by layer", features), ("Weights, the last matrix of each stage", weights)]
    return [
        (title, [(name, charts.spectrum(name, list(matched.values()))) for name, matched in match_features(of)])
        for title, of in sections
        if any(of)
    ]


def _with_remarks(entry: Entry) -> list[tuple[BoardResult, str]]:
    """Return results, with a remark beside each claim that this board did not confirm."""
    claims = [result for result in entry.results if result.source != "board"]
    compared = compare(claims, [result for result in entry.results if result.source == "board"])
    remarks = {
        id(pair.claimed): f"this board measured {pair.measured.value:.3f}"
        for pair in compared
        if pair.measured and pair.agrees is False
    }
    return [(result, remarks.get(id(result), "")) for result in entry.results]


def _badge_code(entry: Entry, view: View, base_url: str, words: str) -> str:
    about = View(show="model", model=entry.repo_id, task=view.task, dataset=view.dataset, metric=view.metric)
    chosen = about.query(show="table", model="")
    image = f"{base_url}/badge/{entry.repo_id}.svg" + (chosen if len(chosen) > 1 else "")
    return f"[![{words}]({image})]({base_url}/{about.query()})"


def _side_by_side(models: list[Entry]) -> list[tuple[str, str, list[tuple[str, bool]]]]:
    """Return results by what was measured and how: (label, protocol, [(value in words, whether it is the best)])."""
    by_question: dict[Key, dict[int, BoardResult]] = {}
    for place, entry in enumerate(models):
        for question, result in most_trusted(entry.results).items():
            by_question.setdefault(question, {})[place] = result
    rows = []
    for values in by_question.values():
        first, top = next(iter(values.values())), max(result.value for result in values.values())
        task, metric = TASKS.get(first.task, first.task), METRICS.get(first.metric, first.metric)
        cells = [_cell(values.get(place), top, len(values)) for place in range(len(models))]
        rows.append((f"{task} on {first.dataset} ({first.split}), {metric}", protocol_text(first), cells))
    return rows


def _cell(result: BoardResult | None, top: float, count: int) -> tuple[str, bool]:
    if result is None:
        return "–", False
    bounds = "" if result.low is None else f" ({result.low:.3f}–{result.high:.3f})"
    return f"{result.value:.3f}{bounds}", count > 1 and result.value == top


environment().globals |= {
    "tasks": TASKS,
    "metrics": METRICS,
    "pages_of": PAGES,
    "best": best,
    "effective_rank": effective_rank,
    "parameters_in_words": parameters_in_words,
    "remedies": remedies,
    "protocol_text": protocol_text,
}
