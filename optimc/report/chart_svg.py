"""What pygal draws made fit for report.html: no scripts, no styles, roles for the style sheet,
words for screen readers, and names beside points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from optimc.report.escape import one_line

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH = 760
_LETTER = 6.8  # width of a label's characters at 12 px, over the usual fonts


@dataclass(frozen=True)
class Chart:
    """A picture with the words that stand for it where it cannot be seen."""

    svg: Markup
    title: str


@dataclass
class Roles:
    """What each of pygal's series stands for, as a class for the style sheet."""

    of: list[str] = field(default_factory=list)

    def add(self, chart: Any, role: str, values: Sequence[Any], **options: Any) -> None:
        chart.add("", values, **options)
        self.of.append(role)


def look(height: int, width: int = WIDTH) -> dict[str, Any]:
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


def drawn(
    chart: Any,
    identity: str,
    title: str,
    words: str,
    roles: Roles,
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
    return Chart(Markup(ElementTree.tostring(root, encoding="unicode")), title)


def _cleaned(node: Any, roles: Roles) -> None:
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
