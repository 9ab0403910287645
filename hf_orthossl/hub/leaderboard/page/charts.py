"""Figures as inline SVG, drawn from numbers alone: nothing is fetched, and colours follow the theme of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .rendering import render

# Smaller eigenvalues are rounding errors.
_FLOOR = 1e-12
_MARKS = 6


@dataclass(frozen=True)
class Scale:
    """An axis from the value `low`, at the place `start`, to `high` at `end`; call it for the place of a value."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        ends = (self.low, self.high, value)
        low, high, value = map(math.log10, ends) if self.log else ends
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> list[float]:
        """Return about `most` round numbers within the axis."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if last - first < 2:
                # Less than two decades: 1, 2, 5 of each.
                marks = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5)]
                return [value for value in marks if self.low <= value * 1.000001 and value <= self.high * 1.000001]
            step = -(-(last - first + 1) // most)
            return [10.0**exponent for exponent in range(last, first - 1, -step)]
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        step = 10 ** math.floor(math.log10(span / most))
        step *= next((factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most), 10)
        first = math.ceil(self.low / step - 1e-9)
        return [round((first + i) * step, 12) for i in range(int((self.high - first * step) / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Curve:
    """Normalized eigenvalues of one model."""

    # Place of the model among those compared, from 0; its colour and mark are the same everywhere.
    style: int
    name: str
    # From 1, out of `length`.
    ranks: list[int]
    values: list[float]
    length: int


@dataclass(frozen=True)
class Point:
    """One model in the scatter."""

    x: float
    y: float
    # 0 without a remedy, 1 with a penalty, 2 with other remedies alone.
    style: int
    # Shown where the pointer rests.
    label: str
    # Where a click leads.
    href: str


def spectrum(title: str, curves: Sequence[Curve]) -> Markup:
    """Draw normalized eigenvalues over their rank, both on log axes; zeros cannot be drawn and end a curve."""
    drawn = [[(r, v) for r, v in zip(c.ranks, c.values, strict=True) if v > _FLOOR] for c in curves]
    # At least two decades, so that a flat spectrum looks flat.
    low = 10.0 ** math.floor(math.log10(min([0.01, *(value for points in drawn for _, value in points)])) + 1e-9)
    x = Scale(1, max(2, *(curve.length for curve in curves)), 54, 290, log=True)
    y = Scale(low, 1, 176, 12, log=True)
    lines = [[(x(rank), y(value)) for rank, value in points] for points in drawn]
    return render(
        "chart.svg",
        kind="panel",
        label=f"{title}: {'; '.join(_describe(curve) for curve in curves)}",
        width=300,
        height=220,
        x=x,
        y=y,
        tick=tick,
        points=[],
        x_label="rank of the eigenvalue",
        y_label="normalized eigenvalue",
        curves=[(c.style, line, _spread(line, c.style)) for c, line in zip(curves, lines, strict=True)],
    )


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """Draw accuracy over the share of dimensions in use, a mark for each model, with its name where the pointer rests.

    The share makes models of different backbones comparable: the axis is that of all, from 0 to 1.
    """
    ys = [point.y for point in points]
    pad = max((max(ys) - min(ys)) * 0.05, 0.005)
    x = Scale(0, 1, 62, 508)
    y = Scale(max(0.0, min(ys) - pad), min(1.0, max(ys) + pad), 338, 14)
    return render(
        "chart.svg",
        kind="scatter",
        label=f"{len(points)} models: {y_label} over {x_label}",
        width=520,
        height=380,
        x=x,
        y=y,
        tick=tick,
        points=points,
        x_label=x_label,
        y_label=y_label,
        curves=[],
    )


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return Spearman's ρ with ties at their mean rank; `None` for fewer than three points or constant ones."""
    if len(xs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    # Takes half a second to import, and only the scatter needs it.
    from scipy.stats import spearmanr

    return float(spearmanr(xs, ys).statistic)


def _spread(places: list[tuple[float, float]], style: int) -> list[tuple[float, float]]:
    """Return a few points of a curve, evenly apart as drawn; each model has other places, so that equal curves show."""
    if len(places) < 2:
        return places
    first, last = places[0][0], places[-1][0]
    wanted = [first + (last - first) * (i + 0.15 + 0.23 * (style % 4)) / _MARKS for i in range(_MARKS)]
    return list(dict.fromkeys(min(places, key=lambda place: abs(place[0] - x)) for x in wanted))


def _describe(curve: Curve) -> str:
    if curve.values[0] == 0:
        return f"{curve.name}, none of {curve.length:,} eigenvalues is positive"
    drop = next((r for r, v in zip(curve.ranks, curve.values, strict=True) if v <= 0.01 * curve.values[0]), None)
    falls = f"falls below 1% of the largest at rank {drop:,}" if drop else "never falls below 1% of the largest"
    return f"{curve.name}, {curve.length:,} eigenvalues, {falls}"


def tick(value: float) -> Markup:
    """Return the label of a tick: a number, or a power of ten."""
    if value < 0:
        return Markup("−{}").format(tick(-value))
    if value and not 0.01 <= value < 10_000:
        exponent = math.floor(math.log10(value) + 1e-9)
        digit = round(value / 10.0**exponent)
        base = "10" if digit == 1 else f"{digit}·10"
        return Markup('{}<tspan dy="-0.4em" font-size="75%">{}</tspan>').format(base, str(exponent).replace("-", "−"))
    return Markup(f"{value:,.6g}")
