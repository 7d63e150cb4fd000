from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from optimc.report.charts import Interval, Point, bars, intervals, shortened, trade, waterfall
from optimc.report.pictures import pareto


def _plain(value: float) -> str:
    return f"{value:g}"


def _texts(svg: str, role: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [
        "".join(title.itertext())
        for group in root.iter("g")
        if role in (group.get("class") or "").split()
        for title in group.iter("title")
    ]


def _line(name: str, value: float = 1.0) -> Interval:
    return Interval(name, value, (value - 0.1, value + 0.1), "cell", f"{name}: {value}")


def test_a_picture_of_intervals_says_each_value_and_draws_the_marks() -> None:
    chart = intervals(
        "id",
        "Speed",
        [_line("a", 1.0), _line("b", 2.0)],
        axis="x",
        marks=[("limit", 1.5)],
        write=_plain,
        band=(0.9, 1.1),
    )
    assert _texts(chart.svg, "point") == ["a: 1.0", "b: 2.0"]
    root = ElementTree.fromstring(chart.svg)
    assert root.findtext("title") == "Speed"
    assert root.findtext("desc") == "a: 1.0; b: 2.0"
    paths = {role: _path(root, role) for role in ("limit", "band", "interval")}
    assert all(paths.values()), paths


def _path(root: ElementTree.Element, role: str) -> str | None:
    for group in root.iter("g"):
        path = group.find("path")
        if role in (group.get("class") or "").split() and path is not None:
            return path.get("d")
    return None


def test_pictures_hold_nothing_that_the_page_forbids() -> None:
    hostile = "<script>alert(1)</script>\x1b"
    charts = [
        intervals("a", hostile, [_line(hostile)], axis=hostile, marks=[], write=_plain),
        waterfall("b", hostile, [(hostile, 2.0), (hostile, 1.0)], axis="MB", write=_plain),
        bars("c", hostile, [hostile], [("cell", hostile, [1.0])], axis="ms", write=_plain),
        trade(
            "d",
            hostile,
            [Point(hostile, 1.0, 1.0, None, "cell", hostile)] * 2,
            [],
            axes=(hostile, hostile),
            write=_plain,
        ),
    ]
    for chart in charts:
        assert "<script" not in chart.svg
        assert not re.search(r"<style|<defs|href|style=|\x1b|<!--|http", chart.svg)


def test_equal_figures_give_equal_bytes() -> None:
    def drawn() -> str:
        return bars("c", "t", ["n"], [("cell", "e", [1.0])], axis="ms", write=_plain).svg

    assert drawn() == drawn()


def test_a_waterfall_tells_what_each_step_took_away_or_added() -> None:
    steps = [("source", 56.0), ("simplify", 22.0), ("quantize_int8", 49.0), ("fuse", 49.0)]
    svg = waterfall("w", "Nodes", steps, axis="nodes", write=_plain).svg
    assert _texts(svg, "less") == ["simplify: \N{MINUS SIGN}34, then 22"]
    assert _texts(svg, "more") == ["quantize_int8: +27, then 49"]
    assert _texts(svg, "total") == ["source: 56", "result: 49"]
    assert "fuse: unchanged, 49" in svg


def test_names_beside_points_do_not_cover_each_other() -> None:
    points = [Point(f"variant/target{i}", 1.0, 0.99, None, "cell", "t") for i in range(4)]
    svg = trade("t", "t", points, points[:1], axes=("x", "y"), write=_plain).svg
    root = ElementTree.fromstring(svg)
    names = [text for text in root.iter("text") if text.get("class") == "name"]
    places = {(text.get("x"), text.get("y"), text.get("text-anchor")) for text in names}
    assert len(names) == len(places) == 4


@pytest.mark.parametrize(
    ("better", "front"), [("higher", ["fast", "best"]), ("lower", ["fast", "low"])]
)
def test_the_front_holds_what_no_other_beats_in_both(better: str, front: list[str]) -> None:
    points = [
        Point(name, x, y, None, "cell", name)
        for name, x, y in (("best", 3, 0.9), ("fast", 1, 0.8), ("low", 2, 0.7), ("slow", 4, 0.85))
    ]
    assert [point.name for point in pareto(points, better)] == front


def test_long_names_are_cut_in_the_middle() -> None:
    assert shortened("short") == "short"
    assert shortened("/encoder/layer.0/attention/self/query/MatMul", 20) == "/encoder/…ery/MatMul"
    assert len(shortened("x" * 1000, 20)) == 20
    assert shortened("\x1b") == "\\x1b"
