"""The cell that was chosen is judged by figures that had no part in the choice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from optimc.measure.latency import Latency
from optimc.measure.statistics import Interval, Percentile
from optimc.pipeline.assemble import CellResult, figures_of
from optimc.pipeline.confirmation import confirmed
from optimc.pipeline.gate import judge
from optimc.pipeline.recipe.schema import Gate
from optimc.pipeline.timing import CellTiming


def interval(point: float) -> Interval:
    ends = (point * 0.99, point * 1.01)
    return Interval(point, ends, *ends, 12, "test")


def timing(speed: float) -> CellTiming:
    percentile = Percentile(1.0, (0.9, 1.1), 600)
    latency = Latency(percentile, percentile, percentile, 600, (1.0, 1.0), 1.0)
    return CellTiming(latency, interval(speed), interval(speed))


def results(**speeds: float) -> dict[str, CellResult]:
    found = {}
    for variant, speed in speeds.items():
        target = SimpleNamespace(threads=1)
        cell = SimpleNamespace(
            name=f"{variant}/ort", variant=variant, target_name="ort", target=target
        )
        found[cell.name] = CellResult(cell, cases={"batch=1": timing(speed)})
    return found


def choose(gate: Gate, cells: dict[str, CellResult], again):
    judged = judge(gate, [figures_of(result) for result in cells.values()])
    return confirmed(gate, judged, cells, again)


def test_the_choice_is_measured_again_and_judged_by_that():
    gate, cells = Gate(speedup=1.5), results(int8=2.0, fp16=1.8)
    found, confirmation = choose(gate, cells, lambda result: {"batch=1": timing(1.9)})
    assert found.gate.verdict == "passed"
    assert found.best is not None
    assert found.best.name == "int8/ort"
    assert confirmation is not None
    assert (confirmation.variant, confirmation.target) == ("int8", "ort")
    (check,) = [check for check in found.gate.checks if check.cell == "int8/ort"]
    assert check.value == 1.9
    assert {check.cell for check in found.gate.checks} == {"int8/ort", "fp16/ort"}


def test_a_lucky_choice_does_not_ship():
    gate, cells = Gate(speedup=1.5), results(int8=2.0, fp16=1.8)
    found, confirmation = choose(gate, cells, lambda result: {"batch=1": timing(1.2)})
    assert found.gate.verdict == "failed"
    assert found.best is None
    assert confirmation is not None


def test_what_could_not_be_measured_again_is_undecided():
    gate, cells = Gate(speedup=1.5), results(int8=2.0, fp16=1.8)
    found, confirmation = choose(gate, cells, lambda result: "the worker died")
    assert found.gate.verdict == "undecided"
    assert found.best is None
    assert confirmation is None
    assert "the worker died" in str(found.gate.checks[0].value)


@pytest.mark.parametrize(
    "gate", [None, Gate(ship="int8/ort", speedup=1.5), Gate(ship="best", speedup=9.0)]
)
def test_nothing_is_measured_where_nothing_was_chosen(gate):
    def fail(result: CellResult):
        raise AssertionError("measured again")

    found, confirmation = choose(gate, results(int8=2.0, fp16=1.8), fail)
    assert confirmation is None
    assert found.best is None


def test_one_candidate_is_no_choice():
    def fail(result: CellResult):
        raise AssertionError("measured again")

    found, confirmation = choose(Gate(speedup=1.5), results(int8=2.0), fail)
    assert found.best is not None
    assert confirmation is None
