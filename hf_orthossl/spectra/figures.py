"""Plot spectral reports (the paper's log-log panels), filter correlations, and maps of representations."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..arguments import ArrayLike, as_int, as_tensor
from ..files import replace_file
from ..messages import describe, first_line
from .spectrum import FeatureSpectrum, WeightSpectrum
from .stages import match_features, match_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from .report import SpectralReport

# Okabe & Ito (2008), distinct to colour-blind readers; without yellow, which is invisible on paper.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DPI = 150
_COLUMNS = 4
_PANEL_WIDTH, _PANEL_HEIGHT = 2.15, 1.75
# Inches: the height of a row of labels within a panel, and of a panel's title and ticks.
_LABEL, _MARGIN = 0.14, 0.65
# Letters of a title that fit above a panel in one line.
_LONG = 28

_Curves = list[tuple[int, WeightSpectrum | FeatureSpectrum]]


def plot_spectra(reports: "SpectralReport | Mapping[str, SpectralReport]", path: str | PathLike) -> Path:
    """Draw the spectra of one or several reports: index against normalized eigenvalue, both on log axes.

    There is one panel for the last weight matrix of each stage, and one for each layer of features; layers of equal
    spectra, such as a ResNet's last stage and its representation, share one. The label of a curve has its effective
    rank, and how many of its eigenvalues are positive, since the others cannot be drawn. The curve is dashed if these
    are fewer than dimensions and images allow; what the images cap is said above the panels. A panel without any says
    so: "no variance". Stages of different architectures are matched by position.

    Args:
        reports ([`SpectralReport`] or mapping of `str` to [`SpectralReport`]): One report, or up to seven, keyed by
            the names to show.
        path (`str` or path): The file to write; its suffix determines the format: `.png`, `.pdf`, `.svg`, ….

    Returns:
        `Path`: The file.

    Raises:
        TypeError: `reports` is neither a report nor a mapping of reports.
        ValueError: There are no reports or more than seven, they contain no spectra, or the format is unknown.

    Source:
        He, Du, Ma (NeurIPS 2024), figures of weights, hidden features and representations.

    Example:
        >>> plot_spectra({"BYOL": SpectralReport.load("a"), "BYOL + SO": SpectralReport.load("b")}, "spectra.png")
    """
    reports = _by_name(reports)
    if not 1 <= len(reports) <= len(COLORS):
        raise ValueError(f"reports must be 1 to {len(COLORS)}, one for each colour, got {len(reports)}")
    runs = list(reports.values())
    sections = [
        ("Weights: last matrix of each stage (input × output)", _weight_panels(runs)),
        (_features_title(runs), _feature_panels(runs)),
    ]
    sections = [(title, panels) for title, panels in sections if panels]
    if not sections:
        raise ValueError("reports contain no spectra to draw")

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
    """Return a figure of `width x height` inches with constrained layout, independent of pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save_figure(figure: "Figure", path: str | PathLike) -> Path:
    """Write a figure to a file, and return the file; folders are created.

    Args:
        figure (`Figure`): The figure.
        path (`str` or path): The file to write; its suffix chooses the format, PNG without one.

    Raises:
        ValueError: The format is unknown.
        OSError: The file cannot be written; an earlier one is unchanged.
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], facecolor="white")
    return replace_file(path, drawn.getvalue())


def check_figures() -> None:
    """Check before a long measurement that figures can be drawn here, with their text.

    Raises:
        ValueError: matplotlib or its fonts do not work.
    """
    try:
        figure = new_figure(1, 1)
        figure.suptitle("γ = 1")
        figure.savefig(io.BytesIO(), format="png")
    except Exception as error:  # a broken installation raises anything
        raise ValueError(f"figures cannot be drawn ({first_line(error)}): install matplotlib again") from error


def _by_name(reports: "SpectralReport | Mapping[str, SpectralReport]") -> "dict[str, SpectralReport]":
    if isinstance(reports, Mapping):
        return dict(reports)
    if not hasattr(reports, "weights") or not hasattr(reports, "features"):
        raise TypeError(f"reports must be a SpectralReport or a mapping of them, got {describe(reports)}")
    return {reports.name: reports}


def _weight_panels(runs: "Sequence[SpectralReport]") -> list[tuple[str, _Curves]]:
    panels: list[tuple[str, _Curves]] = []
    for title, spectra in match_weights([run.weights for run in runs]):
        shapes = {spectrum.shape for spectrum in spectra.values()}
        if len(shapes) == 1:
            title += "\n({} × {})".format(*shapes.pop())
        curves: _Curves = list(spectra.items())
        panels.append((title, curves))
    return panels


def _feature_panels(runs: "Sequence[SpectralReport]") -> list[tuple[str, _Curves]]:
    """Return a panel for each layer, one for layers whose spectra are equal in all models."""
    panels: list[tuple[list[str], _Curves]] = []
    for title, spectra in match_features([run.features for run in runs]):
        curves: _Curves = list(spectra.items())
        same = next((titles for titles, others in panels if _are_equal(curves, others)), None)
        if same is None:
            panels.append(([title], curves))
        else:
            same.append(title)
    return [((" = " if len("".join(titles)) < _LONG else "\n= ").join(titles), curves) for titles, curves in panels]


def _are_equal(first: _Curves, second: _Curves) -> bool:
    return [run for run, _ in first] == [run for run, _ in second] and all(
        a.effective_rank == b.effective_rank and torch.equal(a.eigenvalues, b.eigenvalues)
        for (_, a), (_, b) in zip(first, second, strict=True)
    )


def _features_title(runs: "Sequence[SpectralReport]") -> str:
    spectra = [f for run in runs for f in run.features.values()]
    counts = {f.num_images for f in spectra}
    capped = any(f.exact and f.most_positive < f.dim - f.removed_by_norm for f in spectra)
    if len(counts) > 1:
        return "Features" + (", of which N images show at most N − 1 directions" if capped else "")
    images = f"Features of {max(counts, default=0):,} images"
    return images + (f", which can show at most {max(counts) - 1:,} directions" if capped else "")


def _draw_section(part: "SubFigure", title: str, panels: list[tuple[str, _Curves]], rows: int, height: float) -> None:
    part.suptitle(title, fontsize=10, fontweight="bold")
    grid = part.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for number, (axes, (name, curves)) in enumerate(zip(grid.flat, panels, strict=False)):
        axes.set_title(name, fontsize=8)
        for place, (run, spectrum) in enumerate(curves):
            # Later curves are thinner, so that equal ones (the same input) remain visible below them.
            _draw_curve(axes, spectrum, COLORS[run], width=1.3 + 1.3 * (len(curves) - 1 - place) / len(curves))
        axes.set_xscale("log")
        axes.set_yscale("log")
        # Within less than a decade matplotlib would label the marks between, one over the other.
        axes.tick_params(which="minor", labelbottom=False, labelleft=False)
        # Let a flat spectrum look flat. The labels are at the bottom of the panel, below all curves.
        drawn = [
            float(spectrum.eigenvalues[spectrum.num_positive - 1]) for _, spectrum in curves if spectrum.num_positive
        ]
        lowest, labels = min([1e-2, *(0.8 * value for value in drawn)]), _LABEL * (len(curves) + 1.5) / height
        axes.set_ylim(bottom=lowest ** (1 / (1 - labels)), top=2)
        axes.tick_params(labelsize=7)
        if not drawn:
            _draw_nothing(axes, [spectrum for _, spectrum in curves])
        axes.grid(True, color="0.9", linewidth=0.6)
        axes.legend(
            loc="lower left", fontsize=7, title="effective rank (directions)", title_fontsize=7, framealpha=0.85
        )
        if number % _COLUMNS == 0:
            axes.set_ylabel("normalized eigenvalue", fontsize=8)
        if number + _COLUMNS >= len(panels):
            axes.set_xlabel("index", fontsize=8)


def _draw_curve(axes: "Axes", spectrum: WeightSpectrum | FeatureSpectrum, color: str, width: float) -> None:
    positive = spectrum.eigenvalues[: spectrum.num_positive].numpy()
    # Of a sketch only the leading eigenvalues are known.
    most = spectrum.most_positive if spectrum.exact else min(spectrum.most_positive, len(spectrum.eigenvalues))
    rank = f"{spectrum.effective_rank:.{0 if spectrum.effective_rank >= 100 else 1}f}"
    exact = f"{rank} ({spectrum.num_positive} of {most})"
    axes.plot(
        range(1, len(positive) + 1),
        positive,
        color=color,
        linestyle="-" if spectrum.num_positive >= most else "--",
        linewidth=width,
        # A line of a single point is invisible.
        marker="o" if len(positive) == 1 else None,
        markersize=3,
        label=exact if spectrum.exact else f"≥ {rank} (leading {spectrum.num_positive})",
    )


def _draw_nothing(axes: "Axes", spectra: Sequence[WeightSpectrum | FeatureSpectrum]) -> None:
    """Say in an empty panel why there is no curve."""
    axes.set_facecolor("0.95")
    axes.set_xlim(1, max(2, *(spectrum.dim for spectrum in spectra)))
    axes.minorticks_off()
    reasons = dict.fromkeys(_reason(spectrum) for spectrum in spectra)
    text = "\n".join(["no variance", *reasons])
    axes.text(0.5, 0.72, text, transform=axes.transAxes, ha="center", va="center", fontsize=8, linespacing=1.5)


def _reason(spectrum: WeightSpectrum | FeatureSpectrum) -> str:
    if isinstance(spectrum, FeatureSpectrum):
        return f"all {spectrum.num_images:,} images\nare equal here"
    if float(spectrum.singular_values[0]) == 0:
        return "all weights are 0"
    return "a single input" if spectrum.shape[0] == 1 else "all inputs have equal weights"


def _add_key(figure: "Figure", names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, linewidth=2, label=name) for color, name in zip(COLORS, names, strict=False)]
    handles.append(Line2D([], [], color="0.4", linestyle="-", label="every possible direction has variance"))
    handles.append(Line2D([], [], color="0.4", linestyle="--", label="some have none"))
    columns = min(len(handles), 4 if sum(map(len, names)) < 3 * _LONG else 2)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


_FILTERS_CAPTION = (
    "Each point is the absolute correlation between two filters, columns of a layer's weight matrix.\n"
    "Dark everywhere: every filter does something else, as orthogonal ones do. Bright blocks on the right: groups of\n"
    "filters that do nearly the same, so that the layer uses fewer directions than it has (spectral biclustering)."
)
_MARKERS = "osv^DPX*<>"
# Maximum number of classes in a legend.
_MAX_LEGEND = 20


def filter_correlation(matrix: ArrayLike) -> Tensor:
    """Return the absolute Pearson correlations between the filters (columns) of a weight matrix.

    Args:
        matrix (`Tensor` or array): Shape `(input, output)`, as in `select_matrices`.

    Returns:
        `Tensor`: Shape `(output, output)`, float64, in [0, 1], ones on the diagonal. The correlations
        of a constant filter, which are undefined, are 0.

    Raises:
        TypeError: `matrix` is not an array of numbers.
        ValueError: `matrix` is not two-dimensional or not finite.

    Example:
        >>> filter_correlation(np.random.randn(100, 8)).shape
        torch.Size([8, 8])
    """
    weight = as_tensor("matrix", matrix, 2, shape="(input, output)")
    columns = weight.detach().cpu().to(torch.float64)
    scale = columns.norm(dim=0)
    columns = columns - columns.mean(0)
    norms = columns.norm(dim=0)
    # A constant filter is only rounding noise after centring.
    columns = torch.where(norms > 1e-12 * scale, columns / norms, 0)
    return (columns.T @ columns).abs().clamp(max=1).fill_diagonal_(1)


def plot_filter_correlation(
    matrices: ArrayLike | Mapping[str, ArrayLike], path: str | PathLike, clusters: int = 8
) -> Path:
    """Draw heat maps of |correlation| between the filters of one or several weights, plain and biclustered.

    The biclustered map orders the filters by spectral biclustering, so that groups of redundant filters appear as
    blocks. Colours range from 0 to the largest correlation of two different filters in all maps; the diagonal is 1. The
    picture says so itself, in a title and a caption.

    Args:
        matrices (`Tensor`, array or mapping of `str` to these): Weights `(input, output)` with at least two outputs:
            one matrix, or several keyed by the names to show.
        path (`str` or path): The file to write; its suffix chooses the format.
        clusters (`int`, defaults to 8): The number of groups; at most one less than the number of filters is used.

    Returns:
        `Path`: The file.

    Raises:
        TypeError: A matrix is not an array of numbers.
        ValueError: A matrix has fewer than two outputs, or `clusters` is below 1.

    Source:
        He, Du, Ma (NeurIPS 2024), figures of the last stage's filters; Kluger et al. (2003), scikit-learn's
        `SpectralBiclustering`.

    Example:
        >>> plot_filter_correlation({"layer4.conv2": weight}, "filters.png")
    """
    matrices = matrices if isinstance(matrices, Mapping) else {"": matrices}
    clusters = as_int("clusters", clusters, at_least=1)
    if not matrices:
        raise ValueError("matrices is empty: pass at least one weight matrix")
    maps = {name: filter_correlation(matrix).numpy() for name, matrix in matrices.items()}
    off = {name: m[~np.eye(len(m), dtype=bool)] for name, m in maps.items()}
    empty = [name for name, values in off.items() if len(values) == 0]
    if empty:
        raise ValueError(f"matrix {empty[0]!r} has a single output: pass matrices with at least two")
    largest = max(values.max() for values in off.values())
    figure = new_figure(7.6, 3.5 * len(maps) + 1.1)
    figure.suptitle("Do filters repeat each other?", fontsize=11, fontweight="bold")
    figure.supxlabel(_FILTERS_CAPTION, fontsize=8, linespacing=1.4)
    grid = figure.subplots(len(maps), 2, squeeze=False)
    for (plain, clustered), (name, correlation) in zip(grid, maps.items(), strict=True):
        order = _bicluster(correlation, clusters)
        for axes, kind, shown in (
            (plain, f"the {len(correlation)} filters in their order", correlation),
            (clustered, "the same, similar ones side by side", correlation[np.ix_(order, order)]),
        ):
            image = axes.imshow(shown, cmap="viridis", vmin=0, vmax=largest or 1)
            axes.set_title(f"{name}\n{kind}".strip(), fontsize=9)
            axes.set_xlabel("filter" if plain is grid[-1, 0] and axes is plain else "", fontsize=8)
            axes.tick_params(labelsize=7)
        plain.set_ylabel(f"filter (mean |correlation| {off[name].mean():.3f})", fontsize=8)
        clustered.set_xticks([])
        clustered.set_yticks([])
    bar = figure.colorbar(image, ax=grid, extend="max" if largest < 1 else "neither")
    bar.set_label("|correlation| between filters", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return save_figure(figure, path)


def plot_representations(
    representations: ArrayLike | Mapping[str, ArrayLike],
    labels: ArrayLike,
    path: str | PathLike,
    class_names: Sequence[str] | None = None,
    method: str | None = None,
) -> Path:
    """Draw a two-dimensional map of representations, coloured by class.

    Args:
        representations (`Tensor`, array or mapping of `str` to these): Shape `(N, D)`, of one model or several by name.
        labels (`Tensor` or array): The class of each image, from 0, shape `(N,)`.
        path (`str` or path): The file to write; its suffix chooses the format.
        class_names (sequence of `str`, *optional*): The names of the classes, defaults to their numbers.
        method (`str`, *optional*): `"pca"`, or `"umap"` (needs the extra). Defaults to UMAP if it is installed.

    Returns:
        `Path`: The file.

    Raises:
        TypeError: An argument is not an array of numbers.
        ValueError: Shapes or class numbers do not match, `method` is unknown, or UMAP is requested but not installed.

    Example:
        >>> plot_representations(encoder(images), labels, "map.png", method="pca")
    """
    representations = representations if isinstance(representations, Mapping) else {"": representations}
    labels = as_tensor("labels", labels, finite=False).cpu().to(torch.int64)
    if labels.ndim != 1 or len(labels) < 2 or int(labels.min()) < 0:
        raise ValueError(f"labels must be (N >= 2,) class numbers from 0, got shape {tuple(labels.shape)}")
    points_of = {}
    for name, value in representations.items():
        points = as_tensor(f"representations {name!r}", value, finite=False).detach()
        if points.ndim != 2 or len(points) != len(labels) or not torch.isfinite(points).all():
            raise ValueError(
                f"representations {name!r} must be finite and ({len(labels)}, D), got shape {tuple(points.shape)}"
            )
        points_of[name] = points.cpu().to(torch.float64)
    if class_names is not None and int(labels.max()) >= len(class_names):
        raise ValueError(f"class_names has {len(class_names)} names, labels go up to {int(labels.max())}")
    method, project = _projection(method)
    classes = labels.unique().tolist()
    figure = new_figure(3.6 * len(points_of) + 1.2, 3.7)
    grid = figure.subplots(1, len(points_of), squeeze=False)[0]
    for axes, (name, points) in zip(grid, points_of.items(), strict=True):
        places, axis_labels = project(points)
        for number, label in enumerate(classes):
            axes.scatter(
                *places[labels == label].T,
                s=9,
                linewidths=0,
                alpha=0.75,
                color=COLORS[number % len(COLORS)],
                marker=_MARKERS[number % len(_MARKERS)],
                label=class_names[label] if class_names is not None else str(label),
            )
        axes.set_title(name or f"{method} of {len(labels):,} representations", fontsize=9)
        axes.set_xlabel(axis_labels[0], fontsize=8)
        axes.set_ylabel(axis_labels[1], fontsize=8)
        axes.tick_params(labelsize=7)
    if len(classes) <= _MAX_LEGEND:
        handles, names = grid[0].get_legend_handles_labels()
        key = figure.legend(handles, names, loc="outside right center", fontsize=7, title="class", markerscale=2)
        key.get_title().set_fontsize(8)
        for handle in key.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    return save_figure(figure, path)


def _bicluster(correlation: np.ndarray, clusters: int) -> np.ndarray:
    """Return an order of the filters in which those of one cluster are adjacent."""
    from sklearn.cluster import SpectralBiclustering
    from sklearn.exceptions import ConvergenceWarning

    size = len(correlation)
    clusters = min(clusters, size - 1)
    # The map is symmetric, so that the row clusters order both rows and columns.
    model = SpectralBiclustering(
        n_clusters=clusters, n_components=min(6, size), n_best=min(3, size), n_init=3, random_state=0
    )
    with warnings.catch_warnings():
        # Orthogonal filters form no groups, which is not an error.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(correlation)
    return np.argsort(model.row_labels_, kind="stable")


def _projection(method: str | None) -> tuple[str, Callable[[Tensor], tuple[Tensor, tuple[str, str]]]]:
    """Return a projection's name, and the function that maps points `(N, D)` to `(N, 2)` and the axes' labels."""
    if method not in (None, "pca", "umap"):
        raise ValueError(f"method must be 'pca' or 'umap', got {method!r}")
    if method != "pca":
        try:
            from umap import UMAP
        except ImportError as error:
            if method == "umap":
                raise ValueError("method 'umap' needs umap-learn: pip install 'hf-orthossl[umap]'") from error
        else:
            return "UMAP", lambda points: (
                torch.as_tensor(UMAP(random_state=0).fit_transform(points.float().numpy())),
                ("UMAP 1", "UMAP 2"),
            )
    return "PCA", principal_components


def principal_components(points: Tensor) -> tuple[Tensor, tuple[str, str]]:
    """Return the places `(N, 2)` of points `(N, D)` on their two leading components, and labels of the two axes."""
    left, values, _ = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    places = torch.zeros(len(points), 2, dtype=points.dtype)
    leading = (left * values)[:, :2]
    places[:, : leading.shape[1]] = leading
    total = values.square().sum().clamp(min=torch.finfo(points.dtype).tiny)
    first, second = [*(100 * values.square() / total).tolist(), 0.0][:2]
    return places, (f"component 1 ({first:.0f} % of variance)", f"component 2 ({second:.0f} % of variance)")
