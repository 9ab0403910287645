"""Charts of a report as data for its template: lines over steps or indices, and a map, with axes and ticks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..hub.leaderboard.page.charts import Scale
from ..spectra import SpectralReport
from ..spectra.spectrum import FeatureSpectrum, WeightSpectrum
from ..spectra.stages import match_features, match_weights, short_name
from .run import RANK, RELATIVE, Run

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 190, 44, 8, 8, 26
# Points of a curve; more are not told apart.
MOST_POINTS = 160
# The style sheet has as many colours.
COLORS = 6
# The part of the loss that is the penalty's.
PENALTY = "orthogonality"
# Parts of a log entry that are no part of the loss.
_NO_LOSS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "total_flos", "embedding_std")


@dataclass(frozen=True)
class Line:
    """One curve of a chart: its name, its last value in words, its points on the page, and its colour."""

    name: str
    value: str
    points: list[tuple[float, float]]
    color: int
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart: title, note, axes and lines.

    Args:
        title (`str`): What is drawn.
        lines (`list[Line]`): The curves, or the groups of a map.
        x ([`Scale`]): The horizontal axis.
        y ([`Scale`]): The vertical axis.
        x_label (`str`): What the horizontal axis counts.
        note (`str`): A remark below the title.
        dots (`bool`): Whether points are drawn instead of lines.
        label (`str`): The chart in words.
    """

    title: str
    lines: list[Line]
    x: Scale
    y: Scale
    x_label: str = "step"
    note: str = ""
    dots: bool = False
    label: str = field(default="")


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str = "step",
    log: bool = False,
    values: Mapping[str, str] | None = None,
    dashed: Sequence[str] = (),
    note: str = "",
    low: float | None = None,
    high: float | None = None,
) -> Chart | None:
    """Return a chart of curves; `None` without a point.

    Args:
        title (`str`): What is drawn.
        series (mapping): Name → points `(x, y)`, with ascending x.
        x_label (`str`): What the horizontal axis counts.
        log (`bool`): Whether both axes are logarithmic.
        values (mapping, *optional*): Name → what the legend says; defaults to the last value.
        dashed (sequence of `str`): Names of curves to dash.
        note (`str`): A remark below the title.
        low (`float`, *optional*): The vertical axis reaches down to it.
        high (`float`, *optional*): The vertical axis reaches up to it.
    """
    drawn = {name: [p for p in points if not log or min(p) > 0] for name, points in series.items()}
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    if not xs:
        return None
    bottom, top = min(ys if low is None else [low, *ys]), max(ys if high is None else [high, *ys])
    if log:
        bottom, top = 10.0 ** math.floor(math.log10(bottom) + 1e-9), max(top, 1.0)
    elif top - bottom < 1e-9 * max(abs(top), 1e-9):
        bottom, top = bottom - 0.05 * abs(bottom or 1), top + 0.05 * abs(top or 1)
    else:
        pad = 0.04 * (top - bottom)
        bottom, top = (bottom if low is not None else bottom - pad), (top if high is not None else top + pad)
    x = Scale(min(xs), max(max(xs), min(xs) + 1), LEFT, WIDTH - RIGHT, log=log)
    y = Scale(bottom, top, HEIGHT - BOTTOM, TOP, log=log)
    lines = [
        Line(
            name,
            values[name] if values else (f"{points[-1][1]:.4g}" if points else "no variance"),
            [(x(a), y(b)) for a, b in _thinned(points)],
            number % COLORS,
            name in dashed,
        )
        for number, (name, points) in enumerate(drawn.items())
    ]
    said = "; ".join(f"{line.name} {line.value}" for line in lines)
    return Chart(title, lines, x, y, x_label, note, label=f"{title}: {said}")


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MOST_POINTS:
        return list(points)
    return [points[round(i * (len(points) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def over_time(run: Run) -> list[Chart]:
    """Return the charts of a run's log: parts of the loss, accuracies, ranks, and the learning rate.

    Args:
        run ([`Run`]): The run.
    """
    keys = dict.fromkeys(key for entry in run.history for key in entry)
    parts = [key for key in keys if "/" not in key and key not in _NO_LOSS and not key.startswith("train_")]
    # A single part is the loss itself, and the penalty is far smaller than the rest of it.
    shown = [key for key in parts if key != PENALTY]
    loss = {key: run.series(key) for key in ["loss", *(shown if len(shown) > 1 else [])]}
    stages = {
        short_name(key.removeprefix("spectra/weights/").removesuffix("/effective_rank")): key
        for key in keys
        if key.startswith("spectra/weights/") and key.endswith("/effective_rank")
    }
    ranks = {"representation": run.series(RANK)}
    patches = run.series("spectra/features/patch_tokens/effective_rank")
    ranks |= {"patch tokens": patches} if patches else {}
    accuracies = {"kNN top-1": run.series("knn/top1"), "linear probe top-1": run.series("linear_probe/top1")}
    # Weights of different widths have a common scale as shares of their first value.
    weights = {name: run.series(key) for name, key in stages.items()}
    charts = [
        line_chart("Loss" if len(loss) == 1 else "Loss, and its parts", {k: v for k, v in loss.items() if v}),
        line_chart("Effective rank of the representation", {k: v for k, v in ranks.items() if v}, low=0),
        line_chart(
            "Accuracy, by labels that training ignores", {k: v for k, v in accuracies.items() if v}, low=0, high=1
        ),
        line_chart(
            "Weights: mean share of the directions in use",
            {"last matrix of each stage": run.series(RELATIVE)},
            low=0,
            high=1,
        ),
        line_chart("Weights: effective rank of the last matrix of each stage", weights, low=0),
        line_chart("Penalty in the loss, γ · Σ OR(W)", {"orthogonality": run.series(PENALTY)}, low=0),
        line_chart("Standard deviation of the embedding", {"embedding": run.series("embedding_std")}, low=0),
        line_chart("Learning rate", {"learning rate": run.series("learning_rate")}, low=0),
    ]
    return [chart for chart in charts if chart is not None and len(chart.lines[0].points) > 1]


def spectra(run: Run) -> tuple[list[Chart], list[Chart]]:
    """Return the charts of the spectra of weights and of features, with those of the start where it was measured.

    Layers of equal spectra, such as a ResNet's last stage and its representation, share a chart.

    Args:
        run ([`Run`]): The run.
    """
    named: dict[str, SpectralReport] = {}
    if run.start is not None:
        named["start"] = run.start
    if run.spectra is not None:
        named["end" if named else "effective rank"] = run.spectra
    names, reports = list(named), list(named.values())
    weights = [
        _spectrum(title, {names[i]: s for i, s in own.items()})
        for title, own in match_weights([report.weights for report in reports])
    ]
    features: dict[tuple, tuple[list[str], dict[str, FeatureSpectrum]]] = {}
    for title, own in match_features([report.features for report in reports]):
        curves = {names[i]: s for i, s in own.items()}
        key = tuple((name, s.effective_rank, len(s.eigenvalues), float(s.total_variance)) for name, s in curves.items())
        features.setdefault(key, ([], curves))[0].append(title)
    drawn = [_spectrum(" = ".join(titles), curves) for titles, curves in features.values()]
    return [c for c in weights if c is not None], [c for c in drawn if c is not None]


def _spectrum(title: str, curves: Mapping[str, WeightSpectrum | FeatureSpectrum]) -> Chart | None:
    series, values, dashed, notes = {}, {}, [], []
    for name, spectrum in curves.items():
        most = spectrum.most_positive if spectrum.exact else min(spectrum.most_positive, len(spectrum.eigenvalues))
        count = spectrum.num_positive
        series[name] = list(enumerate(spectrum.eigenvalues[:count].tolist(), 1))
        rank = f"{spectrum.effective_rank:.{0 if spectrum.effective_rank >= 100 else 1}f}"
        values[name] = f"{'' if spectrum.exact else '≥ '}{rank} of {most:,}"
        if count < most:
            dashed.append(name)
            notes.append(f"{most - count:,} of {most:,} directions have no variance")
        if isinstance(spectrum, FeatureSpectrum) and spectrum.most_positive < spectrum.dim - spectrum.removed_by_norm:
            notes.append(f"{spectrum.num_images:,} images show at most {spectrum.most_positive:,}")
    note = "; ".join(dict.fromkeys(notes))
    # At least two decades, so that a flat spectrum looks flat.
    chart = line_chart(title, series, x_label="index", log=True, values=values, dashed=dashed, note=note, low=0.01)
    if chart is not None:
        return chart
    first = next(iter(curves.values()))
    scale = Scale(1, max(2, first.dim), LEFT, WIDTH - RIGHT, log=True)
    return Chart(
        title,
        [Line(n, "no variance", [], i) for i, n in enumerate(curves)],
        scale,
        Scale(0.01, 1, HEIGHT - BOTTOM, TOP, log=True),
        "index",
        note,
        label=f"{title}: no variance",
    )


def class_map(points: Sequence[tuple[float, float, int, str]], axes: tuple[str, str]) -> Chart | None:
    """Return the map of representations, a colour for each class, or one for all if there are more than colours.

    Args:
        points (sequence): x, y, class from 0 (−1 for none), and the name of the class.
        axes (`tuple[str, str]`): Labels of the axes.
    """
    if not points:
        return None
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y = Scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    groups: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for a, b, label, name in sorted(points, key=lambda point: point[2]):
        groups.setdefault((label, name), []).append((x(a), y(b)))
    lines = [
        Line(name or "no label", f"{len(own)} images", own, place)
        for place, ((_, name), own) in enumerate(groups.items())
    ]
    return Chart(
        "Map of the representations (PCA)",
        lines,
        x,
        y,
        axes[0],
        f"across: {axes[0]}; upwards: {axes[1]}",
        True,
        label=f"{len(points)} representations on their two leading principal components",
    )
