"""Figures as inline SVG, drawn from numbers alone: nothing is fetched, and colours follow the theme of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

# Smaller eigenvalues are rounding errors.
_FLOOR = 1e-12
_MARKS = 6


@dataclass(frozen=True)
class Scale:
    """An axis that runs from `start` to `end` in the units of the drawing; call it for the place of a value.

    Args:
        low, high (`float`): The values at its ends.
        start, end (`float`): The places of its ends.
        log (`bool`, defaults to `False`): Whether the axis is logarithmic.
    """

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
    """Eigenvalues of one model.

    Args:
        style (`int`): Place of the model among those compared, from 0; its colour and mark are the same everywhere.
        name (`str`): Name of the model.
        ranks (`list[int]`): From 1.
        values (`list[float]`): Normalized eigenvalues.
        length (`int`): Number of eigenvalues in all.
    """

    style: int
    name: str
    ranks: list[int]
    values: list[float]
    length: int


@dataclass(frozen=True)
class Point:
    """One model in the scatter.

    Args:
        x, y (`float`): Its place.
        style (`int`): 0 without a penalty, 1 with one.
        label (`str`): Shown where the pointer rests.
        href (`str`): Where a click leads.
    """

    x: float
    y: float
    style: int
    label: str
    href: str


def spectrum(title: str, curves: Sequence[Curve]) -> Markup:
    """Draw normalized eigenvalues over their rank, both on log axes; zeros cannot be drawn and end a curve."""
    drawn = [(c, [(r, v) for r, v in zip(c.ranks, c.values, strict=True) if v > _FLOOR]) for c in curves]
    values = [value for _, points in drawn for _, value in points]
    # At least two decades, so that a flat spectrum looks flat.
    low = 10.0 ** math.floor(math.log10(min([*values, 0.01])) + 1e-9)
    x = Scale(1, max(2, *(curve.length for curve in curves)), 54, 290, log=True)
    y = Scale(low, 1, 176, 12, log=True)
    parts = _axes(x, y, "rank of the eigenvalue", "normalized eigenvalue", 300, 220)
    for curve, points in drawn:
        places = [(x(rank), y(value)) for rank, value in points]
        if len(places) > 1:
            path = " ".join(f"{a},{b}" for a, b in places)
            parts.append(Markup('<polyline class="line s{}" points="{}"/>').format(curve.style, path))
        parts += [mark(curve.style, a, b) for a, b in _spread(places, curve.style)]
    described = "; ".join(_describe(curve) for curve in curves)
    return _svg(f"{title}: {described}", parts, 300, 220, "panel")


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """Draw accuracy over effective rank (log axis), one mark for each model, with its name where the pointer rests."""
    xs, ys = [point.x for point in points], [point.y for point in points]
    pad = max((max(ys) - min(ys)) * 0.05, 0.005)
    x = Scale(min(xs) * 0.9, max(xs) * 1.1, 62, 508, log=True)
    y = Scale(max(0.0, min(ys) - pad), min(1.0, max(ys) + pad), 338, 14)
    parts = _axes(x, y, x_label, y_label, 520, 380)
    # No thousand tab stops: by keyboard the models are reached through the table.
    shape = Markup('<a href="{}" tabindex="-1" data-go=""><title>{}</title>{}</a>')
    parts += [shape.format(p.href, p.label, mark(p.style, x(p.x), y(p.y), 4)) for p in points]
    return _svg(f"{len(points)} models: {y_label} over {x_label}", parts, 520, 380, "scatter")


def mark(style: int, x: float, y: float, size: float = 3.5) -> Markup:
    """Draw a mark that differs from others in shape as well as in colour."""
    r = size
    if style % 4 == 0:
        return Markup('<circle class="mark s{}" cx="{:g}" cy="{:g}" r="{:g}"/>').format(style, x, y, r)
    if style % 4 == 1:
        path = f"M{x:g} {y - 1.3 * r:g}l{1.25 * r:g} {2.2 * r:g}h{-2.5 * r:g}z"
    elif style % 4 == 2:
        path = f"M{x - r:g} {y - r:g}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z"
    else:
        path = f"M{x:g} {y - 1.4 * r:g}l{1.4 * r:g} {1.4 * r:g}l{-1.4 * r:g} {1.4 * r:g}l{-1.4 * r:g} {-1.4 * r:g}z"
    return Markup('<path class="mark s{}" d="{}"/>').format(style, path)


def key(style: int) -> Markup:
    """Draw the same mark for a legend."""
    return Markup('<svg class="key" viewBox="0 0 12 12" aria-hidden="true">{}</svg>').format(mark(style, 6, 6, 4))


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
    drop = next((r for r, v in zip(curve.ranks, curve.values, strict=True) if v <= 0.01 * curve.values[0]), None)
    falls = f"falls below 1% of the largest at rank {drop:,}" if drop else "never falls below 1% of the largest"
    return f"{curve.name}, {curve.length:,} eigenvalues, {falls}"


def _axes(x: Scale, y: Scale, x_label: str, y_label: str, width: int, height: int) -> list[Markup]:
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(Markup('<path class="grid" d="M{:g} {:g}H{:g}"/>').format(x.start, at, x.end))
        label = Markup('<text x="{:g}" y="{:g}" text-anchor="end" dominant-baseline="middle">{}</text>')
        parts.append(label.format(x.start - 5, at, _tick(value)))
    for value in x.ticks():
        at = x(value)
        parts.append(Markup('<path class="grid" d="M{:g} {:g}V{:g}"/>').format(at, y.start, y.end))
        label = Markup('<text x="{:g}" y="{:g}" text-anchor="middle" dominant-baseline="hanging">{}</text>')
        parts.append(label.format(at, y.start + 6, _tick(value)))
    parts.append(Markup('<path class="axis" d="M{0:g} {3:g}V{1:g}H{2:g}"/>').format(x.start, y.start, x.end, y.end))
    middle = (x.start + x.end) / 2
    parts.append(Markup('<text x="{:g}" y="{:g}" text-anchor="middle">{}</text>').format(middle, height - 6, x_label))
    turned = Markup('<text transform="translate(12 {:g}) rotate(-90)" text-anchor="middle">{}</text>')
    parts.append(turned.format((y.start + y.end) / 2, y_label))
    return parts


def _tick(value: float) -> Markup:
    if value and not 0.01 <= value < 10_000:
        exponent = math.floor(math.log10(value) + 1e-9)
        digit = round(value / 10.0**exponent)
        base = "10" if digit == 1 else f"{digit}·10"
        return Markup('{}<tspan dy="-0.4em" font-size="75%">{}</tspan>').format(base, str(exponent).replace("-", "−"))
    return Markup(f"{value:,.6g}")


def _svg(label: str, parts: Sequence[Markup], width: int, height: int, kind: str) -> Markup:
    head = Markup('<svg class="chart {}" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(kind, width, height, label) + Markup("").join(parts) + Markup("</svg>")
