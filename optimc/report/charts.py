"""The pictures in report.html, drawn by pygal when the page is made.

pygal gives SVG, which the page holds as it is: it needs no script, prints, scales, and takes its
colours from the page's own style sheet, light or dark. What pygal adds for pages of its own
(scripts, styles, the date) is left out, so that equal reports give equal bytes.

Every picture has its figures in a table beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from optimc.report.escape import one_line

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH = 760
MAX_NAME = 28
"""Characters of a name in a picture; the tables have the whole name."""
_LETTER = 6.8  # width of a label's characters at 12 px, over the usual fonts


@dataclass(frozen=True)
class Chart:
    """A picture with the words that stand for it where it cannot be seen."""

    svg: Markup


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


@dataclass
class _Roles:
    """What each of pygal's series stands for, as a class for the style sheet."""

    of: list[str] = field(default_factory=list)

    def add(self, chart: Any, role: str, values: Sequence[Any], **options: Any) -> None:
        chart.add("", values, **options)
        self.of.append(role)


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
        **_look(height=90 + 30 * count),
        show_x_guides=True,
        show_y_guides=False,
        x_title=one_line(axis),
        range=(0, count + 0.6),
        x_value_formatter=write,
    )
    chart.y_labels = [
        {"value": count - index, "label": shortened(line.name)} for index, line in enumerate(lines)
    ]
    roles = _Roles()
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
        dot = {"value": (line.value, y), "label": line.text}
        roles.add(chart, f"point {line.kind}", [dot], stroke=False, dots_size=4)
    found = [v for line in lines for v in (*line.ends, line.value)] + [v for _, v in marks]
    chart.xrange = _room([*found, *(band or ())])
    words = "; ".join(line.text for line in lines)
    return _drawn(chart, identity, title, words, roles)


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
        **_look(height=380),
        show_x_guides=True,
        x_title=one_line(axes[0]),
        y_title=one_line(axes[1]),
        value_formatter=write,
        x_value_formatter=lambda value: f"{value:g}",
    )
    roles = _Roles()
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
        dot = {"value": (point.x, point.y), "label": point.text}
        roles.add(chart, f"point {point.kind}", [dot], stroke=False, dots_size=4)
    chart.xrange = (0, max(point.x for point in points) * 1.12)
    chart.range = _room([y for p in points for y in (p.y, *(p.ends or ()))])
    words = "; ".join(point.text for point in points)
    names = [shortened(point.name) for point in points]
    return _drawn(chart, identity, title, words, roles, names)


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
        **_look(height=280, width=WIDTH // 2),
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
    roles = _Roles()
    for role, heights in bars.items():
        labelled = [
            {"value": height or None, "label": f"{name}: {text}"}
            for height, name, text in zip(heights, names, shown, strict=True)
        ]
        roles.add(chart, role, labelled)
    words = "; ".join(f"{name}: {text}" for name, text in zip(names, shown, strict=True))
    return _drawn(chart, identity, title, words, roles)


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
        **_look(height=80 + (14 * len(series) + 10) * len(names)),
        x_title=axis,
        value_formatter=write,
    )
    # Bars grow upwards: the first name shall stand at the top.
    chart.x_labels = [shortened(name, 44) for name in reversed(names)]
    roles = _Roles()
    said = []
    for role, title_of, values in series:
        pairs = list(zip(names, values, strict=True))
        said += [f"{name}, {title_of}: {write(v)}" for name, v in pairs if v is not None]
        labelled = [
            {"value": v, "label": "" if v is None else f"{name}, {title_of}: {write(v)}"}
            for name, v in reversed(pairs)
        ]
        roles.add(chart, role, labelled)
    return _drawn(chart, identity, title, "; ".join(said), roles)


def shortened(name: str, most: int = MAX_NAME) -> str:
    """`name` as a picture shows it: visible characters, cut in the middle where it is long."""
    shown = one_line(name)
    if len(shown) <= most:
        return shown
    tail = most // 2
    return f"{shown[: most - tail - 1]}…{shown[-tail:]}"


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


def _look(height: int, width: int = WIDTH) -> dict[str, Any]:
    """Sizes and what is left out; colours and fonts are the page's own."""
    from pygal.style import Style

    many = ("#000",) * 400
    sizes = {"label_font_size": 12, "major_label_font_size": 12, "title_font_size": 12}
    return {
        "width": width,
        "height": height,
        "margin": 4,
        "spacing": 8,
        "show_legend": False,
        "js": (),
        "style": Style(colors=many, value_colors=many, **sizes),
        "truncate_label": -1,
        "max_scale": 8,
    }


def _drawn(
    chart: Any,
    identity: str,
    title: str,
    words: str,
    roles: _Roles,
    labels: Sequence[str] = (),
) -> Chart:
    """The picture as SVG for a page, labelled for screen readers."""
    from markupsafe import Markup
    from pygal.etree import etree

    etree.to_etree()  # lxml, where it happens to be installed, would write other bytes
    chart.uuid = identity
    root = chart.render_tree()
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("script", "style", "defs") or callable(child.tag):
                parent.remove(child)
    for node in root.iter():
        _cleaned(node, roles)
    if labels:
        _label(root, labels)
    for key in [key for key in root.attrib if key != "viewBox"]:
        del root.attrib[key]
    for child in root.findall("title"):
        root.remove(child)
    for index, (tag, text) in enumerate((("title", title), ("desc", words))):
        node = ElementTree.Element(tag, {"id": f"{identity}-{tag}"})
        node.text = one_line(text)
        root.insert(index, node)
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-labelledby", f"{identity}-title {identity}-desc")
    return Chart(Markup(ElementTree.tostring(root, encoding="unicode")))


def _cleaned(node: Any, roles: _Roles) -> None:
    """Roles in place of numbers; what pygal's own script would show becomes a plain title."""
    node.attrib.pop("style", None)
    node.attrib.pop("id", None)
    parts = node.get("class", "").split()
    if "series" in parts:
        number = next(int(part[6:]) for part in parts if part.startswith("serie-"))
        node.set("class", f"series {roles.of[number]}")
    if node.get("class") == "tooltip" or _empty_bar(node):
        node.clear()
    told = [child for child in node if child.tag == "desc"]
    label = next((c.text for c in told if c.get("class") == "label"), None)
    for child in told:
        node.remove(child)
    for child in [child for child in node if child.tag == "title" and node.get("class")]:
        node.remove(child)
    if label:
        title = ElementTree.SubElement(node, "title")
        title.text = one_line(label)


def _empty_bar(node: Any) -> bool:
    bar = node.find("rect") if node.get("class") == "bar" else None
    return bar is not None and min(float(bar.get("width")), float(bar.get("height"))) < 0.01


def _label(root: Any, labels: Sequence[str]) -> None:
    """Writes each point's name beside it, where it covers no other point or name."""
    nodes = list(_dots(root))
    taken = [(x - 7, y - 7, x + 7, y + 7) for _, x, y in nodes]
    view = root.find(".//rect[@class='background']/../g[@class='plot']/rect")
    width, height = float(view.get("width")), float(view.get("height"))
    for (parent, x, y), label in zip(nodes, labels, strict=True):
        wide = len(label) * _LETTER
        places = [
            (x + 10, y + 4, "start", x + 10),
            (x - 10, y + 4, "end", x - 10 - wide),
            *((x, y + dy, "middle", x - wide / 2) for dy in (-12, 20, -26, 34, -40, 48)),
            *((x + 10, y + dy, "start", x + 10) for dy in (-16, 24)),
        ]
        boxes = [(left, at - 11, left + wide, at + 3) for _, at, _, left in places]
        costs = [_cost(box, taken, width, height) for box in boxes]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        at_x, at_y, anchor, _ = places[best]
        text = ElementTree.SubElement(
            parent,
            "text",
            {"x": f"{at_x:.1f}", "y": f"{at_y:.1f}", "text-anchor": anchor, "class": "name"},
        )
        text.text = label


def _dots(root: Any) -> Iterator[tuple[Any, float, float]]:
    for group in root.iter("g"):
        if group.get("class") == "dots":
            circle = group.find("circle")
            yield group, float(circle.get("cx")), float(circle.get("cy"))


_Box = tuple[float, float, float, float]


def _cost(box: _Box, taken: Sequence[_Box], width: float, height: float) -> float:
    """The area of `box` that is taken, and twice that outside of the picture."""
    inside = _overlap(box, (0, -8, width, height))
    outside = (box[2] - box[0]) * (box[3] - box[1]) - inside
    return round(sum(_overlap(box, other) for other in taken) + 2 * outside, 3)


def _overlap(one: _Box, other: _Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)
