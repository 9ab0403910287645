"""The paper's log-log panels: eigenvalue spectra of weights and features, several runs overlaid."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .matching import match_features, match_weights
from .report import SpectralReport
from .spectrum import FeatureSpectrum, WeightSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe & Ito (2008), told apart by colour-blind eyes; without their yellow, which vanishes on paper.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DPI = 150
_COLUMNS = 4
_PANEL_WIDTH, _PANEL_HEIGHT = 2.15, 1.75
# Inches: a row of the labels within a panel, and what titles and ticks take of its height.
_LABEL, _MARGIN = 0.14, 0.65

_Curves = list[tuple[int, WeightSpectrum | FeatureSpectrum]]


def plot_spectra(reports: SpectralReport | Mapping[str, SpectralReport], path: str | PathLike) -> Path:
    """
    Draw the spectra of one or several reports: index against normalized eigenvalue, both on log axes.

    One panel for the last weight matrix of each stage, and one for each layer of features. A curve is solid if
    all eigenvalues are positive and dashed otherwise; its label counts the positive ones. Those that are not
    positive cannot be drawn. Stages of different architectures are matched by position.
    Source: He, Du, Ma (NeurIPS 2024), figures of weights, hidden features and representations.

    Args:
        reports ([`SpectralReport`] or mapping of `str` to [`SpectralReport`]): one report, or at most seven by the
            name to show.
        path (`str` or path): the file to write; its suffix chooses the format.

    Returns:
        `Path` of the file.

    Raises:
        ValueError: if there are no or more than seven reports, they hold no spectra, or the format is unknown.
    """
    if isinstance(reports, SpectralReport):
        reports = {reports.name: reports}
    if not 1 <= len(reports) <= len(COLORS):
        raise ValueError(f"reports must be 1 to {len(COLORS)} to be told apart, got {len(reports)}")
    runs = list(reports.values())
    sections = [
        ("Weights: last matrix of each stage (input × output)", _weight_panels(runs)),
        (_features_title(runs), _feature_panels(runs)),
    ]
    sections = [(title, panels) for title, panels in sections if panels]
    if not sections:
        raise ValueError("reports hold no spectra to draw")

    rows = [-(-len(panels) // _COLUMNS) for _, panels in sections]
    panel = _PANEL_HEIGHT + _LABEL * len(runs)
    heights = [count * panel + 0.35 for count in rows]
    figure = new_figure(_COLUMNS * _PANEL_WIDTH, sum(heights) + 0.7)
    parts = figure.subfigures(len(sections), 1, height_ratios=heights, squeeze=False)
    for part, (title, panels), count in zip(parts[:, 0], sections, rows, strict=True):
        _draw_section(part, title, panels, count, panel - _MARGIN)
    _add_key(figure, list(reports))
    return save_figure(figure, path)


def new_figure(width: float, height: float) -> "Figure":
    """A figure of `width x height` inches that arranges itself, apart from pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save_figure(figure: "Figure", path: str | PathLike) -> Path:
    """Write a figure; folders are created and the suffix chooses the format (`ValueError` if unknown)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
    return path


def _weight_panels(runs: Sequence[SpectralReport]) -> list[tuple[str, _Curves]]:
    panels = []
    for title, spectra in match_weights([run.weights for run in runs]):
        shapes = {spectrum.shape for spectrum in spectra.values()}
        if len(shapes) == 1:
            title += "\n({} × {})".format(*shapes.pop())
        panels.append((title, list(spectra.items())))
    return panels


def _feature_panels(runs: Sequence[SpectralReport]) -> list[tuple[str, _Curves]]:
    return [(title, list(spectra.items())) for title, spectra in match_features([run.features for run in runs])]


def _features_title(runs: Sequence[SpectralReport]) -> str:
    counts = {f.num_images for run in runs for f in run.features.values()}
    return f"Features of {counts.pop():,} images" if len(counts) == 1 else "Features"


def _draw_section(part: "SubFigure", title: str, panels: list[tuple[str, _Curves]], rows: int, height: float) -> None:
    part.suptitle(title, fontsize=10, fontweight="bold")
    grid = part.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for number, (axes, (name, curves)) in enumerate(zip(grid.flat, panels, strict=False)):
        axes.set_title(name, fontsize=8)
        for place, (run, spectrum) in enumerate(curves):
            # Later curves are thinner: equal ones (the same input) stay visible beneath.
            _draw_curve(axes, spectrum, COLORS[run], width=1.3 + 1.3 * (len(curves) - 1 - place) / len(curves))
        axes.set_xscale("log")
        axes.set_yscale("log")
        # A flat spectrum should look flat. The lowest part of the panel, below all curves, is left to the labels.
        lowest, labels = min(axes.get_ylim()[0], 1e-2), _LABEL * (len(curves) + 1.5) / height
        axes.set_ylim(bottom=lowest ** (1 / (1 - labels)), top=2)
        axes.tick_params(labelsize=7)
        axes.grid(True, color="0.9", linewidth=0.6)
        axes.legend(loc="lower left", fontsize=7, title="positive", title_fontsize=7, framealpha=0.85)
        if number % _COLUMNS == 0:
            axes.set_ylabel("normalized eigenvalue", fontsize=8)
        if number + _COLUMNS >= len(panels):
            axes.set_xlabel("index", fontsize=8)


def _draw_curve(axes: "Axes", spectrum: WeightSpectrum | FeatureSpectrum, color: str, width: float) -> None:
    positive = spectrum.eigenvalues[: spectrum.num_positive].numpy()
    complete = spectrum.num_positive == spectrum.dim
    label = f"{spectrum.num_positive} / {spectrum.dim}"
    axes.plot(
        range(1, len(positive) + 1),
        positive,
        color=color,
        linestyle="-" if complete else "--",
        linewidth=width,
        # A single eigenvalue is no line.
        marker="o" if len(positive) == 1 else None,
        markersize=3,
        label=label if spectrum.exact else f"leading {label}",
    )


def _add_key(figure: "Figure", names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, linewidth=2, label=name) for color, name in zip(COLORS, names, strict=False)]
    handles += [
        Line2D([], [], color="0.4", linestyle=style, label=label)
        for style, label in (("-", "all eigenvalues positive"), ("--", "not all positive"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), fontsize=8, frameon=False)
