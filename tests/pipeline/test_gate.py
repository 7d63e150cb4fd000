"""The gate decides from intervals: passed, failed, undecided, and what was not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimc.measure.statistics import Interval, Percentile
from optimc.pipeline.gate import CaseFigures, Figures, judge
from optimc.pipeline.recipe.schema import Gate


def _interval(point: float, half: float) -> Interval:
    ends = (point - half, point + half)
    return Interval(point, ends, *ends, 100, "test")


def _cell(
    variant: str = "int8",
    target: str = "ort",
    *,
    drop: Interval | str | None = None,
    speedup: Interval | str = "not measured",
    built: bool = True,
    size_mb: float = 1.0,
    p99: Percentile | str = "needs 500 runs",
) -> Figures:
    latency = {"p50": Percentile(1.0, (0.9, 1.1), 50), "p90": "needs 50 runs", "p99": p99}
    return Figures(
        variant=variant,
        target=target,
        built=built,
        drops={} if drop is None else {"top1": drop},
        cases={"batch=1": CaseFigures(speedup, latency)},
        size_mb=size_mb,
    )


@pytest.mark.parametrize(
    ("point", "half", "verdict"),
    [(0.001, 0.001, "passed"), (0.004, 0.003, "undecided"), (0.02, 0.005, "failed")],
)
def test_a_drop_is_judged_by_the_ends_of_its_interval(point, half, verdict) -> None:
    gate = Gate(ship="int8/ort", drop={"top1": 0.005})
    result = judge(gate, [_cell(drop=_interval(point, half))])
    assert result.gate.verdict == verdict
    assert result.gate.checks[0].verdict == verdict


def test_an_undecided_check_says_how_many_samples_would_decide() -> None:
    gate = Gate(ship="int8/ort", drop={"top1": 0.005})
    check = judge(gate, [_cell(drop=_interval(0.004, 0.003))]).gate.checks[0]
    assert check.samples_to_decide is not None
    assert check.samples_to_decide >= 500


@pytest.mark.parametrize(
    ("point", "verdict"), [(2.0, "passed"), (1.5, "undecided"), (1.2, "failed")]
)
def test_a_speedup_must_reach_its_limit(point, verdict) -> None:
    result = judge(Gate(ship="int8/ort", speedup=1.5), [_cell(speedup=_interval(point, 0.1))])
    assert result.gate.verdict == verdict


def test_a_limit_whose_value_was_not_measured_is_not_met() -> None:
    result = judge(Gate(ship="int8/ort", speedup=1.5), [_cell(speedup="measuring is off")])
    assert result.gate.verdict == "undecided"
    assert result.gate.checks[0].value.skipped == "measuring is off"  # type: ignore[union-attr]


def test_a_percentile_that_the_sample_does_not_support_is_not_met() -> None:
    gate = Gate(ship="int8/ort", latency_ms={"p99": 100.0})
    assert judge(gate, [_cell()]).gate.verdict == "undecided"
    decided = _cell(p99=Percentile(3.0, (2.9, 3.1), 600))
    assert judge(gate, [decided]).gate.verdict == "passed"


def test_best_takes_the_fastest_cell_that_meets_every_limit() -> None:
    cells = [
        _cell("fp32", drop=_interval(0.0, 0.001), speedup=_interval(1.0, 0.01)),
        _cell("int8", drop=_interval(0.001, 0.001), speedup=_interval(2.0, 0.01)),
        _cell("rough", drop=_interval(0.1, 0.01), speedup=_interval(9.0, 0.01)),
    ]
    result = judge(Gate(drop={"top1": 0.005}), cells)
    assert result.gate.verdict == "passed"
    assert result.best is not None
    assert result.best.name == "int8/ort"
    assert result.gate.candidates == 3
    required = {check.cell for check in result.gate.checks if check.required}
    assert required == {"int8/ort"}


def test_best_is_undecided_where_no_cell_passes_but_one_may() -> None:
    cells = [
        _cell("a", drop=_interval(0.004, 0.003)),
        _cell("b", drop=_interval(0.1, 0.01)),
    ]
    assert judge(Gate(drop={"top1": 0.005}), cells).gate.verdict == "undecided"
    assert judge(Gate(drop={"top1": 0.005}), cells[1:]).gate.verdict == "failed"


def test_patterns_ask_it_of_every_cell_they_name() -> None:
    cells = [
        _cell("int8", "ort", drop=_interval(0.0, 0.001)),
        _cell("int8", "ov", drop=_interval(0.1, 0.001)),
    ]
    assert judge(Gate(ship="int8/*", drop={"top1": 0.01}), cells).gate.verdict == "failed"
    assert judge(Gate(ship="int8/ort", drop={"top1": 0.01}), cells).gate.verdict == "passed"


def test_cells_that_were_not_built_are_not_judged_but_none_at_all_fails() -> None:
    gate = Gate(ship="int8/*", size_mb=5.0)
    cells = [_cell("int8", "ort"), _cell("int8", "trt", built=False)]
    assert judge(gate, cells).gate.verdict == "passed"
    assert judge(gate, cells[1:]).gate.verdict == "failed"


def test_without_a_gate_the_verdict_is_none() -> None:
    result = judge(None, [_cell()])
    assert result.gate.verdict == "none"
    assert result.best is None


def test_a_size_is_an_exact_figure() -> None:
    assert judge(Gate(ship="int8/ort", size_mb=0.5), [_cell(size_mb=0.6)]).gate.verdict == "failed"


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (_interval(900, 20), "passed"),
        (_interval(800, 90), "undecided"),
        (_interval(500, 9), "failed"),
        ("the worker died", "undecided"),
    ],
)
def test_throughput_is_judged_by_its_interval(value: Interval | str, verdict: str) -> None:
    cell = replace(_cell(), throughput_per_s=value)
    (check,) = judge(Gate(ship="int8/ort", throughput_per_s=850), [cell]).gate.checks
    assert check.name == "throughput_per_s"
    assert check.verdict == verdict
