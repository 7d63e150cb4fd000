from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from markdown_it import MarkdownIt

from optimc.report.markdown import to_markdown
from optimc.report.schema import Confirmation, Gate
from optimc.report.values import Skipped
from optimc.testing.example_report import (
    HOSTILE_NAMES,
    example_report,
    failed_report,
    hostile_report,
    undecided_report,
)

if TYPE_CHECKING:
    from pathlib import Path

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def test_the_markdown_is_the_golden(request: pytest.FixtureRequest, repository: Path) -> None:
    golden = repository / "tests" / "report" / "goldens" / "report.md"
    asked = request.config.getoption("--regenerate-goldens", default=False)
    if asked or os.environ.get("OPTIMC_REGENERATE_GOLDENS") == "1":
        golden.write_text(to_markdown(example_report()), encoding="utf-8")
    assert to_markdown(example_report()) == golden.read_text(encoding="utf-8")


def test_the_verdict_comes_first() -> None:
    assert to_markdown(example_report()).startswith("# ✅ Gate passed\n\nint8/ort, the best of 5")
    assert to_markdown(undecided_report()).startswith("# ⚠️ Gate undecided\n\nint8/ov undecided: ")
    assert to_markdown(failed_report()).startswith("# ❌ 1 of 7 cells failed\n\nint8/trt: ")


def test_every_cell_check_pass_and_reason_is_there() -> None:
    report = failed_report()
    text = to_markdown(report)
    for cell in report.results:
        assert f"\n| `{cell.variant}` | `{cell.target}` | {cell.status} |" in text
    for step in report.results[3].passes:
        assert f"| `int8/ort` | `{step.name}` | {step.verdict.replace('_', ' ')} |" in text
    for reason in (
        "the worker died by SIGSEGV while it built the engine",
        "max abs error 0.31 on probe 2",
        "too little memory for the reference",
        "needs 500 runs, 212 were made",
        "was not measured (--no-measure)",
        "no INT8 kernel on this target",
    ):
        assert reason in text
    assert "    optimc build resnet56.yaml -o out --verify full" in text


def test_what_report_html_measures_stands_here_too() -> None:
    """Throughput, cold start, memory, both speed-ups, latencies with their intervals."""
    text = to_markdown(example_report())
    assert (
        "| `int8/ort` | 2.251× [2.226, 2.276] | 2.251× [2.226, 2.276] "
        "| 561 [550, 573], 2 streams, batch 1 | 31.4 | 36.1 | 58.2 | 61.8 |"
    ) in text
    assert (
        "| `int8/ort` | batch=1 | 1.781 [1.763, 1.817] | 1.888 [1.852, 1.941] | skipped "
        "| 212 | 5 | seeded | 1 |"
    ) in text
    assert "| `source` | batch=1 | 4.012 [3.972, 4.092] |" in text
    assert "| 10,000 | 99.3 % | 31 / 23 | 0.340 |" in text
    assert "| `int8/ort` | top1 | `evaluation.npz[4711]` | a picture of a frog | 1 | 0 |" in text
    assert "| `int8/ov` | 94.6 % | f32 | 27.9 dB | lossy | 1 |" in text
    assert "- inputs: input float32 \\[batch, 3, 32, 32\\]" in text


def test_the_sections_come_in_the_order_of_the_page() -> None:
    text = to_markdown(example_report())
    titles = re.findall(r"^## (.*)$|<summary><b>(.*?)</b>", text, re.M)
    assert ["".join(title) for title in titles] == [
        "Gate",
        "Cells",
        "Accuracy",
        "Speed and memory",
        "Latency",
        "Conditions",
        "What really runs in INT8",
        "Rolled back, skipped, unverified",
        "`int8/ort` from pass to pass",
        "Passes",
        "Slowest layers",
        "Origin",
    ]  # fmt: skip


def test_what_was_measured_again_is_told() -> None:
    report = example_report()
    assert "Measured again" not in to_markdown(report)
    cell = report.results[3]
    assert not isinstance(cell.speedup, Skipped)
    assert not isinstance(cell.latency, Skipped)
    again = Confirmation(
        variant=cell.variant,
        target=cell.target,
        speedup=cell.speedup.model_copy(update={"value": 2.2}),
        latency=cell.latency[0],
    )
    text = to_markdown(report.model_copy(update={"confirmation": again}))
    assert "`int8/ort`, speed-up 2.200× [2.226, 2.276], p50 ms 1.781 [1.763, 1.817]." in text


def test_nothing_measured_makes_no_empty_table() -> None:
    none = Skipped(skipped="--no-measure")
    report = example_report()
    cells = tuple(cell for cell in report.results if cell.status != "built")
    source = report.source.model_copy(update={"latency": none})
    text = to_markdown(report.model_copy(update={"results": cells, "source": source}))
    for title in ("Accuracy", "Speed and memory", "Latency", "What really runs in INT8"):
        assert title not in text


def test_no_gate_makes_no_section() -> None:
    report = example_report().model_copy(
        update={"gate": Gate(verdict="none", checks=()), "best": None}
    )
    assert "## Gate" not in to_markdown(report)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_inject_nothing(name: str) -> None:
    page = PARSER.render(to_markdown(hostile_report(name)))
    plain = PARSER.render(to_markdown(hostile_report("plain")))
    assert set(re.findall(r"<(\w+)", page)) <= set(re.findall(r"<(\w+)", plain))
    assert _shape(page) == _shape(plain)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)


def _shape(page: str) -> list[tuple[int, int]]:
    """Rows and cells of each table, then headings and items."""
    tables = re.findall(r"<table>.*?</table>", page, re.S)
    shape = [(table.count("<tr>"), len(re.findall("<t[dh]", table))) for table in tables]
    return [*shape, (len(re.findall("<h[1-6]>", page)), page.count("<li>"))]
