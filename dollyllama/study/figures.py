"""The figures of a study's page as SVG, in which text keeps its size however wide the page is.

Positions are percentages of the drawing; only curves, which have none, are stretched from a box of
``_BOX`` by ``_BOX`` units with strokes that do not stretch along. Colours are the page's: every
shape has a class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

_BOX = 1000

#: What reaches beyond so many times the middle extent would make all others look alike: the axis
#: is bent for what is clear, and ends there for the rest.
_CUT = 4.0

#: Ticks of a bent axis keep this share of it between them.
_APART = 0.09


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from ``low`` to ``high``.

    Even in the logarithm where ``log``. bend: around 0 about even up to this size, beyond it in
    the logarithm of the size (the inverse hyperbolic sine), so that large and small are both seen.
    """

    low: float
    high: float
    log: bool = False
    bend: float | None = None

    def share(self, value: float) -> float:
        """Where a value stands, 0 at the low end and 1 at the high one, cut off to [0, 1]."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        if self.bend is not None:
            low, high, value = (math.asinh(each / self.bend) for each in (low, high, value))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round numbers within the scale."""
        if self.bend is not None:
            return self._bent_ticks()
        if not self.log:
            step = _round_step((self.high - self.low) / count)
            first = math.ceil(self.low / step - 1e-9)
            last = math.floor(self.high / step + 1e-9)
            return [number * step for number in range(first, last + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        inside = [value for value in every if self.low <= value <= self.high]
        return inside if len(inside) >= 2 else [self.low, self.high]

    def _bent_ticks(self) -> list[float]:
        """0, and to both sides powers of ten as far as they stand apart."""
        found = [0.0]
        for sign, end in ((1.0, self.high), (-1.0, self.low)):
            size, last = 10.0 ** math.floor(math.log10(max(abs(self.low), abs(self.high)))), 2.0
            while size > 1e-3 * (self.bend or 1.0):
                at, zero = self.share(sign * size), self.share(0.0)
                if sign * end >= size and min(abs(at - last), abs(at - zero)) >= _APART:
                    found.append(sign * size)
                    last = at
                size /= 10
        return sorted(found)


def effect_scale(
    extents: Iterable[tuple[float, float]],
    margin: float,
    *,
    clear: Iterable[tuple[float, float]] = (),
) -> Scale:
    """A scale with 0 on which ± ``margin``, most of the intervals ``extents`` and all of those that
    are ``clear`` are whole. It is bent where the clear ones would otherwise hide the others.
    """
    ends, whole = list(extents), list(clear)
    reach = sorted(max(abs(low), abs(high)) for low, high in ends) or [1.0]
    middle = reach[len(reach) // 2]
    limit = max(_CUT * middle, 2.5 * margin) or 1.0
    low = max(min((end[0] for end in ends), default=-1.0), -limit)
    high = min(max((end[1] for end in ends), default=1.0), limit)
    low, high = min(low, -1.4 * margin, 0.0), max(high, 1.4 * margin, 0.0)
    low = min([low, *(end[0] for end in whole)])
    high = max([high, *(end[1] for end in whole)])
    if low == high:
        low, high = -1.0, 1.0
    if max(-low, high) <= limit:
        room = 0.04 * (high - low)
        return Scale(low - room, high + room)
    return Scale(1.15 * low, 1.15 * high, bend=max(middle, margin) or 1.0)


def interval(
    value: float, low: float | None, high: float | None, *, scale: Scale, margin: float, title: str
) -> str:
    """One row of a forest plot: a dot with its interval, the line of 0 and the band that matters.

    An end beyond the scale is an arrow, and a hollow one where the dot itself lies beyond. title:
    what a screen reader says.
    """
    zero = _percent(scale.share(0))
    left, right = scale.share(-margin), scale.share(margin)
    parts = [
        _rect(left, right, "band"),
        f'<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="100%"/>',
    ]
    if low is not None and high is not None:
        start, end = scale.share(low), scale.share(high)
        parts.append(
            f'<line class="whisker" x1="{_percent(start)}" x2="{_percent(end)}" y1="50%" y2="50%"/>'
        )
        if low < scale.low <= value:
            parts.append(_arrow("0%", "◂"))
        if high > scale.high >= value:
            parts.append(_arrow("100%", "▸"))
    if value < scale.low:
        parts.append(_arrow("0%", "◃"))
    elif value > scale.high:
        parts.append(_arrow("100%", "▹"))
    else:
        kind = "dot" if low is not None else "dot hollow"
        at = _percent(scale.share(value))
        parts.append(f'<circle class="{kind}" cx="{at}" cy="50%" r="4.5"/>')
    return _svg("interval", title, parts)


def effect_axis(scale: Scale, *, percent: bool) -> str:
    """The axis below a forest plot."""
    ticks = scale.ticks(5)
    parts = []
    if scale.bend is None:
        labels = tick_labels(ticks, signed=True, percent=percent)
    else:
        shown = [100 * tick if percent else tick for tick in ticks]
        labels = [f"{tick:+g}".replace("-", "−") if tick else "0" for tick in shown]
    for tick, label in zip(ticks, labels, strict=True):
        at = _percent(scale.share(tick))
        parts.append(f'<line class="tick" x1="{at}" x2="{at}" y1="0" y2="5"/>')
        parts.append(f'<text class="label" x="{at}" y="20" text-anchor="middle">{label}</text>')
    return _svg("axis", None, parts)


@dataclass(frozen=True, slots=True)
class Curve:
    """Training loss by step: the seeds' mean, and the least and greatest of them."""

    name: str
    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def curve_of(name: str, runs: Sequence[Sequence[tuple[int, float]]]) -> Curve | None:
    """One variant's curve from its seeds', as far as all of them go; None without a point.

    Between logged steps the loss is taken for a straight line.
    """
    runs = [run for run in runs if run]
    if not runs:
        return None
    start, end = max(run[0][0] for run in runs), min(run[-1][0] for run in runs)
    steps = sorted({step for run in runs for step, _ in run if start <= step <= end})
    if not steps:
        return None
    losses = np.array(
        [np.interp(steps, [step for step, _ in run], [loss for _, loss in run]) for run in runs]
    )
    chosen = _thinned(len(steps))
    losses = losses[:, chosen]
    return Curve(
        name,
        [float(steps[place]) for place in chosen],
        losses.mean(axis=0).tolist(),
        losses.min(axis=0).tolist(),
        losses.max(axis=0).tolist(),
    )


def curves(drawn: Sequence[Curve], *, classes: Mapping[str, str]) -> str:
    """Loss curves with seed bands, each in a group that scripts can show and hide.

    classes: the class of the variants that are shown at first; the others are hidden. The loss is
    on a logarithmic axis, where late differences are seen beside early ones.
    """
    everything = [value for curve in drawn for value in (*curve.low, *curve.high) if value > 0]
    if not everything:
        return ""
    y = Scale(*_span(everything), log=True)
    last = max(curve.steps[-1] for curve in drawn)
    x = Scale(min(curve.steps[0] for curve in drawn), last if last > 0 else 1)
    if x.low == x.high:
        x = Scale(x.low - 1, x.high + 1)
    parts = _grid(x, y)
    parts.append(
        f'<svg class="stretched" width="100%" height="100%" viewBox="0 0 {_BOX} {_BOX}" '
        f'preserveAspectRatio="none">'
    )
    for curve in drawn:
        shown = curve.name in classes
        band = [
            *zip(curve.steps, curve.high, strict=True),
            *reversed([*zip(curve.steps, curve.low, strict=True)]),
        ]
        line = zip(curve.steps, curve.mean, strict=True)
        parts.append(
            f'<g class="curve {classes.get(curve.name, "")}" data-curve="{escape(curve.name)}"'
            f"{'' if shown else ' hidden'}>"
            f"<title>{escape(curve.name)}</title>"
            f'<polygon points="{_points(band, x, y)}"/>'
            f'<polyline points="{_points(line, x, y)}"/></g>'
        )
    parts.append("</svg>")
    return _svg("plot curves", "Training loss by optimizer step", parts)


@dataclass(frozen=True, slots=True)
class Point:
    """A variant's cost and quality, with the ranges around them. kind: a class of the page."""

    name: str
    x: float
    y: float
    x_range: tuple[float, float]
    y_range: tuple[float, float] | None
    kind: str
    title: str


def frontier(points: Sequence[Point], *, lower_is_better: bool) -> list[Point]:
    """The points that no other beats in cost and quality at once, by rising cost."""
    sign = 1 if lower_is_better else -1
    best = math.inf
    found = []
    for point in sorted(points, key=lambda each: (each.x, sign * each.y, each.name)):
        if sign * point.y < best:
            best = sign * point.y
            found.append(point)
    return found


def quality_against_cost(
    points: Sequence[Point], *, lower_is_better: bool, percent: bool, title: str
) -> str:
    """Variants by what they cost and how good they are, the frontier joined by a dashed line.

    The baseline and the frontier have their names beside them. What is far worse than the rest
    stands at the edge, with an arrow in place of a dot.
    """
    values = sorted(point.y for point in points)
    middle = values[len(values) // 2]
    reach = sorted(abs(value - middle) for value in values)[len(values) // 2]
    limit = 25 * reach if reach > 0 else math.inf
    inside = [point for point in points if abs(point.y - middle) <= limit]
    y = Scale(*_span([value for each in inside for value in (each.y, *_within(each, limit))]))
    x = Scale(*_span([value for each in points for value in (each.x, *each.x_range)]))
    best = frontier(points, lower_is_better=lower_is_better)
    parts = _grid(x, y, percent=percent)
    line = _points([(point.x, point.y) for point in best], x, y)
    parts.append(
        f'<svg class="stretched" width="100%" height="100%" viewBox="0 0 {_BOX} {_BOX}" '
        f'preserveAspectRatio="none"><polyline class="frontier" points="{line}"/></svg>'
    )
    for point in points:
        across, up = _percent(x.share(point.x)), _percent(1 - y.share(point.y))
        left, right = (_percent(x.share(value)) for value in point.x_range)
        marks = [f'<line class="whisker" x1="{left}" x2="{right}" y1="{up}" y2="{up}"/>']
        if point.y_range is not None:
            low, high = (_percent(1 - y.share(value)) for value in point.y_range)
            marks.append(
                f'<line class="whisker" x1="{across}" x2="{across}" y1="{low}" y2="{high}"/>'
            )
        marks.append(f'<circle class="dot" cx="{across}" cy="{up}" r="4.5"/>')
        if not y.low <= point.y <= y.high:
            sign = "↑" if point.y > y.high else "↓"
            marks.append(f'<text class="label" x="{across}" y="{up}" dx="8" dy="4">{sign}</text>')
        if point in best or point.kind == "baseline":
            flip = x.share(point.x) > 0.6
            # Below its dot, where the name of a variant much like it is not.
            shift = 17 if point.kind == "baseline" else -7
            marks.append(
                f'<text class="name" x="{across}" y="{up}" dx="{-9 if flip else 9}" dy="{shift}" '
                f'text-anchor="{"end" if flip else "start"}">{escape(point.name)}</text>'
            )
        parts.append(
            f'<g class="{point.kind}"><title>{escape(point.title)}</title>{"".join(marks)}</g>'
        )
    return _svg("plot", title, parts)


def tick_labels(
    ticks: Sequence[float], *, signed: bool = False, percent: bool = False
) -> list[str]:
    """Ticks with as many decimals as tell them apart; shares as percent."""
    shown = [100 * tick if percent else tick for tick in ticks]
    gaps = [abs(b - a) for a, b in pairwise(shown) if a != b]
    decimals = max(0, -math.floor(math.log10(min(gaps)) + 1e-9)) if gaps else 2
    labels = []
    for value in shown:
        text = f"{value:+,.{decimals}f}" if signed else f"{value:,.{decimals}f}"
        bare = float(f"{value:.{decimals}f}") == 0
        labels.append("0" if bare else text.replace("-", "−"))
    return labels


def _within(point: Point, limit: float) -> list[float]:
    return [] if point.y_range is None else [y for y in point.y_range if abs(y - point.y) <= limit]


def _grid(x: Scale, y: Scale, *, percent: bool = False) -> list[str]:
    """Grid lines with their numbers: steps or costs below, the metric to the left."""
    parts = []
    ticks = y.ticks(5)
    labels = [f"{tick:.3g}" for tick in ticks] if y.log else tick_labels(ticks, percent=percent)
    for tick, label in zip(ticks, labels, strict=True):
        at = _percent(1 - y.share(tick))
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="label" x="0" y="{at}" dx="-8" dy="4" text-anchor="end">{label}</text>'
        )
    ticks = x.ticks(5)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        at = _percent(x.share(tick))
        parts.append(
            f'<text class="label" x="{at}" y="100%" dy="20" text-anchor="middle">{label}</text>'
        )
    return parts


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The range of ``values`` and a little more."""
    low, high = min(values), max(values)
    if low == high:
        return low * 0.95 - 1e-9 if low else -1.0, high * 1.05 + 1e-9 if high else 1.0
    room = 0.06 * (high - low)
    return (low - room if low - room > 0 or low <= 0 else low * 0.94), high + room


def _thinned(count: int, most: int = 160) -> list[int]:
    """Up to ``most`` of ``count`` places, evenly chosen, the first and the last included."""
    if count <= most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if rough <= digit * power * (1 + 1e-9))


def _points(pairs: Iterable[tuple[float, float]], x: Scale, y: Scale) -> str:
    return " ".join(
        f"{x.share(across) * _BOX:.1f},{(1 - y.share(up)) * _BOX:.1f}" for across, up in pairs
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _rect(left: float, right: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{_percent(left)}" width="{_percent(right - left)}" y="0" '
        f'height="100%"/>'
    )


def _arrow(at: str, text: str) -> str:
    anchor = "start" if at == "0%" else "end"
    return f'<text class="arrow" x="{at}" y="50%" dy="5" text-anchor="{anchor}">{text}</text>'


def _svg(kind: str, title: str | None, parts: Iterable[str]) -> str:
    """title: read out in place of the drawing; without one it is hidden from screen readers."""
    if title is None:
        return f'<svg class="{kind}" aria-hidden="true">{"".join(parts)}</svg>'
    return f'<svg class="{kind}" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>'
