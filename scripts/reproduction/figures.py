"""The pictures of the report: seeds as dots, the paper's Figure 3 (spectra) and Figure 5 (filters)."""

from collections.abc import Sequence
from pathlib import Path

from hf_orthossl.encoders import load_encoder
from hf_orthossl.regularization import select_matrices
from hf_orthossl.spectra import SpectralReport, last_weights, plot_filter_correlation, plot_spectra
from hf_orthossl.spectra.figures import COLORS, new_figure, save_figure

from .runs import Run

# Key of a row → title of its panel.
PANELS = {
    "knn": "kNN top-1",
    "linear": "linear top-1",
    "representation_effective_rank": "effective rank of the representation",
    "weights_relative_rank": "relative rank of the weights",
}


def plot_seeds(rows: Sequence[dict], arms: Sequence[str], path: Path) -> Path:
    """Draw a panel for each measure, with a column for each arm, a dot for each seed and a bar at the mean."""
    figure = new_figure(2.6 * len(PANELS), 2.6)
    for axes, (key, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for place, arm in enumerate(arms):
            values = [row[key] for row in rows if row["arm"] == arm]
            axes.plot([place] * len(values), values, "o", color=COLORS[place], alpha=0.8, markersize=5)
            axes.plot([place - 0.25, place + 0.25], [sum(values) / len(values)] * 2, color=COLORS[place], linewidth=2)
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(arms)), arms, fontsize=8)
        axes.set_xlim(-0.6, len(arms) - 0.4)
        axes.tick_params(labelsize=8)
        axes.grid(True, axis="y", color="0.9", linewidth=0.6)
    return save_figure(figure, path)


def plot_arms(runs: Sequence[Run], folder: Path, prefix: str) -> list[Path]:
    """Spectra, and correlations between the filters of the last matrix, of one run of each arm."""
    reports = {run.arm.name: SpectralReport.load(run.spectra) for run in runs}
    filters = {}
    for run in runs:
        last = last_weights(reports[run.arm.name].weights)[-1]
        matrices = select_matrices(load_encoder(str(run.encoder), pretrained=True))
        filters[run.arm.name] = next(m.matrix().detach() for m in matrices if m.name == last)
    return [
        plot_spectra(reports, folder / f"{prefix}-spectra.png"),
        plot_filter_correlation(filters, folder / f"{prefix}-filters.png"),
    ]
