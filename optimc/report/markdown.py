"""``report.md``: the report for a pull request or a step summary, in GitHub's Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.report import figures
from optimc.report.escape import markdown_code as code
from optimc.report.escape import markdown_text as text
from optimc.report.escape import one_line
from optimc.report.findings import findings, refusal_groups
from optimc.report.layers import layer_table
from optimc.report.markdown_figures import (
    accuracy,
    condition_lines,
    folded,
    int8,
    measured_again,
    speed,
    table,
)
from optimc.report.rows import SKIPPED, first_case, primary_metric, rows
from optimc.report.step_rows import HEADER, step_rows
from optimc.report.values import Skipped
from optimc.report.verdict import check_message, headline

if TYPE_CHECKING:
    from optimc.report.schema import Cell, PassReport, Report

MARKS = {"good": "✅", "bad": "❌", "open": "⚠️", "plain": "◻️"}


_MOST_LAYERS = 10


def to_markdown(report: Report) -> str:
    """The whole report, in the order of report.html."""
    sections = (
        _verdict(report),
        _checks(report),
        _cells(report),
        accuracy(report),
        speed(report),
        measured_again(report),
        condition_lines(report),
        int8(report),
        _findings(report),
        _steps(report),
        _passes(report),
        _layers(report),
        _origin(report),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _verdict(report: Report) -> list[str]:
    head = headline(report)
    lines = [f"# {MARKS[head.tone]} {text(head.title)}", "", text(head.sentence)]
    for warning in report.warnings:
        lines += ["", f"> **Mind:** {text(warning)}"]
    return lines


def _cells(report: Report) -> list[str]:
    metric = primary_metric(report)
    name = "metric" if metric is None else text(metric)
    header = [
        "variant",
        "target",
        "status",
        name,
        f"{name} drop [95 %]",
        f"p50 ms ({text(first_case(report))})" if first_case(report) else "p50 ms",
        "speed-up [95 %]",
        "size",
        "INT8",
        "verdict",
    ]
    body = (
        [
            code(row.cell.variant),
            code(row.cell.target),
            row.status,
            *(row.metric, row.drop, row.p50, row.speedup, row.size, row.int8),
            f"**{row.verdict}**" if row.verdict == "ships" else row.verdict,
        ]
        for row in rows(report)
    )
    source = ", ".join(
        f"{text(key)} {SKIPPED if isinstance(value, Skipped) else figures.metric(value)}"
        for key, value in report.source.metrics.items()
    )
    model = f"{code(report.source.path)}, {figures.size(report.source.bytes)}"
    facts = f"Source: {model}, {figures.count(report.source.parameters)} parameters"
    return [
        "## Cells",
        "",
        *table(header, body, right=range(3, 9)),
        "",
        f"{facts}, {source}." if source else f"{facts}.",
    ]


def _checks(report: Report) -> list[str]:
    if not report.gate.checks:
        return []
    lines = ["## Gate", ""]
    if report.gate.ship is not None:
        among = f", chosen among {report.gate.candidates}" if report.gate.candidates else ""
        split = f" on {code(report.gate.chosen_on)}" if report.gate.chosen_on is not None else ""
        lines += [f"Ship: {code(report.gate.ship)}{among}{split}.", ""]
    for check in report.gate.checks:
        note = "" if check.required else " (the verdict does not hang on this cell)"
        lines.append(f"- {text(check_message(check))}{note}")
    return lines


def _findings(report: Report) -> list[str]:
    lines = ["## Rolled back, skipped, unverified", ""]
    found = findings(report)
    for finding in found:
        cells = f" ({', '.join(map(code, finding.cells))})" if finding.cells else ""
        lines.append(f"- **{finding.kind}**, {code(finding.what)}{cells}: {text(finding.reason)}")
    return lines if found else [*lines, "Nothing: every figure was measured, every pass kept."]


def _steps(report: Report) -> list[str]:
    lines: list[str] = []
    for one in report.steps:
        body = [[code(row.name), *row.cells[1:]] for row in step_rows(one)]
        title = f"## {code(one.cell)} from pass to pass"
        lines += [title, "", *table(HEADER, body, right=range(1, 6)), ""]
    return lines[:-1]


def _passes(report: Report) -> list[str]:
    header = ["cell", "pass", "verdict", "nodes", "bytes", "max abs error", "SQNR", "s", "cache"]
    body = [_pass(cell, step) for cell in report.results for step in cell.passes]
    if not body:
        return []
    lines = table(header, body, right=range(3, 8))
    refused = {
        f"- {code(step.name)} refused {figures.count(len(group.nodes), 'node')}: "
        f"{text(group.reason)} (first: {code(group.nodes[0])})"
        for cell in report.results
        for step in cell.passes
        for group in refusal_groups(step.refusals)
    }
    return folded("Passes", [*lines, "", *sorted(refused)] if refused else lines)


def _layers(report: Report) -> list[str]:
    """The slowest layers; report.html has them all."""
    layers = layer_table(report)
    if layers is None:
        return []
    header = ["layer", *(f"{code(name)} {of}" for name in layers.engines for of in ("ms", "type"))]
    body = [
        [
            code(row.name),
            *(
                part
                for figure in row.figures
                for part in (
                    (figures.NONE, figures.NONE)
                    if figure is None
                    else (figures.number(figure.ms), ", ".join(map(text, figure.dtypes)))
                )
            ),
        ]
        for row in layers.rows[:_MOST_LAYERS]
    ]
    return folded("Slowest layers", table(header, body, right=range(0)))


def _pass(cell: Cell, step: PassReport) -> list[str]:
    nodes, size = step.nodes, step.bytes
    return [
        code(cell.name),
        code(step.name),
        step.verdict.replace("_", " "),
        SKIPPED if isinstance(nodes, Skipped) else " → ".join(map(figures.count, nodes)),
        SKIPPED if isinstance(size, Skipped) else " → ".join(map(figures.size, size)),
        SKIPPED if isinstance(step.max_abs_error, Skipped) else figures.number(step.max_abs_error),
        SKIPPED if isinstance(step.sqnr_db, Skipped) else f"{figures.number(step.sqnr_db)} dB",
        figures.number(step.seconds, 2),
        step.cache,
    ]


def _origin(report: Report) -> list[str]:
    lock = report.lock.skipped if isinstance(report.lock, Skipped) else report.lock
    digests = [
        f"- recipe {code(report.recipe.path)}: {code(report.recipe.sha256)}",
        f"- source {code(report.source.path)}: {code(report.source.sha256)}",
        *(
            f"- {code(cell.name)}: {code(cell.engine.identity)}"
            for cell in report.results
            if not isinstance(cell.engine, Skipped)
        ),
        f"- lock: {text(lock)}",
    ]
    made = f"optimc {text(report.optimc)}, {report.created}. To repeat it:"
    notes = [f"- {text(note)}" for note in report.notes]
    return ["## Origin", "", *digests, *notes, "", made, "", *_block(report.command)]


def _block(command: str) -> list[str]:
    """A code block; one line, indented, so that no run of back ticks can close it."""
    return [f"    {one_line(command)}"]
