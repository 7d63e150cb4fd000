"""``junit.xml``: each cell and each check of the gate as a test case, for build servers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from optimc.report.escape import one_line
from optimc.report.verdict import check_message, check_title, headline

if TYPE_CHECKING:
    from optimc.report.schema import Cell, Check, Report


def to_junit(report: Report) -> str:
    """The XML text. It holds a failure or an error exactly where the exit code is not 0."""
    root = ET.Element("testsuites", name="optimc")
    cells = _suite(root, "cells", report)
    for cell in report.results:
        _cell(cells, cell)
    if report.interrupted:
        case = ET.SubElement(cells, "testcase", classname="optimc.cells", name="build", time="0")
        ET.SubElement(case, "error", type="interrupted", message=headline(report).sentence)
    if report.gate.verdict != "none":
        gate = _suite(root, "gate", report)
        for check in report.gate.checks:
            _check(gate, check)
        _verdict(gate, report)
    for suite in root:
        _totals(suite)
    _totals(root)
    ET.indent(root)
    text: str = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _suite(root: ET.Element, name: str, report: Report) -> ET.Element:
    stamp = report.created.removesuffix("Z")
    return ET.SubElement(root, "testsuite", name=f"optimc.{name}", timestamp=stamp)


def _cell(suite: ET.Element, cell: Cell) -> None:
    seconds = sum(step.seconds for step in cell.passes)
    case = _case(suite, "optimc.cells", cell.name, seconds)
    reason = one_line(cell.reason or "")
    if cell.status == "failed":
        ET.SubElement(case, "error", type="failed", message=reason)
    elif cell.status != "built":
        ET.SubElement(case, "skipped", message=f"{cell.status}: {reason}")


def _check(suite: ET.Element, check: Check) -> None:
    case = _case(suite, "optimc.gate", f"{check.cell}: {check_title(check)}", 0.0)
    message = one_line(check_message(check))
    if not check.required and check.verdict != "passed":
        note = "the gate's verdict does not hang on this cell"
        ET.SubElement(case, "skipped", message=f"{note}: {message}")
    elif check.verdict != "passed":
        ET.SubElement(case, "failure", type=check.verdict, message=message)


def _verdict(suite: ET.Element, report: Report) -> None:
    """The gate as a whole: it may fail although no single check does (`ship: best`)."""
    verdict = report.gate.verdict
    case = _case(suite, "optimc.gate", "verdict", 0.0)
    if verdict != "passed":
        ET.SubElement(case, "failure", type=verdict, message=f"gate {verdict}")


def _case(suite: ET.Element, group: str, name: str, seconds: float) -> ET.Element:
    time = f"{seconds:.3f}"
    return ET.SubElement(suite, "testcase", classname=group, name=one_line(name), time=time)


def _totals(element: ET.Element) -> None:
    for name, tag in (
        ("tests", "testcase"),
        ("failures", "failure"),
        ("errors", "error"),
        ("skipped", "skipped"),
    ):
        if (element.tag, name) != ("testsuites", "skipped"):  # Jenkins' schema has it there not
            element.set(name, str(sum(1 for _ in element.iter(tag))))
    element.set("time", f"{sum(float(c.get('time', 0)) for c in element.iter('testcase')):.3f}")
