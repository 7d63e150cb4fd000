"""The views of a gate: terminal, Markdown step summary, JUnit, and GitHub's annotations."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from optimc.report import figures
from optimc.report.escape import log_line, log_text, markdown_code, markdown_text, one_line
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from optimc.report.regression import RegressionCheck, RegressionReport
    from optimc.report.values import Measured

WIDTH = 99
MARKS = {"passed": "✅", "failed": "❌", "undecided": "⚠️"}
_ASCII = str.maketrans({"±": "+-", figures.MINUS: "-", figures.TIMES: "x", "∞": "inf"})
_PERCENT = ("slowdown", "size_growth", "memory_growth")
_UNITS = {
    "latency_ms": " ms",
    "size_mb": " MB",
    "memory_mb": " MB",
    "throughput_per_s": " per s",
}
_NAMES = {
    "slowdown": "slowdown",
    "size_mb": "size",
    "size_growth": "size growth",
    "memory_mb": "peak memory",
    "memory_growth": "memory growth",
    "throughput_per_s": "throughput",
    "recipe_gate": "the recipe's gate",
    "built": "built",
}


def check_name(check: RegressionCheck) -> str:
    """In words: ``top1 drop``, ``slowdown``, ``p99``."""
    kind, _, which = check.name.partition(".")
    if kind == "drop":
        return f"{which} drop"
    if kind in ("metrics", "latency_ms"):
        return which
    return _NAMES.get(check.name, check.name)


def value_text(check: RegressionCheck, *, plain: bool = False) -> str:
    """The value with its interval, or that it was not measured."""
    if isinstance(check.value, Skipped):
        return "-" if check.name in ("recipe_gate", "built") else "not measured"
    factor, unit = _scale(check)
    ends = check.ci95
    if not isinstance(ends, Skipped):
        ends = (factor * ends[0], factor * ends[1])
    text = figures.estimate(factor * check.value, ends, unit)
    return text.translate(_ASCII) if plain else text


def limit_text(check: RegressionCheck) -> str:
    """``at most 2 %``."""
    if isinstance(check.limit, Skipped):
        return "-"
    factor, unit = _scale(check)
    word = "at most" if check.bound == "at_most" else "at least"
    return f"{word} {figures.trimmed(factor * check.limit, 6)}{unit}"


def _scale(check: RegressionCheck) -> tuple[float, str]:
    if check.name in _PERCENT:
        return 100.0, " %"
    return 1.0, _UNITS.get(check.name.partition(".")[0], "")


def sentence(check: RegressionCheck) -> str:
    """What a check found, on one line."""
    cells = check.cell if check.cell == check.against else f"{check.cell} against {check.against}"
    parts = [f"{cells}: {check_name(check)} {check.verdict}"]
    if isinstance(check.value, Skipped):
        parts.append(_reason(check))
    else:
        own = _own(check)
        parts.append(f"{value_text(check)}, {limit_text(check)}{f' ({own})' if own else ''}")
    if check.decides is not None:
        parts.append(f"would decide: {check.decides}")
    return "; ".join(parts)


def _reason(check: RegressionCheck) -> str:
    if check.name in ("recipe_gate", "built"):
        return check.method
    return f"not measured: {check.value.skipped}" if isinstance(check.value, Skipped) else ""


def _own(check: RegressionCheck) -> str:
    """``1.2 ms now, 1.1 ms before``; empty where one was not measured."""
    if isinstance(check.candidate, Skipped) or isinstance(check.baseline, Skipped):
        return ""
    kind = check.name.partition(".")[0]
    unit = {"slowdown": " ms", "size_growth": " MB", "memory_growth": " MB"}.get(kind, "")
    unit = unit or _UNITS.get(kind, "")
    shown = figures.metric if kind in ("drop", "metrics") else figures.number
    return f"{shown(check.candidate)}{unit} now, {shown(check.baseline)}{unit} before"


def headline(report: RegressionReport) -> str:
    """The verdict in one sentence."""
    to_blame = [check for check in report.checks if check.verdict == report.verdict]
    if report.verdict == "passed":
        return f"Gate passed: {figures.count(len(report.checks), 'limit')} met."
    if not to_blame:
        return f"Gate {report.verdict}: nothing was asked."
    more = f" (and {len(to_blame) - 1} more)" if len(to_blame) > 1 else ""
    return f"Gate {report.verdict}: {sentence(to_blame[0])}{more}."


def to_terminal(report: RegressionReport) -> str:
    """Plain text within 100 columns, the verdict last; safe in a build server's log."""
    conditions = [
        ("candidate", report.candidate.path),
        ("baseline", report.baseline.path),
        ("policy", _text(report.policy.path)),
        ("timed", _timed(report)),
    ]
    found: list[tuple[str, str]] = [(check.verdict, sentence(check)) for check in report.checks]
    if not report.remeasured:
        found += [("differs", difference) for difference in report.differences]
    found += [("note", note) for note in report.notes]
    lines = [
        *(line for label, text in conditions for line in _entry(label, text)),
        "",
        *(line for label, text in found for line in _entry(label, text)),
        "",
        *textwrap.wrap(log_text(headline(report)).translate(_ASCII), WIDTH),
    ]
    return "\n".join(map(log_line, lines)) + "\n"


def _entry(label: str, text: str) -> list[str]:
    """A label in a column of its own; what does not fit hangs under the text."""
    shown = f"{label:<10} {log_text(text)}".translate(_ASCII)
    return textwrap.wrap(shown, WIDTH, subsequent_indent=" " * 11)


def _timed(report: RegressionReport) -> str:
    if not report.remeasured:
        return "not here (--remeasure)" if report.differences else "as the reports say"
    floor = report.noise_floor
    text = f"here, side by side, {figures.seconds(report.seconds)}"
    if isinstance(floor, Skipped):
        return text
    shown = figures.bracketed(floor.value, floor.ci95, figures.TIMES)
    return f"{text}; noise floor {shown}, the baseline against itself"


def _text(value: str | Skipped) -> str:
    return log_text(value.skipped if isinstance(value, Skipped) else value)


def to_step_summary(report: RegressionReport) -> str:
    """GitHub's Markdown: verdict, table of checks, conditions."""
    lines = [
        f"## {MARKS[report.verdict]} optimc gate: {report.verdict}",
        "",
        markdown_text(headline(report)),
        "",
        "| | cell | limit | found | now | before | allowed |",
        "| --- | --- | --- | --: | --: | --: | --: |",
    ]
    for check in report.checks:
        cells = (
            MARKS[check.verdict],
            markdown_code(check.cell),
            markdown_text(check_name(check)),
            markdown_text(value_text(check)),
            _figure(check.candidate),
            _figure(check.baseline),
            markdown_text(limit_text(check)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    open_checks = [check for check in report.checks if check.decides is not None]
    if open_checks:
        lines += ["", "What would decide it:", ""]
        lines += [
            f"- {markdown_text(check_name(check))}: {markdown_text(check.decides or '')}"
            for check in open_checks
        ]
    lines += ["", f"- candidate {markdown_code(report.candidate.path)}"]
    lines += [f"- baseline {markdown_code(report.baseline.path)}"]
    lines += [f"- policy {markdown_text(_text(report.policy.path))}"]
    lines += [f"- timed {markdown_text(_timed(report))}"]
    lines += [f"- differs: {markdown_text(one)}" for one in report.differences]
    lines += [f"- {markdown_text(note)}" for note in report.notes]
    return "\n".join(lines) + "\n"


def _figure(value: Measured) -> str:
    return "" if isinstance(value, Skipped) else figures.trimmed(value, 4)


def to_junit(report: RegressionReport) -> str:
    """The XML text, with a failure exactly where the exit code is not 0."""
    root = ET.Element("testsuites", name="optimc")
    stamp = report.created.removesuffix("Z")
    suite = ET.SubElement(root, "testsuite", name="optimc.regression", timestamp=stamp)
    for check in report.checks:
        name = f"{check.cell}: {check_name(check)}"
        case = _case(suite, name)
        if check.verdict != "passed":
            message = one_line(sentence(check))
            ET.SubElement(case, "failure", type=check.verdict, message=message)
    verdict = _case(suite, "verdict")
    if report.verdict != "passed":
        ET.SubElement(verdict, "failure", type=report.verdict, message=one_line(headline(report)))
    for element in (suite, root):
        element.set("tests", str(sum(1 for _ in element.iter("testcase"))))
        element.set("failures", str(sum(1 for _ in element.iter("failure"))))
        element.set("errors", "0")
        element.set("time", "0.000")
    ET.indent(root)
    text: str = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _case(suite: ET.Element, name: str) -> ET.Element:
    return ET.SubElement(
        suite, "testcase", classname="optimc.regression", name=one_line(name), time="0.000"
    )


def to_annotations(report: RegressionReport) -> str:
    """Workflow commands for GitHub Actions, one line for each limit that was not met.

    Source: GitHub's toolkit, packages/core/src/command.ts, for what is escaped and how.
    """
    lines = []
    for check in report.checks:
        if check.verdict != "passed":
            level = "error" if check.verdict == "failed" else "warning"
            title = _property(f"optimc gate: {check_name(check)} {check.verdict}")
            lines.append(f"::{level} title={title}::{_message(sentence(check))}")
    return "".join(f"{line}\n" for line in lines)


def _message(text: str) -> str:
    return one_line(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
