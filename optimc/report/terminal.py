"""The summary of a build for a terminal or a log: within 100 columns, the verdict last."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

from optimc.report import figures
from optimc.report.console import WIDTH, rendered, wants_color
from optimc.report.escape import log_text
from optimc.report.findings import findings
from optimc.report.rows import first_case, noise_floor_text, primary_metric, rows
from optimc.report.step_rows import step_rows
from optimc.report.verdict import check_message, headline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from optimc.report.schema import Report

_NAME = 24
"""Columns of a cell's name that are never wrapped."""

MAX_FINDINGS = 20
MAX_CELLS = 24  # of a finding's cells, in columns: a long list says less than a number
STYLES = {
    "good": "bold green",
    "bad": "bold red",
    "open": "bold yellow",
    "plain": "bold",
    "ships": "bold green",
    "passed": "green",
    "failed": "red",
    "undecided": "yellow",
    "rolled back": "yellow",
    "unverified": "yellow",
}
_PLAIN = str.maketrans(
    {"±": "+-", figures.TIMES: "x", figures.MINUS: "-", figures.NONE: "-", "→": "->", "∞": "inf"}
)


def render_summary(
    report: Report, files: Sequence[Path] = (), *, width: int = WIDTH, color: bool = False
) -> str:
    """The summary as text: cells, findings, checks, where the `files` are, and the verdict last.

    No line is wider than `width` columns (100 at most). The `files` lie in one folder. With
    `color` the text holds ANSI escapes of ours; escapes in names are always made visible.
    """
    return rendered(_parts(report, files), width=width, color=color)


def print_summary(report: Report, files: Sequence[Path], stream: TextIO) -> None:
    """Writes `render_summary` to `stream`.

    In colour only where `stream` is a terminal and NO_COLOR is not set; in ASCII where the
    stream's encoding lacks a character.
    """
    text = render_summary(report, files, width=_columns(stream) or WIDTH, color=wants_color(stream))
    stream.write(_encodable(text, stream.encoding or "utf-8"))
    stream.flush()


def _parts(report: Report, files: Sequence[Path]) -> Iterator[RenderableType]:
    yield _cells(report)
    yield ""
    yield from _steps(report)
    yield from _findings(report)
    yield from _checks(report)
    for warning in report.warnings:
        yield _entry("mind", "yellow", warning)
    if files:
        names = ", ".join(path.name for path in files)
        yield _entry("files", "bold", f"{names} in {files[0].parent}")
    head = headline(report)
    yield ""
    yield _line((f"{head.title}.", STYLES[head.tone]), (f" {head.sentence}", ""))


def _cells(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    metric = primary_metric(report) or "metric"
    case = first_case(report)
    table = Table(
        box=box.SIMPLE_HEAD,
        safe_box=True,
        pad_edge=False,
        padding=(0, 1),
        show_edge=False,
        caption=_line((f"p50 of {case}; noise floor {noise_floor_text(report)}", "dim"))
        if case
        else None,
        caption_justify="left",
    )
    longest = max((len(cell.name) for cell in report.results), default=0)
    # Names are what the eye looks for: figures wrap first.
    table.add_column("cell", overflow="fold", min_width=max(8, min(longest, _NAME)))
    table.add_column(_line((metric, "")), justify="right", no_wrap=True, max_width=10)
    for name in ("drop", "p50 ms", "speed-up", "size", "int8"):
        table.add_column(name, justify="right", no_wrap=name != "drop")
    table.add_column("verdict", no_wrap=True)
    for row in rows(report, figures.stacked):
        verdict = row.verdict if row.status == "built" else row.status
        table.add_row(
            _line((row.cell.name, "")),
            *(row.metric, row.drop, row.p50, row.speedup, row.size, row.int8),
            _line((verdict, STYLES.get(verdict, ""))),
        )
    return table


def _findings(report: Report) -> Iterator[RenderableType]:
    found = findings(report)
    for finding in found[:MAX_FINDINGS]:
        cells = ", ".join(finding.cells)
        if len(cells) > MAX_CELLS and len(finding.cells) > 1:
            cells = figures.count(len(finding.cells), "cell")
        where = f"{cells}: " if cells else ""
        what = "" if finding.what == "cell" else f"{finding.what}: "
        text = f"{where}{what}{finding.reason}"
        yield _entry(finding.kind, STYLES.get(finding.kind, "dim"), text)
    if len(found) > MAX_FINDINGS:
        yield _entry("", "", f"and {len(found) - MAX_FINDINGS} more: see the report")


def _steps(report: Report) -> Iterator[RenderableType]:
    for one in report.steps:
        for number, row in enumerate(step_rows(one)):
            text = f"{row.name}: {row.macs} MACs, {row.size}, drop {row.drop}, {row.speedup}"
            if not number:
                text = f"{one.cell}, drops on tuning data; {text}"
            yield _entry("" if number else "steps", "bold", text)
        yield ""


def _checks(report: Report) -> Iterator[RenderableType]:
    for check in report.gate.checks:
        if check.required:
            yield _entry("gate", STYLES[check.verdict], check_message(check))


def _entry(label: str, style: str, text: str) -> RenderableType:
    """A line with a label in a column of its own; what does not fit hangs under the text."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2), expand=False)
    grid.add_column(width=12, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(_line((label, style)), _line((text, "")))
    return grid


def _line(*pieces: tuple[str, str]) -> Text:
    from rich.text import Text

    text = Text(overflow="fold")
    for piece, style in pieces:
        text.append(log_text(piece), style)
    return text


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate(_PLAIN).encode("ascii", "backslashreplace").decode()
    return text


def _columns(stream: TextIO) -> int | None:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return None
