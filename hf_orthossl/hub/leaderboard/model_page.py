"""One model in full, and up to four side by side."""

from typing import Any

from markupsafe import Markup

from ...spectra.stages import match_features
from ..encoder_record import loading_calls
from ..escaping import literal
from ..words import METRICS, TASKS
from . import charts
from .badge import badge_svg, badge_words
from .catalogue import Catalogue, effective_rank
from .ranking import most_trusted
from .rendering import in_words
from .schema import Entry, Measured
from .verification import compare
from .view import View

_WEIGHTS = "weights/"
_MEASURES = {
    "rankme": ("RankMe", "{:,.1f}"),
    "alpha": ("α-ReQ (fall of the eigenvalues; larger: fewer directions count)", "{:.2f}"),
    "participation_ratio": ("Participation ratio", "{:,.1f}"),
    "num_positive": ("Positive eigenvalues", "{:,.0f}"),
    "num_images": ("Images measured on", "{:,.0f}"),
    "weights_rank_mean": ("Weights: mean effective rank, share of the highest possible", "{:.0%}"),
    "weights_rank_min": ("Weights: lowest effective rank, share of the highest possible", "{:.0%}"),
}


def model_page(catalogue: Catalogue, view: View, base_url: str) -> dict[str, Any]:
    """What the page of one model shows; `entry` is `None` for one that is not on the board."""
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
        "facts": facts(entry),
        "panels": panels([entry]),
        "reading": _reading(entry),
        "measures_of_spectra": [
            (label, form.format(summary[name])) for name, (label, form) in _MEASURES.items() if name in summary
        ],
        "results": _with_remarks(entry),
        "tasks": TASKS,
        "metrics": METRICS,
        "asides_of": [aside for aside in catalogue.board.asides if aside.repo_id == entry.repo_id],
        **_loading(entry),
        "badge": badge_svg(*words),
        "badge_code": _badge_code(entry, view, base_url, ": ".join(words)),
    }


def compare_page(catalogue: Catalogue, view: View, base_url: str) -> dict[str, Any]:
    """What the comparison shows; models that are not on the board are named."""
    models = [catalogue.entries[name] for name in view.compare if name in catalogue.entries]
    told = [dict(facts(entry)) for entry in models]
    labels = dict.fromkeys(label for own in told for label in own)
    return {
        "models": models,
        "unknown": [name for name in view.compare if name not in catalogue.entries],
        "keys": [charts.key(style) for style in range(len(models))],
        "settings": [(label, [own.get(label, "–") for own in told]) for label in labels],
        "results": _side_by_side(models),
        "panels": panels(models),
    }


def facts(entry: Entry) -> list[tuple[str, str]]:
    """Settings of an entry in words."""
    return [
        ("Method", entry.method),
        ("Backbone", entry.backbone),
        ("Pretrained on", entry.pretrained_on or "not named"),
        ("Image size", f"{entry.image_size} × {entry.image_size} pixels"),
        ("Training", _length(entry)),
        ("Parameters", "not known" if entry.parameters is None else _count(entry.parameters)),
        ("Revision", entry.revision[:12]),
        ("Last changed", (entry.last_modified or "not known")[:10]),
        ("hf_orthossl", entry.library_version or "not recorded"),
    ]


def panels(models: list[Entry]) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """Figures by section: (title, [(layer, chart)]); the same layer, or place, of all models in one chart."""
    curves: list[dict[str, charts.Curve]] = []
    for style, entry in enumerate(models):
        spectra = entry.spectra
        names = spectra.curves if spectra else ()
        own = {
            n: charts.Curve(style, entry.repo_id, spectra.ranks(n), spectra.curves[n], spectra.lengths[n])
            for n in names
        }
        curves.append(own)
    features = [{name: c for name, c in own.items() if not name.startswith(_WEIGHTS)} for own in curves]
    weights = [{n.removeprefix(_WEIGHTS): c for n, c in own.items() if n.startswith(_WEIGHTS)} for own in curves]
    sections = [("Features, layer by layer", features), ("Weights, the last matrix of each stage", weights)]
    return [
        (title, [(name, charts.spectrum(name, list(found.values()))) for name, found in match_features(of)])
        for title, of in sections
        if any(of)
    ]


def _with_remarks(entry: Entry) -> list[tuple[Measured, str]]:
    """Results, each claim that a re-run of this board does not bear out with a remark."""
    measured = [result for result in entry.results if result.source == "board"]
    compared = compare([result for result in entry.results if result.source != "board"], measured)
    differing = {pair.claimed: pair for pair in compared if pair.agrees is False}
    remarks = {claim: f"this board got {pair.measured.value:.3f}" for claim, pair in differing.items()}
    return [(result, remarks.get(result, "")) for result in entry.results]


def _reading(entry: Entry) -> str:
    rank = effective_rank(entry)
    if rank is None:
        return ""
    dim = entry.spectra.summary["dim"]
    return (
        f"The representation uses {rank:,.1f} of {dim:,.0f} dimensions ({rank / dim:.0%}) by its effective rank. "
        "A collapsed encoder's is near 1, and its curves fall steeply; a healthy one's fall slowly."
    )


def _loading(entry: Entry) -> dict[str, Markup | None]:
    """Python that loads this revision: with timm, with transformers, and where that runs the author's code, without."""
    calls = loading_calls(entry, entry.repo_id, entry.revision)
    timm = f"import timm\n\nencoder = {calls['timm_call']}"
    auto = (
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        f"processor = AutoImageProcessor.from_pretrained({calls['location']})\nencoder = {calls['auto_call']}"
    )
    own = literal(f"hf-hub:{entry.repo_id}@{entry.revision}")
    own = f"from hf_orthossl import load_encoder\n\nencoder = load_encoder({own}, pretrained=True).eval()"
    shown = {
        "timm_code": calls["timm_call"] and timm,
        "auto_code": auto,
        "own_code": own if entry.remote_code else None,
    }
    # Line breaks are ours: the page's texts are otherwise one line each.
    return {name: code and Markup("{}").format(str(code)) for name, code in shown.items()}


def _badge_code(entry: Entry, view: View, base_url: str, words: str) -> str:
    about = View(show="model", model=entry.repo_id, task=view.task, dataset=view.dataset, metric=view.metric)
    chosen = about.query(show="table", model="")
    image = f"{base_url}/badge/{entry.repo_id}.svg" + (chosen if len(chosen) > 1 else "")
    return f"[![{words}]({image})]({base_url}/{about.query()})"


def _side_by_side(models: list[Entry]) -> list[tuple[str, str, list[tuple[str, bool]]]]:
    """Results by what was measured and how: (label, protocol, [(value in words, whether it is the best)])."""
    found: dict[tuple, dict[int, Measured]] = {}
    for place, entry in enumerate(models):
        for question, result in most_trusted(entry.results).items():
            found.setdefault(question, {})[place] = result
    rows = []
    for values in found.values():
        first = next(iter(values.values()))
        label = f"{TASKS.get(first.task, first.task)} on {first.dataset} ({first.split}), "
        label += f"{METRICS.get(first.metric, first.metric)}"
        top = max(result.value for result in values.values())
        cells = [_cell(values.get(place), top, len(values)) for place in range(len(models))]
        rows.append((label, first.protocol, cells))
    return rows


def _cell(result: Measured | None, top: float, count: int) -> tuple[str, bool]:
    if result is None:
        return "–", False
    interval = "" if result.low is None else f" ({result.low:.3f}–{result.high:.3f})"
    return f"{result.value:.3f}{interval}", count > 1 and result.value == top


def _length(entry: Entry) -> str:
    told = [(entry.steps, "steps"), (entry.epochs, "epochs"), (entry.images_per_step, "images per step")]
    return ", ".join(f"{value:,g} {unit}" for value, unit in told if value is not None) or "length not told"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M" if parameters >= 1e5 else f"{parameters:,}"
