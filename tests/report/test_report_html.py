from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from optimc.report.escape import one_line
from optimc.report.html import to_html
from optimc.report.pictures import trade_chart
from optimc.report.schema import Confirmation, Gate, Report
from optimc.report.values import Skipped
from optimc.testing.example_report import (
    HOSTILE_NAMES,
    example_report,
    failed_report,
    hostile_report,
    undecided_report,
)

VOID = {"meta", "link", "br", "img"}
REPORTS = {
    "passed": example_report(),
    "undecided": undecided_report(),
    "failed": failed_report(),
    "hostile": hostile_report(" ".join(HOSTILE_NAMES)),
}
every_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())


def test_what_ships_is_shown_by_the_figures_that_the_gate_judged() -> None:
    report = example_report()
    cell = next(c for c in report.results if c.name == report.best.name)  # type: ignore[union-attr]
    assert "measured again" not in to_html(report)
    again = Confirmation(
        variant=cell.variant,
        target=cell.target,
        speedup=cell.speedup.model_copy(update={"value": 7.654}),
        latency=cell.latency[0].model_copy(update={"p50_ms": 0.7654}),  # type: ignore[union-attr]
    )
    tiles = to_html(report.model_copy(update={"confirmation": again})).partition('class="tiles"')[2]
    tiles = tiles.partition("</dl>")[0]
    assert "7.6" in tiles
    assert "0.765" in tiles
    assert tiles.count("measured again") == 2


def test_the_tiles_of_what_ships_have_as_many_digits_as_their_intervals() -> None:
    report = example_report()
    cell = report.results[3]
    assert not isinstance(cell.speedup, Skipped)
    wide = cell.speedup.model_copy(update={"value": 5.2345, "ci95": (3.9, 7.83)})
    cells = [
        one if one is not cell else cell.model_copy(update={"speedup": wide})
        for one in report.results
    ]
    words = Page(to_html(report.model_copy(update={"results": tuple(cells)}))).words("style")
    tiles = words.partition("Ships: int8/ort")[2].partition("Mind:")[0]
    assert "speed-up5.2× [3.9, 7.8] over source" in tiles
    assert "p50 latency1.781 ms [1.763, 1.817], batch=1" in tiles
    assert "top1 drop0.0008 [−0.0006, 0.0022]" in tiles


class Page(HTMLParser):
    """Elements with their attributes, text by element, and whether all were closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def outside_pictures(self) -> list[str]:
        """All tags but what pictures are made of: how many lines a text takes depends on it."""
        return [tag for tag, _ in self.elements if tag not in {"title", "g", "text", "path"}]

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self, *skip: str) -> str:
        return " ".join("".join(text for tag, text in self.text if tag not in skip).split())


@every_report
def test_the_page_needs_nothing_from_outside(report: Report) -> None:
    page = Page(to_html(report))
    for tag, attributes in page.elements:
        assert not {"srcset", "action", "style"} & set(attributes)
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png")
        assert not [name for name in attributes if name.startswith("on")]
        href = attributes.get("href")
        assert href is None or href == "data:," or href.startswith("#"), (tag, href)
    assert {tag for tag, _ in page.elements}.isdisjoint({"iframe", "object", "base", "form"})
    style = "".join(text for tag, text in page.text if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


@every_report
def test_only_our_own_script_may_run(report: Report) -> None:
    page = Page(to_html(report))
    scripts = [text for tag, text in page.text if tag == "script"]
    assert len(scripts) == len(page.of("script")) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in (policy or "")
    assert "default-src 'none'" in (policy or "")


@every_report
def test_tables_can_be_read_aloud_and_reached_by_keyboard(report: Report) -> None:
    page = Page(to_html(report))
    assert len(page.of("caption")) == len(page.of("table")) > 4
    assert all(header.get("scope") for header in page.of("th"))
    frames = [div for div in page.of("div") if div.get("class") == "frame"]
    assert all(div.get("tabindex") == "0" and div.get("aria-label") for div in frames)
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    labels = [a["aria-labelledby"] or "" for _, a in page.elements if "aria-labelledby" in a]
    links = [(a["href"] or "").removeprefix("#") for a in page.of("a")]
    assert {part for label in labels for part in label.split()} | set(links) <= set(ids)


def test_the_sections_come_in_the_order_of_their_weight() -> None:
    sections = [
        s.get("id") or s.get("aria-labelledby")
        for s in Page(to_html(example_report())).of("section")
    ]
    assert sections == [
        "verdict",
        "accuracy",
        "speed",
        "trade",
        "int8",
        "findings",
        "passes",
        "layers",
        "ranges",
        "origin",
        "repeat",
    ]  # fmt: skip


def test_it_tells_figures_reasons_conditions_digests_and_the_command() -> None:
    report = example_report()
    words = Page(to_html(report)).words("style", "script")
    for text in (
        "Gate passed int8/ort, the best of 5, ships",
        "2.251× [2.226, 2.276]",
        "0.0008 [−0.0006, 0.0022]",
        "1.001× [0.992, 1.010], the source against itself",
        "max abs error 0.31 on probe 2 (batch 64)",
        "needs 500 runs, 212 were made",
        "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, 2 cores, x86_64",
        "/head/Gemm: kept by keep_float: /head/*",
        "3 nodes: no INT8 kernel on this target",
        "9d" * 32,
        "The second core was busy",
        "269 initializers",
        "optimc build resnet56.yaml -o out --verify full",
    ):
        assert text in words
    failed = Page(to_html(failed_report())).words("style", "script")
    assert "not measured: --no-measure" in failed
    assert "the worker died by SIGSEGV" in failed


def test_both_colour_schemes_print_and_reduced_motion_are_served() -> None:
    style = "".join(text for tag, text in Page(to_html(example_report())).text if tag == "style")
    for query in ("prefers-color-scheme: dark", "@media print", "prefers-reduced-motion"):
        assert query in style


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_are_shown_and_inject_nothing(name: str) -> None:
    text = to_html(hostile_report(name))
    page, plain = Page(text), Page(to_html(hostile_report("plain")))
    assert page.outside_pictures() == plain.outside_pictures()
    drawn = {"svg", "title", "desc", "g", "rect", "path", "circle", "text"}
    assert {tag for tag, _ in page.elements} - {tag for tag, _ in plain.elements} <= drawn
    assert len(page.of("svg")) == len(plain.of("svg"))
    shown = " ".join(one_line(name).split())
    assert f"Mind: {shown}".strip() in page.words("style", "script")
    assert not re.search(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202e]", to_html(hostile_report(name))
    )


def test_a_report_with_nothing_measured_still_makes_a_page() -> None:
    report = failed_report()
    cells = tuple(cell for cell in report.results if cell.status != "built")
    none = Skipped(skipped="--no-measure")
    bare = report.model_copy(
        update={
            "results": cells,
            "gate": Gate(verdict="none", checks=()),
            "noise_floor": none,
            "source": report.source.model_copy(update={"metrics": {}, "latency": none}),
        }
    )
    words = Page(to_html(bare)).words("style", "script")
    assert "No metric was measured" in words
    assert "No speed was measured" in words
    assert "No engine was built." in words
    assert "Noise floor: skipped: --no-measure" in words
    assert trade_chart(bare) is None


def test_the_table_of_the_trade_off_has_each_cell_once_and_the_front_of_the_best() -> None:
    trade = trade_chart(example_report())
    assert trade is not None
    assert sorted(row.name for row in trade.rows) == sorted(
        ["source", "fp32/ort", "fp32/ov", "fp16/ort", "int8/ort", "int8/ov"]
    )
    assert [row.name for row in trade.rows if row.on_front] == ["int8/ort", "fp32/ort"]


def test_an_error_metric_turns_the_front_over() -> None:
    report = example_report()
    cells = tuple(
        cell.model_copy(
            update={
                "metrics": {
                    name: metric.model_copy(update={"better": "lower"})
                    for name, metric in cell.metrics.items()
                }
            }
        )
        if not isinstance(cell.metrics, Skipped)
        else cell
        for cell in report.results
    )
    trade = trade_chart(report.model_copy(update={"results": cells}))
    assert trade is not None
    assert [row.name for row in trade.rows if row.on_front] == ["int8/ort", "int8/ov"]


@every_report
def test_every_picture_is_told_to_screen_readers_and_has_its_figures_in_words(
    report: Report,
) -> None:
    page = Page(to_html(report))
    pictures = page.of("svg")
    assert len(pictures) >= 3
    for picture in pictures:
        assert picture["role"] == "img"
        assert picture["aria-labelledby"]
    assert {tag for tag, _ in page.elements}.isdisjoint({"defs", "image", "foreignobject"})


def test_the_ranges_of_what_ships_are_told() -> None:
    words = Page(to_html(example_report())).words("style", "script")
    assert "What the quantized tensors of int8/ort can hold" in words
    assert "/conv1/Conv_output_0activationuint802.561" in words.replace(" ", "")


def test_worst_samples_are_shown_with_their_inputs() -> None:
    page = Page(to_html(example_report()))
    assert "evaluation.npz[4711] a picture of a frog" in page.words("style", "script")
    assert len(page.of("img")) == 1
    assert page.of("img")[0]["alt"]


def test_equal_reports_give_equal_pages() -> None:
    assert to_html(example_report()) == to_html(example_report())


def test_the_layers_stand_by_the_sources_names_the_slowest_first() -> None:
    words = Page(to_html(example_report())).words("style", "script")
    assert "Time and precision of each layer" in words
    assert "/conv1/Conv 0.300 42.9 % int8" in words
    assert "0.900 45 % float32" in words
    assert "input_quantized added" in words
    bare = example_report().model_copy(update={"profiles": Skipped(skipped="--no-measure")})
    assert "Not measured: --no-measure." in Page(to_html(bare)).words("style", "script")
