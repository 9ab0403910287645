"""Reports as text for a terminal."""

import math
import string
import textwrap
from collections.abc import Sequence

from .spectrum import FeatureSpectrum, WeightSpectrum
from .stages import Matched, last_weights, match_features, match_names, match_weights, short_name


def table(
    name: str,
    weights: dict[str, WeightSpectrum],
    features: dict[str, FeatureSpectrum],
    notes: list[str],
    brief: bool = False,
) -> str:
    """One report: weights, features, notes."""
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
    if notes:
        parts.append("\n".join(map(as_note, notes)))
    return "\n\n".join(parts)


def as_note(text: str, label: str = "Note") -> str:
    """A note as a paragraph of at most 100 columns."""
    return textwrap.fill(f"{label}: {text}", 100, subsequent_indent="      ", break_long_words=False)


def compare(
    names: Sequence[str],
    weights: Sequence[dict[str, WeightSpectrum]],
    features: Sequence[dict[str, FeatureSpectrum]],
    notes: Sequence[list[str]],
    brief: bool = False,
) -> str:
    """Several reports, A, B, …, side by side: a table for each measure, with the change where there are two."""
    letters = string.ascii_uppercase[: len(names)]
    parts = ["\n".join(f"{letter}: {name}" for letter, name in zip(letters, names, strict=True))]
    rows = match_weights(weights) if brief else match_names(weights)
    means = [_means(run) for run in weights]
    measures = {
        "effective rank": (lambda w: w.effective_rank, lambda w: _of(w.effective_rank, min(w.shape))),
        "‖G-I‖_F": (lambda w: w.gram_frobenius, lambda w: _number(w.gram_frobenius)),
        "positive": (lambda w: w.num_positive, lambda w: f"{w.num_positive}/{w.most_positive}"),
    }
    totals = {
        "effective rank": ["mean share of all", *("-" if m is None else f"{100 * m[0]:.0f} %" for m in means)],
        "‖G-I‖_F": ["mean of all", *("-" if m is None else _number(m[1]) for m in means)],
    }
    parts += _measures("weights", letters, rows, _first(2, measures) if brief else measures, totals)
    rows = match_features(features) if brief else match_names(features)
    measures = {
        "effective rank": (lambda f: f.effective_rank, lambda f: _of(f.effective_rank, f.most_positive)),
        "RankMe": (lambda f: f.rankme, lambda f: _number(f.rankme)),
        "LiDAR": (lambda f: f.lidar, lambda f: _number(f.lidar)),
        "α-ReQ": (lambda f: f.alpha, lambda f: f"{f.alpha:.2f}"),
        "positive": (lambda f: f.num_positive, lambda f: f"{f.num_positive}/{f.most_positive}"),
    }
    parts += _measures("features", letters, rows, _first(3, measures) if brief else measures, {})
    said: dict[str, list[str]] = {}
    for letter, own in zip(letters, notes, strict=True):
        for note in own:
            said.setdefault(note, []).append(letter)
    parts += ["\n".join(as_note(note, f"Note on {', '.join(which)}") for note, which in said.items())] if said else []
    return "\n\n".join(parts)


def _first(count: int, measures: dict) -> dict:
    return dict(list(measures.items())[:count])


def _measures(what: str, letters: str, rows: Matched, measures: dict, totals: dict[str, list[str]]) -> list[str]:
    """A table for each measure that any of the spectra has."""
    parts = []
    for measure, (value, text) in measures.items():
        lines = []
        for title, spectra in rows:
            found = {i: spectrum for i, spectrum in spectra.items() if value(spectrum) is not None}
            if not found:
                continue
            cells = [text(found[i]) if i in found else "-" for i in range(len(letters))]
            change = [_change(*(value(found[i]) if i in found else 0 for i in (0, 1)))] if len(letters) == 2 else []
            lines.append([title, *cells, *change])
        if lines and measure in totals:
            lines.append(totals[measure] + [""] * (len(letters) == 2))
        if lines:
            header = [f"{what}: {measure}", *letters, *(["change"] if len(letters) == 2 else [])]
            parts.append(_aligned(header, lines))
    return parts


def _means(weights: dict[str, WeightSpectrum]) -> tuple[float, float] | None:
    """Mean share of the directions used, and mean distance from orthogonality."""
    if not weights:
        return None
    shares = [w.effective_rank / min(w.shape) for w in weights.values()]
    distances = [w.gram_frobenius for w in weights.values()]
    return sum(shares) / len(shares), sum(distances) / len(distances)


def _in_one_line(names: list[str], weights: dict[str, WeightSpectrum]) -> str:
    shares = {name: 100 * weights[name].effective_rank / min(weights[name].shape) for name in names}
    lowest = min(shares, key=shares.get)
    return (
        f"and {len(names)} more: effective rank {shares[lowest]:.0f} to {max(shares.values()):.0f} % of the most it "
        f"can be, lowest in {short_name(lowest)}"
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
    """First column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)
