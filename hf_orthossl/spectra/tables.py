"""Format spectral reports for a terminal: one report as a table, several side by side."""

import math
import string
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from .collapse import complete_collapse, partial_collapse, removed_note
from .spectrum import FeatureSpectrum, WeightSpectrum
from .stages import Matched, S, last_weights, match_features, match_names, match_weights, short_name


def table(
    name: str,
    weights: dict[str, WeightSpectrum],
    features: dict[str, FeatureSpectrum],
    notes: list[str],
    brief: bool = False,
) -> str:
    """Return one report as text: weights, features, what has collapsed, notes.

    Args:
        name (`str`): The model's name.
        weights (`dict[str, WeightSpectrum]`): Spectra by parameter name.
        features (`dict[str, FeatureSpectrum]`): Spectra by layer.
        notes (`list[str]`): Remarks for the reader.
        brief (`bool`, defaults to `False`): Whether to show only the last weight of each stage.
    """
    parts = [f"Spectra of {name}"]
    if weights:
        shown = last_weights(weights) if brief else list(weights)
        rows = [
            [
                short_name(key),
                f"{w.shape[0]}x{w.shape[1]}",
                f"{w.effective_rank:.1f} / {min(w.shape)}",
                f"{w.stable_rank:.1f}",
                _number(w.condition_number),
                _number(w.gram_frobenius),
                _number(w.gram_sigma_max),
                f"{w.num_positive} / {w.most_positive}",
            ]
            for key, w in ((key, weights[key]) for key in shown)
        ]
        header = ["weight", "in x out", "effective rank", "stable", "condition", "‖G-I‖_F", "σ(G-I)", "positive"]
        parts.append(_aligned(header, rows))
        others = [key for key in weights if key not in shown]
        if others:
            parts.append(_in_one_line(others, weights))
    if features:
        rows = [
            [
                short_name(layer),
                str(f.dim),
                f"{_bound(f)}{f.effective_rank:.1f}",
                f"{_bound(f)}{f.rankme:.1f}",
                f"{'' if f.exact else '≈ '}{f.participation_ratio:.1f}",
                "-" if f.alpha is None else f"{f.alpha:.2f}",
                "-" if f.lidar is None else f"{f.lidar:.1f}",
                f"{_bound(f)}{f.num_positive} / {f.most_positive}",
            ]
            for layer, f in features.items()
        ]
        header = ["features", "dim", "effective rank", "RankMe", "participation", "α-ReQ", "LiDAR", "positive"]
        parts.append(_aligned(header, rows))
    remarks = [as_note(text, kind) for kind, text in _remarks(weights, features, notes)]
    if remarks:
        parts.append("\n".join(remarks))
    return "\n\n".join(parts)


def _remarks(
    weights: dict[str, WeightSpectrum], features: dict[str, FeatureSpectrum], notes: Sequence[str]
) -> list[tuple[str, str]]:
    """Return kind and text of each remark on one report."""
    kinds = {
        "Collapse": complete_collapse(weights, features),
        "Partial collapse": partial_collapse(weights, features),
        "Note": [*removed_note(features), *notes],
    }
    return [(kind, text) for kind, texts in kinds.items() for text in texts]


def as_note(text: str, label: str = "Note") -> str:
    """Return a note as a paragraph of at most 100 columns."""
    return textwrap.fill(f"{label}: {text}", 100, subsequent_indent="      ", break_long_words=False)


def compare(
    names: Sequence[str],
    weights: Sequence[dict[str, WeightSpectrum]],
    features: Sequence[dict[str, FeatureSpectrum]],
    notes: Sequence[list[str]],
    brief: bool = False,
) -> str:
    """Return several reports, A, B, …, side by side: a table for each measure, with the change if there are two.

    Args:
        names (sequence of `str`): The models' names.
        weights (sequence of `dict[str, WeightSpectrum]`): Spectra by parameter name, of each model.
        features (sequence of `dict[str, FeatureSpectrum]`): Spectra by layer, of each model.
        notes (sequence of `list[str]`): Notes on each model.
        brief (`bool`, defaults to `False`): Whether to show only the main measures of the last weight of each stage.
    """
    letters = string.ascii_uppercase[: len(names)]
    parts = ["\n".join(f"{letter}: {name}" for letter, name in zip(letters, names, strict=True))]
    weight_rows = match_weights(weights) if brief else match_names(weights)
    means = [_means(run) for run in weights]
    totals = {
        "effective rank": ["mean share of all", *("-" if m is None else f"{100 * m[0]:.0f} %" for m in means)],
        "‖G-I‖_F": ["mean of all", *("-" if m is None else _number(m[1]) for m in means)],
    }
    parts += _measures("weights", letters, weight_rows, WEIGHT_MEASURES[: 2 if brief else None], totals)
    feature_rows = match_features(features) if brief else match_names(features)
    parts += _measures("features", letters, feature_rows, FEATURE_MEASURES[: 3 if brief else None], {})
    models: dict[tuple[str, str], list[str]] = {}
    for letter, matrices, layers, own in zip(letters, weights, features, notes, strict=True):
        for remark in _remarks(matrices, layers, own):
            models.setdefault(remark, []).append(letter)
    remarks = [as_note(text, f"{kind} ({', '.join(which)})") for (kind, text), which in models.items()]
    if remarks:
        parts.append("\n".join(remarks))
    return "\n\n".join(parts)


def _measures(
    what: str, letters: str, rows: Matched[S], measures: Sequence["Measure[S]"], totals: dict[str, list[str]]
) -> list[str]:
    """Return a table for each measure that any of the spectra has."""
    parts = []
    for measure in measures:
        lines = []
        for title, spectra in rows:
            values = {i: measure.value(spectrum) for i, spectrum in spectra.items()}
            if all(value is None for value in values.values()):
                continue
            columns = [spectra[i] if values.get(i) is not None else None for i in range(len(letters))]
            cells = ["-" if spectrum is None else measure.text(spectrum) for spectrum in columns]
            change = [_change(values.get(0) or 0, values.get(1) or 0)] if len(letters) == 2 else []
            lines.append([title, *cells, *change])
        if lines and measure.name in totals:
            lines.append(totals[measure.name] + [""] * (len(letters) == 2))
        if lines:
            header = [f"{what}: {measure.name}", *letters, *(["change"] if len(letters) == 2 else [])]
            parts.append(_aligned(header, lines))
    return parts


def _means(weights: dict[str, WeightSpectrum]) -> tuple[float, float] | None:
    """Return the mean share of the directions that are used, and the mean distance from orthogonality."""
    if not weights:
        return None
    shares = [w.effective_rank / min(w.shape) for w in weights.values()]
    distances = [w.gram_frobenius for w in weights.values()]
    return sum(shares) / len(shares), sum(distances) / len(distances)


def _in_one_line(names: list[str], weights: dict[str, WeightSpectrum]) -> str:
    shares = {name: 100 * weights[name].effective_rank / min(weights[name].shape) for name in names}
    lowest = min(shares, key=lambda name: shares[name])
    return (
        f"and {len(names)} more: effective rank {shares[lowest]:.0f} to {max(shares.values()):.0f} % of the maximum, "
        f"lowest in {short_name(lowest)}"
    )


def _change(a: float, b: float) -> str:
    return f"{100 * (b - a) / a:+.1f} %" if a and b else "-"


def _of(rank: float, most: int) -> str:
    return f"{rank:.0f}/{most}" if rank >= 100 else f"{rank:.1f}/{most}"


def _bound(spectrum: FeatureSpectrum) -> str:
    return "" if spectrum.exact else "≥ "


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:.3g}" if value < 1000 or value >= 1e6 else f"{value:.0f}"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with its first column aligned to the left and numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Measure(Generic[S]):
    """One measure of a comparison: its name, its value for the change, and its text for the table."""

    name: str
    value: Callable[[S], float | None]
    text: Callable[[S], str]


WEIGHT_MEASURES: tuple[Measure[WeightSpectrum], ...] = (
    Measure("effective rank", lambda w: w.effective_rank, lambda w: _of(w.effective_rank, min(w.shape))),
    Measure("‖G-I‖_F", lambda w: w.gram_frobenius, lambda w: _number(w.gram_frobenius)),
    Measure("positive", lambda w: w.num_positive, lambda w: f"{w.num_positive}/{w.most_positive}"),
)
FEATURE_MEASURES: tuple[Measure[FeatureSpectrum], ...] = (
    Measure("effective rank", lambda f: f.effective_rank, lambda f: _of(f.effective_rank, f.most_positive)),
    Measure("RankMe", lambda f: f.rankme, lambda f: _number(f.rankme)),
    Measure("LiDAR", lambda f: f.lidar, lambda f: _number(f.lidar or 0.0)),
    Measure("α-ReQ", lambda f: f.alpha, lambda f: f"{f.alpha:.2f}"),
    Measure("positive", lambda f: f.num_positive, lambda f: f"{f.num_positive}/{f.most_positive}"),
)
