from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from optimc.core.errors import ExitCode
from optimc.report.rows import cell_verdict, rows
from optimc.report.schema import Check, Gate
from optimc.report.values import Skipped
from optimc.report.verdict import check_message, exit_code, headline, margin, shipped
from optimc.testing.example_report import example_report, failed_report, undecided_report

if TYPE_CHECKING:
    from optimc.report.schema import Report

NO_GATE = Gate(verdict="none", checks=())
NO_CELL = Gate(verdict="failed", ship="best", checks=())


def _with(report: Report, **changes: object) -> Report:
    return report.model_copy(update=changes)


@pytest.mark.parametrize(
    ("report", "code", "title"),
    [
        (example_report(), ExitCode.OK, "Gate passed"),
        (undecided_report(), ExitCode.GATE_UNDECIDED, "Gate undecided"),
        (_with(example_report(), gate=NO_CELL, best=None), ExitCode.GATE_FAILED, "Gate failed"),
        (_with(example_report(), gate=NO_GATE, best=None), ExitCode.OK, "Built, no gate"),
        (failed_report(), ExitCode.CELL, "1 of 7 cells failed"),
        (_with(failed_report(), gate=NO_GATE), ExitCode.CELL, "1 of 7 cells failed"),
        (_with(failed_report(), interrupted=True), ExitCode.INTERRUPTED, "Interrupted"),
    ],
)
def test_the_headline_agrees_with_the_exit_code(report: Report, code: ExitCode, title: str) -> None:
    assert exit_code(report) == code
    assert headline(report).title == title
    assert (headline(report).tone in ("good", "plain")) == (code == ExitCode.OK)
    assert headline(report).sentence.endswith(".")


def test_the_headline_says_what_ships_and_why() -> None:
    assert headline(example_report()).sentence == (
        "int8/ort, the best of 5, ships: top1 drop 0.0008 ± 0.0014 (limit 0.003), "
        "speed-up 2.251 ± 0.025× (at least 1.8× needed)."
    )
    assert headline(undecided_report()).sentence == (
        "int8/ov undecided: top1 drop 0.004 ± 0.003, limit 0.005, n=500; "
        "about 4,500 samples would decide."
    )
    assert headline(failed_report()).sentence == (
        "int8/trt: the worker died by SIGSEGV while it built the engine. The gate failed, too."
    )


def test_only_what_the_gate_lets_out_ships() -> None:
    assert [cell.name for cell in shipped(example_report())] == ["int8/ort"]
    assert shipped(undecided_report()) == ()
    named = example_report().gate.model_copy(update={"ship": "int8/*"})
    report = _with(example_report(), gate=named, best=None)
    assert [cell.name for cell in shipped(report)] == ["int8/ort"]


def _check(**changes: object) -> Check:
    base = undecided_report().gate.checks[1]
    return base.model_copy(update=changes)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            _check(),
            "int8/ov undecided: top1 drop 0.004 ± 0.003, limit 0.005, n=500; "
            "about 4,500 samples would decide",
        ),
        (
            _check(samples_to_decide=Skipped(skipped="no sample size would decide it")),
            "int8/ov undecided: top1 drop 0.004 ± 0.003, limit 0.005, n=500; "
            "no sample size would decide it",
        ),
        (
            _check(verdict="passed", value=0.001, ci95=(0.0, 0.002)),
            "int8/ov passed: top1 drop 0.001 ± 0.001, limit 0.005, n=500; margin 0.003",
        ),
        (
            _check(verdict="failed", value=0.009, ci95=(0.006, 0.02)),
            "int8/ov failed: top1 drop 0.009 [0.006, 0.020], limit 0.005, n=500",
        ),
        (
            _check(verdict="failed", value=Skipped(skipped="no labels")),
            "int8/ov failed: top1 drop was not measured (no labels), limit 0.005",
        ),
        (
            _check(
                name="speedup",
                bound="at_least",
                limit=1.8,
                value=1.8,
                ci95=(1.7, 1.9),
                samples=5,
                samples_to_decide=12,
            ),
            "int8/ov undecided: speed-up 1.8 ± 0.1×, at least 1.8× needed, 5 session pairs; "
            "about 12 session pairs would decide",
        ),
        (
            _check(
                name="latency_ms.p99",
                limit=100.0,
                verdict="passed",
                value=12.34,
                ci95=(12.1, 13.9),
                samples=600,
            ),
            "int8/ov passed: p99 12.34 ms [12.10, 13.90], limit 100 ms, 600 runs; margin 86 ms",
        ),
        (
            _check(name="metrics.top1", bound="at_least", limit=0.9, samples_to_decide=None),
            "int8/ov undecided: top1 0.004 ± 0.003, at least 0.9 needed, n=500",
        ),
        (
            _check(
                name="size_mb",
                limit=50.0,
                verdict="passed",
                value=0.93481,
                ci95=Skipped(skipped="a size has no interval"),
                samples=Skipped(skipped="a size has no samples"),
            ),
            "int8/ov passed: size 0.9348 MB, limit 50 MB; margin 49 MB",
        ),
    ],
)
def test_a_check_says_what_where_and_what_would_decide(check: Check, message: str) -> None:
    assert check_message(check) == message


def test_the_margin_counts_from_the_worse_end() -> None:
    drop, speed = example_report().gate.checks[:2]
    assert margin(drop) == pytest.approx(0.003 - 0.0022, abs=1e-12)
    assert margin(speed) == pytest.approx(2.226 - 1.8, abs=1e-12)
    assert margin(_check(value=Skipped(skipped="no labels"))) is None


def test_a_cell_takes_the_worst_of_its_checks() -> None:
    report = example_report()
    verdicts = {cell.name: cell_verdict(report, cell) for cell in report.results}
    assert verdicts["int8/ort"] == "ships"
    assert verdicts["int8/ov"] == "undecided"
    assert verdicts["fp32/ort"] == "not met"  # a candidate of `best` fails nothing
    assert verdicts["fp32/ov"] == "–"
    failed = failed_report()
    assert {cell.name: cell_verdict(failed, cell) for cell in failed.results}["int8/ov"] == "failed"


def test_a_figure_that_was_not_measured_reads_skipped_and_of_no_cell_a_dash() -> None:
    report = example_report()
    none = Skipped(skipped="--no-measure")
    cell = report.results[0].model_copy(update={"metrics": none, "latency": none, "speedup": none})
    shown = rows(_with(report, results=(cell, *report.results[1:])))
    assert (shown[0].metric, shown[0].drop, shown[0].p50, shown[0].speedup) == ("skipped",) * 4
    assert (shown[5].status, shown[5].metric, shown[5].size) == ("deferred", "–", "–")
    assert (shown[3].size, shown[3].int8, shown[3].p50) == ("935 kB", "94.6 %", "1.78")
