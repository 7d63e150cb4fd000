from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from optimc.core.errors import ExitCode
from optimc.report.junit import to_junit
from optimc.report.schema import Gate, Report
from optimc.report.verdict import exit_code
from optimc.testing.example_report import (
    HOSTILE_NAMES,
    example_report,
    failed_report,
    hostile_report,
    undecided_report,
)
from optimc.testing.junit_format import check_junit

NO_CELL = Gate(verdict="failed", ship="best", checks=())
REPORTS = {
    "passed": example_report(),
    "undecided": undecided_report(),
    "failed cell": failed_report(),
    "failed gate": example_report().model_copy(update={"gate": NO_CELL, "best": None}),
    "interrupted": example_report().model_copy(update={"interrupted": True}),
}


def _case(report: Report, name: str) -> ET.Element:
    cases = {case.get("name"): case for case in ET.fromstring(to_junit(report)).iter("testcase")}
    return cases[name]


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_it_is_red_exactly_where_the_exit_code_is_not_0(report: Report) -> None:
    root = check_junit(to_junit(report))
    red = len(list(root.iter("failure"))) + len(list(root.iter("error")))
    assert (red > 0) == (exit_code(report) != ExitCode.OK)


def test_the_totals_are_those_of_the_cases() -> None:
    root = ET.fromstring(to_junit(failed_report()))
    for element in (root, *root):
        for name, tag in (
            ("tests", "testcase"),
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            wanted = str(len(list(element.iter(tag))))
            assert element.get(name, wanted if element is root else None) == wanted
    assert root.get("tests") == "11"
    assert root.get("errors") == "1"


def test_a_cell_is_built_skipped_or_an_error_with_its_reason() -> None:
    report = failed_report()
    assert len(_case(report, "int8/ort")) == 0
    assert _case(report, "int8/ort").get("time") == "5.463"
    error = _case(report, "int8/trt").find("error")
    assert error is not None
    assert error.get("message") == "the worker died by SIGSEGV while it built the engine"
    skipped = _case(example_report(), "int8/trt").find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "deferred: no TensorRT here: finish the kit on its GPU"


def test_an_undecided_check_is_a_failure_that_says_what_would_decide() -> None:
    failure = _case(undecided_report(), "int8/ov: top1 drop").find("failure")
    assert failure is not None
    assert failure.get("type") == "undecided"
    assert (failure.get("message") or "").endswith("about 4,500 samples would decide")


def test_a_check_that_the_verdict_does_not_hang_on_fails_nothing() -> None:
    case = _case(example_report(), "fp32/ort: speed-up")
    assert [element.tag for element in case] == ["skipped"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_any_name_gives_valid_xml(name: str) -> None:
    root = check_junit(to_junit(hostile_report(name)))
    plain = ET.fromstring(to_junit(hostile_report("plain")).encode())
    assert [element.tag for element in root.iter()] == [element.tag for element in plain.iter()]
