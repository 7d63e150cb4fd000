"""The pictures in report.html, drawn by pygal when the page is made.

pygal gives SVG, which the page holds as it is: it needs no script, prints, scales, and takes its
colours from the page's own style sheet, light or dark. What pygal adds for pages of its own
(scripts, styles, the date) is left out, so that equal reports give equal bytes.

Every picture has its figures in a table beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optimc.report.chart_svg import WIDTH, Chart, Roles, drawn, look
from optimc.report.escape import one_line

MAX_NAME = 28
"""Characters of a name in a picture; the tables have the whole name."""


@dataclass(frozen=True)
class Interval:
    """A line of a picture of intervals; `kind` is `ships`, `cell` or `source`."""

    name: str
    value: float
    ends: tuple[float, float]
    kind: str
    text: str
    """What is said where the pointer rests on it."""


@dataclass(frozen=True)
class Point:
    """A cell in the picture of accuracy against latency, with the ends of its metric."""

    name: str
    x: float
    y: float
    ends: tuple[float, float] | None
    kind: str
    text: str


def intervals(
    identity: str,
    title: str,
    lines: Sequence[Interval],
    *,
    axis: str,
    marks: Sequence[tuple[str, float]],
    write: Callable[[float], str],
    band: tuple[float, float] | None = None,
) -> Chart:
    """Values with their intervals, one below the other.

    `marks` are vertical lines (`reference`, `limit`) with their place; `band` is a region to be
    told from nothing, such as the noise floor; `write` writes the numbers of the axis.
    """
    import pygal

    count = len(lines)
    chart = pygal.XY(
        **look(height=90 + 30 * count),
        show_x_guides=True,
        show_y_guides=False,
        x_title=one_line(axis),
        range=(0, count + 0.6),
        x_value_formatter=write,
    )
    chart.y_labels = [
        {"value": count - index, "label": shortened(line.name)} for index, line in enumerate(lines)
    ]
    roles = Roles()
    if band is not None:
        values = [(band[0], count + 0.6), (band[1], count + 0.6)]
        roles.add(chart, "band", values, fill=True, show_dots=False)
    for role, place in marks:
        values = [(place, 0), (place, count + 0.6)]
        roles.add(chart, f"mark {role}", values, show_dots=False)
    for index, line in enumerate(lines):
        y = count - index
        ends = [(line.ends[0], y), (line.ends[1], y)]
        roles.add(chart, f"interval {line.kind}", ends, show_dots=False)
        _dot(roles, chart, line.kind, (line.value, y), line.text)
    found = [v for line in lines for v in (*line.ends, line.value)] + [v for _, v in marks]
    chart.xrange = _room([*found, *(band or ())])
    words = "; ".join(line.text for line in lines)
    return drawn(chart, identity, title, words, roles)


def trade(
    identity: str,
    title: str,
    points: Sequence[Point],
    front: Sequence[Point],
    *,
    axes: tuple[str, str],
    write: Callable[[float], str],
) -> Chart:
    """Points with intervals in y, and a line of steps along the `front`, best x first."""
    import pygal

    chart = pygal.XY(
        **look(height=380),
        show_x_guides=True,
        x_title=one_line(axes[0]),
        y_title=one_line(axes[1]),
        value_formatter=write,
        x_value_formatter=lambda value: f"{value:g}",
    )
    roles = Roles()
    steps: list[tuple[float, float]] = []
    for point in front:
        if steps:
            steps.append((point.x, steps[-1][1]))
        steps.append((point.x, point.y))
    roles.add(chart, "front", steps, show_dots=False)
    for point in points:
        if point.ends is not None:
            ends = [(point.x, end) for end in point.ends]
            roles.add(chart, f"interval {point.kind}", ends, show_dots=False)
        _dot(roles, chart, point.kind, (point.x, point.y), point.text)
    chart.xrange = (0, max(point.x for point in points) * 1.12)
    chart.range = _room([y for p in points for y in (p.y, *(p.ends or ()))])
    words = "; ".join(point.text for point in points)
    names = [shortened(point.name) for point in points]
    return drawn(chart, identity, title, words, roles, names)


def along(
    identity: str,
    title: str,
    points: Sequence[Point],
    *,
    axes: tuple[str, str],
    write: Callable[[float], str],
) -> Chart:
    """Points in the order of x, joined by a line; those of kind `source` are drawn small."""
    import pygal

    chart = pygal.XY(
        **look(height=320),
        show_x_guides=False,
        x_title=one_line(axes[0]),
        y_title=one_line(axes[1]),
        value_formatter=write,
        x_value_formatter=lambda value: f"{value:g}",
    )
    roles = Roles()
    roles.add(chart, "front", [(point.x, point.y) for point in points], show_dots=False)
    for point in points:
        size = 2 if point.kind == "source" else 4
        _dot(roles, chart, point.kind, (point.x, point.y), point.text, size)
    chart.range = _room([point.y for point in points])
    return drawn(chart, identity, title, "; ".join(point.text for point in points), roles)


def waterfall(
    identity: str,
    title: str,
    steps: Sequence[tuple[str, float]],
    *,
    axis: str,
    write: Callable[[float], str],
) -> Chart:
    """What each step took away or added: `steps` are names with the value after the step.

    The first is where it starts from; a last bar stands for where it ends.
    """
    import pygal

    chart = pygal.StackedBar(
        **look(height=280, width=WIDTH // 2),
        y_title=axis,
        value_formatter=write,
        x_label_rotation=0 if len(steps) < 5 else 30,
    )
    chart.x_labels = [*(shortened(name, 14) for name, _ in steps), "result"]
    values = [value for _, value in steps]
    base, total, less, more = [0.0], [values[0]], [0.0], [0.0]
    for before, after in itertools.pairwise(values):
        base.append(min(before, after))
        total.append(0.0)
        less.append(max(before - after, 0.0))
        more.append(max(after - before, 0.0))
    bars = {"base": [*base, 0.0], "total": [*total, values[-1]]}
    bars |= {"less": [*less, 0.0], "more": [*more, 0.0]}
    names = [*(name for name, _ in steps), "result"]
    shown = [write(values[0])]
    shown += [_change(a, b, write) for a, b in itertools.pairwise(values)]
    shown.append(write(values[-1]))
    roles = Roles()
    for role, heights in bars.items():
        labelled = [
            {"value": height or None, "label": f"{name}: {text}"}
            for height, name, text in zip(heights, names, shown, strict=True)
        ]
        roles.add(chart, role, labelled)
    words = "; ".join(f"{name}: {text}" for name, text in zip(names, shown, strict=True))
    return drawn(chart, identity, title, words, roles)


def bars(
    identity: str,
    title: str,
    names: Sequence[str],
    series: Sequence[tuple[str, str, Sequence[float | None]]],
    *,
    axis: str,
    write: Callable[[float], str],
) -> Chart:
    """Bars side by side for each of `names`; `series` are (role, name, a value for each)."""
    import pygal

    chart = pygal.HorizontalBar(
        **look(height=80 + (14 * len(series) + 10) * len(names)),
        x_title=axis,
        value_formatter=write,
    )
    # Bars grow upwards: the first name shall stand at the top.
    chart.x_labels = [shortened(name, 44) for name in reversed(names)]
    roles = Roles()
    said = []
    for role, title_of, values in series:
        pairs = list(zip(names, values, strict=True))
        said += [f"{name}, {title_of}: {write(v)}" for name, v in pairs if v is not None]
        labelled = [
            {"value": v, "label": "" if v is None else f"{name}, {title_of}: {write(v)}"}
            for name, v in reversed(pairs)
        ]
        roles.add(chart, role, labelled)
    return drawn(chart, identity, title, "; ".join(said), roles)


def shortened(name: str, most: int = MAX_NAME) -> str:
    """`name` as a picture shows it: visible characters, cut in the middle where it is long."""
    shown = one_line(name)
    if len(shown) <= most:
        return shown
    tail = most // 2
    return f"{shown[: most - tail - 1]}…{shown[-tail:]}"


def _dot(
    roles: Roles, chart: Any, kind: str, place: tuple[float, float], text: str, size: int = 4
) -> None:
    dot = {"value": place, "label": text}
    roles.add(chart, f"point {kind}", [dot], stroke=False, dots_size=size)


def _change(before: float, after: float, write: Callable[[float], str]) -> str:
    if before == after:
        return f"unchanged, {write(after)}"
    sign = "+" if after > before else "\N{MINUS SIGN}"
    return f"{sign}{write(abs(after - before))}, then {write(after)}"


def _room(values: Sequence[float]) -> tuple[float, float]:
    """The range of `values` with room on both sides, also where they are all equal."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 if high - low > 1e-9 * max(abs(low), abs(high)) else 0.0
    room = room or abs(high) * 0.05 or 1.0
    return low - room, high + room
