"""Plot a forecast: correlations, the predicted spectrum, and the directions as images."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..arguments import ArrayLike, as_tensor
from ..spectra.figures import COLORS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    from .forecast_report import Direction, Forecast

LIVING, DEAD, MEASURED = COLORS[0], COLORS[1], COLORS[2]


def plot_forecast(forecast: "Forecast", path: str | PathLike) -> Path:
    """Draw k with its intervals and the threshold, the predicted spectrum, and the effect of each augmentation.

    Args:
        forecast ([`Forecast`]): The forecast; its `measured` spectrum, if any, is drawn over the predicted one.
        path (`str` or path): The file to write; its suffix chooses the format.

    Returns:
        `Path`: The file.

    Example:
        >>> plot_forecast(Forecast.load("runs/forecast/forecast.json"), "forecast.png")
    """
    panels = 3 if forecast.left_out else 2
    figure = new_figure(3.5 * panels, 3.1)
    axes = figure.subplots(1, panels)
    _draw_correlations(axes[0], forecast)
    _draw_spectrum(axes[1], forecast)
    if forecast.left_out:
        _draw_left_out(axes[2], forecast)
    for panel in axes:
        panel.title.set_fontsize(9)
        panel.xaxis.label.set_fontsize(8)
        panel.yaxis.label.set_fontsize(8)
        panel.tick_params(labelsize=7)
    return save_figure(figure, path)


def plot_directions(
    forecast: "Forecast",
    path: str | PathLike,
    *,
    images: ArrayLike | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Path:
    """Draw the most endangered and the safest directions: as patterns, and as the images at their ends.

    Args:
        forecast ([`Forecast`]): The forecast; patterns are not saved, so one read from a file has none.
        path (`str` or path): The file to write; its suffix chooses the format.
        images (`Tensor` or array, *optional*): The images that were forecast, shape `(n, C, H, W)`, uint8.
            Of other channels than three, the first is drawn in grey.
        shape (`tuple[int, int, int]`, *optional*): The shape `(C, H, W)` of a view, if the directions are of pixels.

    Returns:
        `Path`: The file.

    Raises:
        TypeError: `images` is not an array.
        ValueError: There is nothing to draw, or `images` has another shape.

    Example:
        >>> plot_directions(result, "directions.png", images=images, shape=(3, 8, 8))
    """
    patterns = forecast.patterns if shape is not None else None
    if patterns is None and images is None and forecast.directions:
        raise ValueError(
            "the forecast has no patterns to draw: pass images, or the shape of views that were compared by pixels"
        )
    pictures = None if images is None else as_tensor("images", images, 4, shape="(n, C, H, W)").cpu()
    groups = [("Most endangered", forecast.endangered), ("Safest", forecast.safest)]
    rows = max(len(group) for _, group in groups)
    if not rows:
        figure = new_figure(9.6, 1.2)
        figure.text(0.5, 0.5, "There is no direction to show: all views are equal.", ha="center", fontsize=10)
        return save_figure(figure, path)
    figure = new_figure(9.6, 0.68 * rows + 0.75)
    first = 0
    for part, (title, group) in zip(np.asarray(figure.subfigures(1, 2, wspace=0.04)), groups, strict=True):
        own = None
        if patterns is not None and shape is not None:
            own = patterns[first : first + len(group)].reshape(-1, *shape)
        _draw_group(part, title, group, own, pictures, rows)
        first += len(group)
    return save_figure(figure, path)


def _draw_correlations(axes: "Axes", f: "Forecast") -> None:
    axes.set_title("Share of each direction that augmentation leaves")
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="direction", ylabel="k")
    axes.grid(True, color="0.92", linewidth=0.6)
    if not f.directions:
        axes.text(0.5, 0.5, "no direction:\nall views are equal", transform=axes.transAxes, ha="center")
        return
    ranks = range(1, f.directions + 1)
    axes.fill_between(ranks, f.low, f.high, color="0.85", linewidth=0, label="95 % interval")
    if f.threshold is None:
        axes.plot(ranks, f.correlations, color="black", linewidth=1.4, label="k")
    else:
        living = [k > f.threshold for k in f.correlations]
        split = sum(living)
        for start, stop, color, name in ((0, split, LIVING, "survive"), (split, f.directions, DEAD, "collapse")):
            if stop > start:
                label = f"{stop - start} {name}"
                axes.plot(ranks[start:stop], f.correlations[start:stop], color=color, linewidth=1.8, label=label)
        axes.axhline(max(f.threshold, 0), color="black", linestyle=":", linewidth=1)
        axes.annotate(
            f"collapses at k ≤ {max(f.threshold, 0):.2g}",
            (f.directions, max(f.threshold, 0)),
            (0, 3),
            fontsize=7,
            textcoords="offset points",
            ha="right",
        )
    if f.settings["dim"] is not None and f.settings["dim"] < f.directions:
        axes.axvline(f.settings["dim"], color="0.4", linestyle="--", linewidth=1, label=f"{f.settings['dim']} outputs")
    axes.legend(fontsize=7, loc="upper right", framealpha=0.9, edgecolor="none")


def _draw_spectrum(axes: "Axes", f: "Forecast") -> None:
    predicted = [value for value in f.eigenvalues if value > 0]
    if predicted:
        axes.plot(
            range(1, len(predicted) + 1),
            [value / predicted[0] for value in predicted],
            color=LIVING,
            linewidth=1.4,
            label=f"predicted: {len(predicted)} positive",
            marker="o",
            markersize=3,
        )
    measured = [value for value in f.measured or [] if value > 0]
    if measured:
        axes.plot(range(1, len(measured) + 1), measured, color=MEASURED, linewidth=1.4, label="after training")
    axes.set(xscale="log", yscale="log", xlabel="index", ylabel="normalized eigenvalue")
    if not predicted and not measured:
        axes.text(0.5, 0.5, "complete collapse", transform=axes.transAxes, ha="center")
    else:
        axes.set_ylim(min(0.005, axes.get_ylim()[0]), 2)
        axes.legend(fontsize=7, loc="lower left", frameon=False)
    axes.set_title("Spectrum of the representation")
    axes.grid(True, color="0.92", linewidth=0.6)


def _draw_left_out(axes: "Axes", f: "Forecast") -> None:
    rows = sorted(f.left_out, key=lambda one: one.total)
    base = f.left_out_base
    names = [f"no {one.without}" for one in rows] + ["whole pipeline"]
    bars = axes.barh(names, [one.total for one in (*rows, base)], color=["0.7"] * len(rows) + [LIVING])
    counts = [f" {one.surviving} survive" for one in (*rows, base)]
    axes.bar_label(bars, counts, fontsize=7)
    axes.set_xlim(right=1.35 * max(*(one.total for one in rows), base.total, 1e-9))
    axes.set_xlabel("sum of k over all directions")
    axes.set_title("With one augmentation left out")


def _draw_group(
    part: "SubFigure",
    title: str,
    group: "list[Direction]",
    patterns: Tensor | None,
    images: Tensor | None,
    rows: int,
) -> None:
    examples = 0 if images is None else max(len(direction.examples) for direction in group)
    part.suptitle(title, fontsize=10, fontweight="bold")
    columns = 1 + (patterns is not None) + examples
    grid = part.subplots(rows, columns, squeeze=False, gridspec_kw={"width_ratios": [1.9] + [1] * (columns - 1)})
    for axes in grid.flat:
        axes.set_axis_off()
    heads = (["pattern"] if patterns is not None else []) + (["one end", "", "", "other end"] if examples else [])
    for axes, head in zip(grid[0, 1:], heads, strict=False):
        axes.set_title(head, fontsize=7, loc="left" if "end" in head else "center")
    for number, (cells, direction) in enumerate(zip(grid, group, strict=False)):
        fate = "survives" if direction.alive else "collapses"
        text = f"#{direction.index + 1} {fate}\nk {direction.k:.2f} [{direction.low:.2f}, {direction.high:.2f}]\n"
        text += f"{direction.variance:.1%} of variance"
        cells[0].text(0, 0.5, text, fontsize=7, va="center", transform=cells[0].transAxes)
        place = 1
        if patterns is not None:
            cells[place].imshow(_as_image(patterns[number]), interpolation="nearest")
            place += 1
        if images is None:
            continue
        for axes, index in zip(cells[place:], direction.examples, strict=False):
            axes.imshow(_colours(images[index]).numpy(), interpolation="nearest")


def _as_image(pattern: Tensor) -> Tensor:
    """Return a pattern `(C, H, W)` as an image `(H, W, 3)` in [0, 1], with 0 as gray."""
    largest = pattern.abs().max()
    scaled = pattern / largest if largest > 0 else torch.zeros_like(pattern)
    return _colours(0.5 + 0.5 * scaled)


def _colours(picture: Tensor) -> Tensor:
    """Return what is drawn of a picture `(C, H, W)`, as `(H, W, 3)`: its colours, or the first channel in grey."""
    shown = picture if len(picture) == 3 else picture[:1].expand(3, -1, -1)
    return shown.permute(1, 2, 0)
