"""Does a strength transfer? The curves of accuracy against strength of each setting, and what one value costs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .plan import GAMMAS, PIECES, STRENGTHS

CANDIDATES = {"gamma": GAMMAS, "strength": STRENGTHS}
Curve = dict[float, float]


@dataclass(frozen=True)
class Setting:
    """The runs of one setting.

    Args:
        name (`str`): Of its piece.
        optimizer (`str`): Name of the optimizer.
        width (`int`): Channels of the backbone.
        rate (`float`): Its learning rate.
        runs (`int`): How many runs there are.
        none (`float`, *optional*): Accuracy without a penalty, in [0, 1].
        auto (tuple, *optional*): The γ that was measured, and the accuracy with it.
        curves (`dict`): "gamma" and "strength" → accuracy by strength.
    """

    name: str
    optimizer: str
    width: int
    rate: float
    runs: int
    none: float | None
    auto: tuple[float, float] | None
    curves: Mapping[str, Curve]

    def best(self, kind: str) -> tuple[float, float]:
        """Return the strength with the highest accuracy, and the accuracy; the weaker of equal ones."""
        return max(sorted(self.curves[kind].items()), key=lambda point: point[1])

    def values(self, kind: str) -> int:
        """Return how many strengths there are to try."""
        return len(CANDIDATES[kind])


@dataclass(frozen=True)
class Regret:
    """What it costs to take one strength for several settings.

    Args:
        best (tuple of `float`): The best strength of each setting.
        value (`float`): The strength with the best mean over settings.
        mean, largest (`float`): Accuracy lost with it against each setting's best.
    """

    best: tuple[float, ...]
    value: float
    mean: float
    largest: float


def settings_of(runs: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """Return the settings that have runs, from the rows of the study that have an accuracy."""
    settings = []
    for piece in PIECES["transfer"]:
        own = [row for row in runs if row["piece"] == piece.name and "linear" in row]
        if not own:
            continue
        curves: dict[str, Curve] = {}
        for kind, candidates in CANDIDATES.items():
            points = {value: _mean(own, f"{kind}-{value:g}", "linear") for value in candidates}
            curves[kind] = {value: accuracy for value, accuracy in points.items() if accuracy is not None}
        gamma, accuracy = _mean(own, "auto", "gamma"), _mean(own, "auto", "linear")
        auto = None if gamma is None or accuracy is None else (gamma, accuracy)
        about = (piece.about["optimizer"].partition("_")[0], piece.about["width"], piece.about["learning_rate"])
        settings.append(Setting(piece.name, *about, len(own), _mean(own, "none", "linear"), auto, curves))
    return settings


def regret(curves: Sequence[Curve]) -> Regret:
    """Return what one strength for all costs.

    Args:
        curves (sequence of `dict`): Accuracy by strength of each setting, with the same strengths.
    """
    best = [max(sorted(curve.items()), key=lambda point: point[1]) for curve in curves]
    value = max(sorted(curves[0]), key=lambda strength: statistics.fmean(curve[strength] for curve in curves))
    lost = [accuracy - curve[value] for curve, (_, accuracy) in zip(curves, best, strict=True)]
    return Regret(tuple(strength for strength, _ in best), value, statistics.fmean(lost), max(lost))


def _mean(rows: Sequence[Mapping[str, Any]], arm: str, measure: str) -> float | None:
    values = [row[measure] for row in rows if row["arm"] == arm and measure in row]
    return statistics.fmean(values) if values else None
