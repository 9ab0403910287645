"""Draw the figures of the studies from the rows that are there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_orthossl.spectra.figures import COLORS, new_figure, save_figure

from .measures import KEYS
from .plan import METHOD_NAMES, RATES
from .transfer import Setting, settings_of

Rows = Sequence[Mapping[str, Any]]
REMEDIES = {"so": "SO", "srip": "SRIP", "so:decoupled": "SO decoupled", "muon": "Muon"}


def draw_figures(rows: Rows, folder: Path) -> dict[str, Path]:
    """Draw a figure for each study that has runs enough, and return their files by study."""
    runs = [row for row in rows if row["kind"] == "run" and "linear" in row]
    methods = [row for row in runs if row["study"] == "methods"]
    drawn = {}
    if any(row["arm"] != "none" for row in methods):
        drawn["methods"] = _differences(methods, folder / "methods.png")
    settings = settings_of([row for row in runs if row["study"] == "transfer"])
    if any(len(curve) > 1 for setting in settings for curve in setting.curves.values()):
        drawn["transfer"] = _curves(settings, folder / "transfer.png")
    if len(methods) >= 3:
        drawn["measures"] = _scatter(methods, folder / "measures.png")
    return drawn


def _differences(runs: Rows, path: Path) -> Path:
    """Draw for each method the difference of each remedy from none, seed by seed."""
    methods = [method for method in METHOD_NAMES if any(row["method"] == method for row in runs)]
    figure = new_figure(8.0, 1.2 + 0.42 * len(methods))
    panels = {"linear": "linear probe", "knn": "kNN"}
    for axes, (measure, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        reference = {(row["method"], row["seed"]): row[measure] for row in runs if row["arm"] == "none"}
        for number, (arm, name) in enumerate(REMEDIES.items()):
            points = [
                (100 * (row[measure] - reference[row["method"], row["seed"]]), methods.index(row["method"]))
                for row in runs
                if row["arm"] == arm and (row["method"], row["seed"]) in reference
            ]
            if points:
                places = [place + 0.18 * (number - 1.5) for _, place in points]
                axes.plot(
                    [x for x, _ in points], places, "o", color=COLORS[number], label=name, markersize=4, alpha=0.8
                )
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlabel(f"{title}: points above none", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(True, axis="x", color="0.9", linewidth=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return save_figure(figure, path)


def _curves(settings: Sequence[Setting], path: Path) -> Path:
    """Draw accuracy against strength for each setting: γ, γ over the γ that was measured, and λ."""
    figure = new_figure(10.0, 3.4)
    # A colour for each pair of width and rate, lower or higher; a kind of line for each optimizer.
    kinds = sorted({(setting.width, higher) for setting in settings for higher in (False, True)})
    middle = {name.partition("_")[0]: 3 * rate for name, rate in RATES.items()}
    titles = ("γ in the loss", "γ / γ of --gamma auto", "λ decoupled")
    for place, (axes, title) in enumerate(zip(figure.subplots(1, 3, sharey=True), titles, strict=True)):
        for setting in settings:
            curve = setting.curves["strength" if place == 2 else "gamma"]
            scale = 1.0
            if place == 1:
                if setting.auto is None:
                    continue
                scale = setting.auto[0]
            color = COLORS[kinds.index((setting.width, setting.rate > middle[setting.optimizer]))]
            line = "-" if setting.optimizer == "adamw" else "--"
            label = f"{setting.optimizer}, {setting.width} channels, rate {setting.rate:g}"
            points = sorted(curve.items())
            accuracies = [100 * accuracy for _, accuracy in points]
            axes.plot([x / scale for x, _ in points], accuracies, f"o{line}", color=color, label=label, markersize=3)
            if place == 1 and setting.auto is not None:
                axes.plot(1.0, 100 * setting.auto[1], "*", color=color, markersize=9)
        axes.set_xscale("log")
        axes.set_xlabel(title, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(True, color="0.9", linewidth=0.6)
        if place == 0:
            axes.set_ylabel("linear top-1, %", fontsize=8)
            handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", fontsize=7, frameon=False)
    return save_figure(figure, path)


def _scatter(runs: Rows, path: Path) -> Path:
    """Draw the linear probe against each measure, a dot for each run, coloured by method."""
    methods = [method for method in METHOD_NAMES if any(row["method"] == method for row in runs)]
    figure = new_figure(11.0, 3.2)
    for axes, (title, key) in zip(figure.subplots(1, len(KEYS), sharey=True), KEYS.items(), strict=True):
        for number, method in enumerate(methods):
            own = [row for row in runs if row["method"] == method and key in row]
            marker = "o^"[number // len(COLORS) % 2]
            color = COLORS[number % len(COLORS)]
            values = [100 * row["linear"] for row in own]
            axes.plot([row[key] for row in own], values, marker, color=color, label=method, markersize=3, alpha=0.8)
        axes.set_xlabel(title, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(True, color="0.9", linewidth=0.6)
    figure.axes[0].set_ylabel("linear top-1, %", fontsize=8)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", fontsize=7, frameon=False)
    return save_figure(figure, path)
