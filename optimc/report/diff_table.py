"""The table of `optimc diff` for a terminal or a log: within 100 columns, the verdict last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from optimc.report import figures
from optimc.report.console import WIDTH, rendered, wants_color
from optimc.report.diff import DiffReport, Trend, ValueRow, interesting
from optimc.report.escape import log_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

MOST_ROWS = 40
_NAME = 34
STYLES = {
    Trend.SAME: "green",
    Trend.STARTS: "bold red",
    Trend.GROWS: "red",
    Trend.HEALS: "green",
    Trend.CARRIED: "yellow",
    Trend.NOT_COMPARED: "dim",
}


def render_diff(
    report: DiffReport, *, width: int = WIDTH, color: bool = False, every: bool = False
) -> str:
    """The comparison as text: the values that say something (`every`: all), and the verdict last.

    No line is wider than `width` columns, 100 at most. Escapes in names are made visible.
    """
    return rendered(_parts(report, every), width=width, color=color)


def print_diff(report: DiffReport, stream: TextIO, *, every: bool = False) -> None:
    """Writes `render_diff`; in colour only on a terminal where NO_COLOR is not set."""
    text = render_diff(report, width=_columns(stream), color=wants_color(stream), every=every)
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = text.encode("ascii", "backslashreplace").decode()
    stream.write(text)
    stream.flush()


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return WIDTH


def _parts(report: DiffReport, every: bool) -> Iterator[RenderableType]:
    yield _entry("A", f"{report.a} ({report.a_run})")
    yield _entry("B", f"{report.b} ({report.b_run})")
    yield _entry("inputs", "; ".join(report.inputs))
    yield _entry("limit", report.limit)
    yield ""
    rows = report.rows if every else interesting(report, MOST_ROWS)
    if rows:
        yield _table(rows)
        yield ""
    for label, text in summary(report):
        yield _entry(label, text)
    yield ""
    yield _line(verdict(report), "bold green" if report.same else "bold red")


def summary(report: DiffReport) -> Iterator[tuple[str, str]]:
    """Labels and sentences below the table, for every view."""
    kinds = {how: sum(row.matched == how for row in report.rows) for how in _HOW}
    matched = ", ".join(f"{count} by {how}" for how, count in kinds.items() if count)
    yield "matched", f"{figures.count(len(report.rows), 'value')}: {matched or 'none'}"
    for side, names in (("A", report.unmatched_a), ("B", report.unmatched_b)):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            yield "no match", f"{figures.count(len(names), 'value')} of {side}: {shown}"
    missing = report.with_trend(Trend.NOT_COMPARED)
    if missing:
        first = missing[0]
        yield (
            "not compared",
            f"{figures.count(len(missing), 'value')}, such as {first.name}: {first.reason}",
        )
    starts = report.with_trend(Trend.STARTS)
    if starts:
        more = f", and at {len(starts) - 1} more" if len(starts) > 1 else ""
        yield "starts", f"at {starts[0].name} ({starts[0].operator}){more}"
    for note in report.notes:
        yield "note", note


_HOW = ("provenance", "name", "structure", "position")


def verdict(report: DiffReport) -> str:
    """The answer in one sentence."""
    worst = max(report.outputs, key=_badness, default=None)
    if worst is None:
        return "Nothing was compared."
    if worst.max_rel is None:
        return f"The models differ: output {worst.name}: {worst.reason}."
    head = "The models are the same" if report.same else "The models differ"
    sqnr = worst.sqnr_db
    tail = "" if sqnr is None else f", SQNR {figures.number(sqnr)} dB"
    why = f" ({worst.reason})" if worst.reason else ""
    error = f"{figures.number(worst.max_rel)} of its scale"
    return (
        f"{head} within the limit: output {worst.name} differs by {error}{tail}{why}."
        if (report.same)
        else f"{head}: output {worst.name} differs by {error}{tail}{why}."
    )


def _badness(row: ValueRow) -> float:
    if row.max_rel is None or row.reason is not None:
        return float("inf")
    return row.max_rel


def _table(rows: object) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, safe_box=True, pad_edge=False, padding=(0, 1))
    table.show_edge = False
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("value", overflow="fold", max_width=_NAME)
    table.add_column("operator", overflow="fold", max_width=18)
    table.add_column("max error", justify="right", no_wrap=True)
    table.add_column("SQNR dB", justify="right", no_wrap=True)
    table.add_column("error", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:  # type: ignore[attr-defined]
        table.add_row(
            str(row.number),
            _line(name_of(row), "bold" if row.output else ""),
            _line(operator_of(row), ""),
            "-" if row.max_rel is None else figures.number(row.max_rel),
            "-" if row.sqnr_db is None else figures.number(row.sqnr_db),
            _line(str(row.trend), STYLES[row.trend]),
            "output" if row.output else "",
        )
    return table


def name_of(row: ValueRow) -> str:
    """A value's name, with that in B where it is another."""
    return row.name if row.name == row.other else f"{row.name} = {row.other}"


def operator_of(row: ValueRow) -> str:
    """What computes it in A, and in B where that is another."""
    same = row.operator == row.other_operator
    return row.operator if same else f"{row.operator}/{row.other_operator}"


def _entry(label: str, text: str) -> RenderableType:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2), expand=False)
    grid.add_column(width=12, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(_line(label, "bold"), _line(text, ""))
    return grid


def _line(text: str, style: str) -> Text:
    from rich.text import Text

    return Text(log_text(text), style, overflow="fold")
