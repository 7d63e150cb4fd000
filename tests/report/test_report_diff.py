"""The views of `optimc diff`: what they show, and that no name of a model steers them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from optimc.report.diff import DiffReport, Trend, ValueRow, interesting
from optimc.report.diff_page import profile, profile_points, to_page
from optimc.report.diff_table import render_diff
from optimc.testing.example_report import HOSTILE_NAMES


def _row(number: int, name: str, trend: Trend, noise: float | None, **more: object) -> ValueRow:
    fields = {
        "other": name,
        "matched": "name",
        "operator": "Conv",
        "other_operator": "Conv",
        "output": False,
        "max_abs": noise,
        "max_rel": noise,
    }
    return ValueRow(number=number, name=name, trend=trend, noise=noise, **{**fields, **more})  # type: ignore[arg-type]


def _report(name: str = "h", rows: tuple[ValueRow, ...] | None = None) -> DiffReport:
    return DiffReport(
        a=f"{name}.onnx",
        b=f"out/{name}",
        a_run="ONNX Runtime, graph optimizations off",
        b_run="OpenVINO, f32",
        inputs=(name,),
        limit="at most 0.0001 of the value's scale",
        same=False,
        rows=rows
        or (
            _row(1, f"{name}1", Trend.SAME, 0.0),
            _row(2, f"{name}2", Trend.STARTS, 0.02, other_operator="Gemm"),
            _row(3, f"{name}3", Trend.GROWS, 0.3, other=f"{name}x", matched="structure"),
            _row(4, f"{name}4", Trend.HEALS, 0.01),
            _row(5, f"{name}5", Trend.NOT_COMPARED, None, reason=f"shape of {name}"),
            _row(6, f"{name}6", Trend.CARRIED, float("inf"), output=True),
        ),
        unmatched_a=(f"{name}7",),
        unmatched_b=(),
        notes=(f"about {name}",),
    )


class Page(HTMLParser):
    """The elements, and whether all were closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_table_tells_the_turns_and_the_verdict_last() -> None:
    lines = render_diff(_report()).splitlines()
    text = "\n".join(lines)
    for word in ("h2", "starts", "h3 = hx", "grows", "h4", "heals", "output", "Conv/Gemm"):
        assert word in text
    assert not any(line.strip().startswith("1 ") for line in lines)
    assert lines[-1].startswith("The models differ: output h6")
    assert "1 by structure" in text
    everything = render_diff(_report(), every=True)
    assert "h1" in everything
    assert "not compared" in everything


def test_of_many_rows_the_worst_and_the_first_and_the_outputs_stay() -> None:
    rows = [_row(n, f"v{n}", Trend.STARTS, 1 / n) for n in range(100, 1, -1)][::-1]
    rows = [_row(1, "first", Trend.STARTS, 1e-6), *rows, _row(101, "y", Trend.SAME, 0, output=True)]
    shown = [row.name for row in interesting(_report(rows=tuple(rows)), 10)]
    assert len(shown) == 10
    assert shown[0] == "first"
    assert shown[1:9] == [f"v{n}" for n in range(2, 10)]
    assert shown[-1] == "y"


@pytest.mark.parametrize("width", [40, 80, 100, 200])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_the_table_stays_narrow_and_plain(name: str, width: int) -> None:
    text = render_diff(_report(name), width=width, every=True)
    assert max(map(len, text.splitlines())) <= min(width, 100)
    assert "\x1b" not in text
    assert not any(line.lstrip().startswith("::") for line in text.splitlines())


def test_colour_only_where_asked() -> None:
    assert "\x1b[" in render_diff(_report(), color=True)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_becomes_markup_of_the_page(name: str) -> None:
    plain, page = Page(to_page(_report())), Page(to_page(_report(name)))
    assert page.tags == plain.tags
    assert [key for key, _ in page.attributes] == [key for key, _ in plain.attributes]


def test_the_page_needs_nothing_but_itself() -> None:
    text = to_page(_report())
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_the_chart_has_a_point_for_every_value_that_was_compared() -> None:
    points = profile_points(_report())
    assert [point.x for point in points] == [1, 2, 3, 4, 6]
    heights = {point.x: point.y for point in points}
    assert heights[6] > heights[3] > heights[2] > heights[4] > heights[1]
    assert profile(_report()) is not None
    assert profile(_report(rows=_report().rows[:1])) is None


def test_json_holds_everything_and_no_bare_infinity() -> None:
    tree = json.loads(_report().to_json(), parse_constant=pytest.fail)
    assert tree["schema"] == 1
    assert tree["rows"][5]["noise"] == "inf"
    assert tree["rows"][1]["trend"] == "starts"
