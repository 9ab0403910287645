"""Draw predicted and measured spectra, one panel per loss and strength of augmentation."""

from pathlib import Path

from hf_orthossl.spectra.figures import COLORS, new_figure, save_figure

# Distinct by shape as well as by colour.
MARKERS = ("o", "s", "^")
LOWEST = 1e-3


def plot_cells(rows: list[dict], path: Path) -> None:
    """Draw predicted eigenvalues as lines and measured ones as markers, against the index."""
    losses, strengths = (list(dict.fromkeys(row[key] for row in rows)) for key in ("loss", "views"))
    gammas = list(dict.fromkeys(row["gamma"] for row in rows))
    figure = new_figure(2.6 * len(strengths) + 0.6, 2.1 * len(losses) + 0.7)
    grid = figure.subplots(len(losses), len(strengths), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row in rows:
        axes = grid[losses.index(row["loss"])][strengths.index(row["views"])]
        axes.set_axis_on()
        axes.set_title(f"{row['loss']}, {row['views']} views", fontsize=8)
        place = gammas.index(row["gamma"])
        color, marker = COLORS[place], MARKERS[place % len(MARKERS)]
        index = range(1, row["rank"] + 1)
        label = f"γ = {row['gamma']:g}: R² {row['digits']['r2']:.3f}"
        axes.plot(index, row["predicted"], color=color, linewidth=1.2, linestyle="-" if place == 0 else "--")
        axes.plot(index, row["digits"]["measured"], marker, color=color, markersize=3, fillstyle="none", label=label)
        axes.set_yscale("log")
        axes.set_ylim(LOWEST, 10)
        axes.tick_params(labelsize=7)
        axes.grid(True, color="0.9", linewidth=0.6)
        axes.legend(fontsize=7, loc="upper right", framealpha=0.85)
    for axes in grid[:, 0]:
        axes.set_ylabel("eigenvalue", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("index", fontsize=8)
    figure.suptitle("Lines: predicted from the views alone. Markers: measured after training.", fontsize=9)
    save_figure(figure, path)
