from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from optimc.report.rows import case_text
from optimc.report.schema import Report, Speedup
from optimc.report.terminal import print_summary, render_summary
from optimc.report.values import Skipped
from optimc.testing.example_report import (
    HOSTILE_NAMES,
    example_report,
    failed_report,
    hostile_report,
    undecided_report,
)

FILES = (Path("out/report.json"), Path("out/report.html"))
REPORTS = {
    "passed": example_report(),
    "undecided": undecided_report(),
    "failed": failed_report(),
    **{f"hostile {index}": hostile_report(name) for index, name in enumerate(HOSTILE_NAMES)},
    "long": hostile_report("a_very_long_name_" * 20),
}
every_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@every_report
def test_no_line_is_wider_than_100_columns_or_a_command_to_a_build_server(report: Report) -> None:
    text = render_summary(report, FILES)
    for line in text.split("\n"):
        assert len(line) <= 100
        assert line == line.rstrip()
        assert not line.lstrip().startswith("::")
        assert not re.search(r"##\w*\[", line)
    assert text.replace("\n", "").isprintable()


def test_the_verdict_comes_last() -> None:
    last = render_summary(undecided_report(), FILES).rstrip().split("\n\n")[-1]
    assert " ".join(last.split()) == (
        "Gate undecided. int8/ov undecided: top1 drop 0.004 ± 0.003, limit 0.005, n=500; "
        "about 4,500 samples would decide."
    )
    last = render_summary(failed_report(), FILES).rstrip().split("\n\n")[-1]
    assert last.startswith("1 of 7 cells failed. int8/trt: the worker died by SIGSEGV")


def test_it_tells_cells_reasons_checks_warnings_and_files() -> None:
    text = " ".join(render_summary(failed_report(), FILES).split())
    for words in (
        "int8/ort 0.8845 0.0008 ± 0.0014 1.78 2.251 ± 0.025× 935 kB 94.6 % passed",
        "int8/trt – – – – – – failed",
        "p50 of batch=1; noise floor 1.001× [0.992, 1.010]",
        "rolled back 5 cells: pass fuse: max abs error 0.31 on probe 2 (batch 64)",
        "not measured 5 cells: latency.p99_ms: needs 500 runs, 212 were made",
        "gate int8/ov failed: speed-up was not measured (--no-measure), at least 1.8× needed",
        "mind The second core was busy",
        "files report.json, report.html in out",
    ):
        assert words in text


@pytest.mark.parametrize("width", [60, 100])
def test_lopsided_intervals_are_shown_by_their_ends(width: int) -> None:
    report = example_report()
    cell = report.results[3]
    assert isinstance(cell.speedup, Speedup)
    wide = cell.speedup.model_copy(update={"value": 5.2, "ci95": (4.9, 7.8)})
    changed = cell.model_copy(update={"speedup": wide})
    text = render_summary(report.model_copy(update={"results": (changed,)}), width=width)
    rows = [line for line in text.split("\n") if "5.2×" in line or "[4.9, 7.8]" in line]
    assert len(rows) >= 2
    assert "5.2 ±" not in text
    assert max(map(len, text.split("\n"))) <= width


def test_latencies_on_the_evaluation_data_are_called_so() -> None:
    cell = example_report().results[3]
    assert not isinstance(cell.latency, Skipped)
    drawn = cell.latency[0].model_copy(update={"case": {}, "inputs": "data"})
    assert case_text(drawn) == "evaluation data"
    assert case_text(drawn.model_copy(update={"inputs": "seeded"})) == "fixed shapes"
    assert case_text(cell.latency[0]) == "batch=1"


def test_a_long_list_of_findings_is_cut_and_says_so() -> None:
    report = example_report()
    reasons = tuple(f"reason {index}" for index in range(40))
    cell = report.results[0].model_copy(update={"unverified": reasons})
    text = render_summary(report.model_copy(update={"results": (cell, *report.results[1:])}))
    assert re.search(r"and \d+ more: see the report", text)
    assert len(text.split("\n")) < 60


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(stream: io.StringIO) -> str:
        print_summary(example_report(), FILES, stream)
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = shown(Terminal())
    assert "\x1b[" in colored
    assert "\x1b[" not in shown(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(Terminal())
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", colored).split() == plain.split()


def test_colour_of_ours_is_the_only_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    text = render_summary(hostile_report("\x1b[2J\x9b2J"), FILES, color=True)
    assert set(re.findall(r"\x1b.[\d;]*(.)", text)) == {"m"}
    assert "\x9b" not in text


def test_a_narrow_encoding_gets_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp437", newline="")
    print_summary(hostile_report("模型"), FILES, stream)
    stream.seek(0)
    text = stream.read()
    assert text.isascii()
    assert "2.251 +- 0.025x" in text
    assert "\\u6a21\\u578b" in text


@pytest.mark.parametrize("width", [40, 80, 99, 100, 250])
def test_it_fits_a_narrow_terminal_and_never_passes_100(width: int) -> None:
    lines = render_summary(example_report(), FILES, width=width).split("\n")
    assert max(map(len, lines)) <= min(width, 100)
