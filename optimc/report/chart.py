"""Geometry of the pictures in report.html: where each mark stands; the template draws them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimc.report.rows import primary_metric
from optimc.report.values import Skipped
from optimc.report.verdict import shipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from optimc.report.schema import Check, Report

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 46
LETTER = 7.6  # widest average of a label's characters at 12 px, over the usual fonts
MAX_LABEL = 24


@dataclass(frozen=True)
class Scale:
    """Maps the values between `low` and `high` to the places between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of `value`, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    place: float
    label: str


@dataclass(frozen=True)
class Point:
    """A cell (or the source) at its latency and its metric, with the metric's interval."""

    name: str
    kind: str
    latency: float
    metric: float
    x: float
    y: float
    interval: tuple[float, float] | None
    label: str
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Scatter:
    """The metric against latency, with the front of the cells that no other cell beats in both."""

    metric: str
    better: str
    points: tuple[Point, ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Strip:
    """An interval on a line, with a reference, and a band of noise around that where it is known.

    All places are in per cent of the line's width.
    """

    low: float
    high: float
    value: float
    reference: float
    band: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Raw:
    name: str
    kind: str
    latency: float
    metric: float
    ends: tuple[float, float] | None


def scatter(report: Report) -> Scatter | None:
    """The picture of the first metric against the first case's p50; None below two points."""
    metric = primary_metric(report)
    raw = [] if metric is None else _raw_points(report, metric)
    if metric is None or len(raw) < 2:
        return None
    better = _better(report, metric)
    x_values = [0.0, *(point.latency for point in raw)]
    y_values = [y for point in raw for y in (point.metric, *(point.ends or ()))]
    x_ticks, y_ticks = ticks(min(x_values), max(x_values)), ticks(min(y_values), max(y_values))
    x_scale = Scale(x_ticks[0], max(x_ticks[-1], max(x_values)), LEFT, WIDTH - RIGHT)
    y_scale = Scale(y_ticks[0], max(y_ticks[-1], max(y_values)), HEIGHT - BOTTOM, TOP)
    return Scatter(
        metric=metric,
        better=better,
        points=_placed(raw, x_scale, y_scale),
        front=_front(raw, better, x_scale, y_scale),
        x_ticks=_labelled(x_ticks, x_scale),
        y_ticks=_labelled(y_ticks, y_scale),
    )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values (steps of 1, 2 or 5 times a power of ten) from at or below `low` to at or
    above `high`."""
    span = _span(low, high) or abs(high) * 0.1 or 1.0
    power: float = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _span(low: float, high: float) -> float:
    """How far the two are apart; 0 where they are equal but for a rounding."""
    return high - low if high - low > 1e-9 * max(abs(low), abs(high)) else 0.0


def _labelled(values: Sequence[float], scale: Scale) -> tuple[Tick, ...]:
    """`values`, each with as many decimals as their distance needs."""
    decimals = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    return tuple(Tick(scale(value), f"{value:.{decimals}f}") for value in values)


def check_strip(check: Check) -> Strip | None:
    """The check's interval against its limit; None where there is no figure."""
    if isinstance(check.value, Skipped):
        return None
    ends = (check.value, check.value) if isinstance(check.ci95, Skipped) else check.ci95
    return strip(check.value, ends, check.limit, (check.value, *ends, check.limit))


def strip(
    value: float,
    ends: tuple[float, float],
    reference: float,
    span: Iterable[float],
    band: tuple[float, float] | None = None,
) -> Strip:
    """`value`, `ends` and `band` on a line that holds all of `span`, with room on both sides."""
    values = [*span, reference, *(band or ())]
    low, high = min(values), max(values)
    room = _span(low, high) / 6 or abs(high) or 1.0
    scale = Scale(low - room, high + room, 0, 100)
    places = (scale(band[0]), scale(band[1])) if band else None
    return Strip(scale(ends[0]), scale(ends[1]), scale(value), scale(reference), places)


def _raw_points(report: Report, metric: str) -> list[_Raw]:
    points = []
    source = report.source.metrics[metric]
    if not isinstance(report.source.latency, Skipped) and report.source.latency:
        p50 = report.source.latency[0].p50_ms
        if not isinstance(p50, Skipped) and not isinstance(source, Skipped):
            points.append(_Raw("source", "source", p50, source, None))
    ships = shipped(report)
    for cell in report.results:
        if isinstance(cell.latency, Skipped) or isinstance(cell.metrics, Skipped):
            continue
        found = cell.metrics.get(metric)
        p50 = cell.latency[0].p50_ms if cell.latency else Skipped(skipped="no case")
        if found is None or isinstance(p50, Skipped) or isinstance(found.value, Skipped):
            continue
        kind = "ships" if cell in ships else "cell"
        ends = None
        if not isinstance(found.ci95, Skipped) and not isinstance(found.source, Skipped):
            sign = 1 if found.better == "higher" else -1
            low, high = sorted(found.source - sign * end for end in found.ci95)
            ends = (low, high)
        points.append(_Raw(cell.name, kind, p50, found.value, ends))
    return points


def _better(report: Report, metric: str) -> str:
    for cell in report.results:
        if not isinstance(cell.metrics, Skipped) and metric in cell.metrics:
            return cell.metrics[metric].better
    return "higher"


def _front(raw: Sequence[_Raw], better: str, x_scale: Scale, y_scale: Scale) -> str:
    """The Pareto front as points of a polyline, from the fastest cell to the best metric."""
    sign = 1 if better == "higher" else -1
    front: list[_Raw] = []
    for point in sorted(raw, key=lambda point: (point.latency, -sign * point.metric)):
        if not front or sign * point.metric > sign * front[-1].metric:
            front.append(point)
    steps = []
    for before, after in itertools.pairwise(front):
        steps += [(before.latency, before.metric), (after.latency, before.metric)]
    steps += [(front[-1].latency, front[-1].metric)]
    return " ".join(f"{x_scale(x)},{y_scale(y)}" for x, y in steps)


def _placed(raw: Sequence[_Raw], x_scale: Scale, y_scale: Scale) -> tuple[Point, ...]:
    """The points, each with its label where it covers no other label or mark."""
    taken = [_mark(point, x_scale, y_scale) for point in raw]
    placed = []
    for point in raw:
        x, y = x_scale(point.latency), y_scale(point.metric)
        label = point.name if len(point.name) <= MAX_LABEL else point.name[: MAX_LABEL - 1] + "…"
        label_x, label_y, anchor, box = _label_place(x, y, len(label) * LETTER, taken)
        taken.append(box)
        ends = (y_scale(point.ends[1]), y_scale(point.ends[0])) if point.ends else None
        placed.append(
            Point(
                name=point.name,
                kind=point.kind,
                latency=point.latency,
                metric=point.metric,
                x=x,
                y=y,
                interval=ends,
                label=label,
                label_x=round(label_x, 1),
                label_y=round(label_y, 1),
                anchor=anchor,
            )
        )
    return tuple(placed)


_Box = tuple[float, float, float, float]


def _box(x: float, y: float, width: float, height: float) -> _Box:
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _mark(point: _Raw, x_scale: Scale, y_scale: Scale) -> _Box:
    """What a point covers: its circle, and the line of its interval."""
    x, y = x_scale(point.latency), y_scale(point.metric)
    low, high = point.ends or (point.metric, point.metric)
    return (x - 4, min(y - 4, y_scale(high)), x + 4, max(y + 4, y_scale(low)))


def _label_place(
    x: float, y: float, width: float, taken: Sequence[_Box]
) -> tuple[float, float, str, _Box]:
    """The first of eight places around a mark that is free, or the one that covers least."""
    places = [
        (x + 10, y + 4, "start", _box(x + 10 + width / 2, y, width, 14)),
        (x - 10, y + 4, "end", _box(x - 10 - width / 2, y, width, 14)),
    ]
    for lift in (-14, 20, -28, 34):
        places.append((x, y + lift, "middle", _box(x, y + lift - 4, width, 14)))
    for lift in (-10, 18):
        places.append((x + 8, y + lift, "start", _box(x + 8 + width / 2, y + lift - 4, width, 14)))
    return min(places, key=lambda place: _covered(place[3], taken))


def _covered(box: _Box, taken: Sequence[_Box]) -> float:
    """The area of `box` that is taken, or lies outside of the picture."""
    inside = (LEFT, TOP - 10, WIDTH, HEIGHT - BOTTOM)
    outside = (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, inside)
    return round(sum(_overlap(box, other) for other in taken) + 2 * outside, 3)


def _overlap(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
