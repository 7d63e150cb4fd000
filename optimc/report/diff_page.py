"""The page of `optimc diff`: one file that needs no network, with the error along the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from optimc import __version__
from optimc.report import diff_table, figures
from optimc.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, Tick, ticks
from optimc.report.diff import DiffReport, Trend, ValueRow
from optimc.report.escape import one_line
from optimc.report.html import TEMPLATES

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_ROWS = 2000
"""Rows of the page's table; the JSON has them all."""
_LEAST = 1e-9
"""Noise below this is drawn at the foot of the chart."""
TONES = {
    Trend.SAME: "good",
    Trend.STARTS: "bad",
    Trend.GROWS: "bad",
    Trend.HEALS: "good",
    Trend.CARRIED: "open",
    Trend.NOT_COMPARED: "plain",
}


@dataclass(frozen=True)
class Mark:
    """A value in the chart."""

    row: ValueRow
    x: float
    y: float


@dataclass(frozen=True)
class Profile:
    """The relative error, logarithmic, along the order of computation."""

    marks: tuple[Mark, ...]
    line: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def profile(report: DiffReport) -> Profile | None:
    """The picture of the error at every value that was compared; None below two."""
    rows = [row for row in report.rows if row.noise is not None]
    if len(rows) < 2:
        return None
    tops = [row.noise for row in rows if row.noise is not None and math.isfinite(row.noise)]
    high = math.ceil(math.log10(max([*tops, 10 * _LEAST])))
    low = math.floor(math.log10(max(_LEAST, min([n for n in tops if n > 0], default=_LEAST))))
    low = min(low, high - 1) - any(row.noise == 0 for row in rows)  # equal is below all others
    x_ticks = ticks(rows[0].number, rows[-1].number)
    x_scale = Scale(rows[0].number, max(x_ticks[-1], rows[-1].number), LEFT, WIDTH - RIGHT)
    y_scale = Scale(low, high, HEIGHT - BOTTOM, TOP)
    marks = tuple(Mark(row, x_scale(row.number), y_scale(_height(row, low, high))) for row in rows)
    step = max(1, (high - low) // 6)
    return Profile(
        marks,
        " ".join(f"{mark.x},{mark.y}" for mark in marks),
        tuple(Tick(x_scale(x), f"{x:.0f}") for x in x_ticks if x >= rows[0].number and x == int(x)),
        tuple(Tick(y_scale(y), f"1e{y}") for y in range(low, high + 1, step)),
    )


def _height(row: ValueRow, low: int, high: int) -> float:
    noise = row.noise
    assert noise is not None
    if not math.isfinite(noise):
        return high
    return min(high, max(low, math.log10(noise))) if noise > 0 else low


def to_page(report: DiffReport) -> str:
    """The whole page. Every text in it is escaped, and no character in it is invisible."""
    page: str = (
        _environment()
        .get_template("diff.html.j2")
        .render(
            report=report,
            version=__version__,
            verdict=diff_table.verdict(report),
            summary=list(diff_table.summary(report)),
            rows=report.rows[:MOST_ROWS],
            plot=profile(report),
            style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        )
    )
    return page


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        """Control characters would pass through HTML's own escaping."""
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return one_line(str(value)) if plain else value

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        figures=figures,
        name_of=diff_table.name_of,
        operator_of=diff_table.operator_of,
        tones=TONES,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        bottom=HEIGHT - BOTTOM,
    )
    return environment
