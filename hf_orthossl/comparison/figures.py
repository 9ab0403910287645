"""Draw the figures of a comparison: every seed as a dot, spectra overlaid, and ranks over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..spectra import SpectralReport, plot_spectra
from ..spectra.figures import COLORS, new_figure, save_figure

# Name of a figure → its file.
FIGURES = {"seeds": "seeds.png", "spectra": "spectra.png", "over_time": "over_time.png"}
# Arms whose spectra are drawn over each other, each in a colour of its own.
MOST_SPECTRA = len(COLORS)
# Title of a panel → keys of the number in a row.
SEED_PANELS = {
    "kNN top-1": ("knn",),
    "linear top-1": ("linear",),
    "effective rank of\nthe representation": ("representation", "effective_rank"),
    "relative rank of\nthe weights": ("weights_relative_rank",),
}
TIME_PANELS = {
    "relative rank of the weights": "weights_relative_rank",
    "effective rank of the representation": "effective_rank",
}


def draw_figures(record: Mapping[str, Any], spectra: Mapping[str, Path], folder: Path) -> None:
    """Draw the figures of the runs that have ended.

    Args:
        record (`dict`): The content of `comparison.json`.
        spectra (mapping): Arm → folder of the spectra of one of its runs.
        folder (`Path`): Receives the files of `FIGURES`.
    """
    rows = [row for row in record["runs"] if "failed" not in row]
    arms = [arm["name"] for arm in record["arms"] if any(row["arm"] == arm["name"] for row in rows)]
    if not rows:
        return
    plot_seeds(rows, arms, folder / FIGURES["seeds"])
    reports = {
        arm: SpectralReport.load(spectra[arm])
        for arm in arms[:MOST_SPECTRA]
        if (spectra[arm] / "spectra.json").is_file()
    }
    if reports:
        plot_spectra(reports, folder / FIGURES["spectra"])
    plot_over_time(rows, arms, folder / FIGURES["over_time"])


def plot_seeds(rows: Sequence[Mapping[str, Any]], arms: Sequence[str], path: Path) -> Path:
    """Draw a panel for each measure, with a row for each arm, a dot for each seed and a bar at the mean."""
    panels = {title: keys for title, keys in SEED_PANELS.items() if any(_value(row, keys) is not None for row in rows)}
    figure = new_figure(1.2 + 2.1 * len(panels), 1.0 + 0.28 * len(arms))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, keys) in zip(axes, panels.items(), strict=True):
        for place, arm in enumerate(arms):
            values = [value for row in rows if row["arm"] == arm and (value := _value(row, keys)) is not None]
            if values:
                color, mean = COLORS[place % len(COLORS)], sum(values) / len(values)
                axis.plot(values, [place] * len(values), "o", color=color, alpha=0.8, markersize=5)
                axis.plot([mean, mean], [place - 0.3, place + 0.3], color=color, linewidth=2)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(True, axis="x", color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(arms)), arms, fontsize=8)
    axes[0].set_ylim(len(arms) - 0.4, -0.6)
    return save_figure(figure, path)


def plot_over_time(rows: Sequence[Mapping[str, Any]], arms: Sequence[str], path: Path) -> Path | None:
    """Draw ranks against steps, a line for each run, in the colour of its arm; nothing if none were logged."""
    panels = {title: key for title, key in TIME_PANELS.items() if any(row["over_time"][key] for row in rows)}
    if not panels:
        return None
    figure = new_figure(1.6 + 3.4 * len(panels), 2.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, key) in zip(axes, panels.items(), strict=True):
        for place, arm in enumerate(arms):
            lines = [row["over_time"][key] for row in rows if row["arm"] == arm and row["over_time"][key]]
            for number, line in enumerate(lines):
                steps, values = zip(*line, strict=True)
                color = COLORS[place % len(COLORS)]
                style = "-" if place < len(COLORS) else "--"
                label = arm if number == 0 else None
                axis.plot(steps, values, style, color=color, alpha=0.8, linewidth=1.2, label=label)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.locator_params(axis="x", nbins=6, integer=True)
        axis.tick_params(labelsize=8)
        axis.grid(True, color="0.9", linewidth=0.6)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return save_figure(figure, path)


def _value(row: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
