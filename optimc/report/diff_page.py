"""The page of `optimc diff`: one file that needs no network, with the error along the model."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from optimc import __version__
from optimc.report import diff_table, figures
from optimc.report.charts import Point, along
from optimc.report.diff import DiffReport, Trend, ValueRow
from optimc.report.escape import one_line
from optimc.report.html import TEMPLATES

if TYPE_CHECKING:
    from jinja2 import Environment

    from optimc.report.chart_svg import Chart

MOST_ROWS = 2000
"""Rows of the page's table; the JSON has them all."""
MOST_POINTS = 300
"""Points of the picture; where an error starts, grows or heals is never left out."""
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

_TURNS = (Trend.STARTS, Trend.GROWS, Trend.HEALS)


def profile(report: DiffReport) -> Chart | None:
    """The picture of the error at the values that were compared; None below two."""
    points = profile_points(report)
    if len(points) < 2:
        return None
    return along(
        "error-along-the-model",
        "Relative error at each value, in A's order of computation",
        points,
        axes=("value, in A's order of computation", "relative error (root mean square)"),
        write=lambda exponent: f"1e{exponent:g}",
    )


def profile_points(report: DiffReport) -> list[Point]:
    """The decimal exponent of each error: equal values at the foot, infinite errors at the top."""
    rows = [row for row in report.rows if row.noise is not None]
    found = [row.noise for row in rows if row.noise is not None and math.isfinite(row.noise)]
    high = math.ceil(math.log10(max([*found, 10 * _LEAST])))
    low = math.floor(math.log10(max(_LEAST, min([n for n in found if n > 0], default=_LEAST))))
    low = min(low, high - 1) - any(row.noise == 0 for row in rows)  # equal is below all others
    high += any(row.noise == math.inf for row in rows)
    step = max(1, math.ceil(len(rows) / MOST_POINTS))
    shown = [
        row for i, row in enumerate(rows) if i % step == 0 or row.trend in _TURNS or row.output
    ]
    return [
        Point(
            diff_table.name_of(row),
            row.number,
            _height(row, low, high),
            None,
            _kind(row),
            f"{row.number} {diff_table.name_of(row)}: {figures.number(row.noise)}, {row.trend}",
        )
        for row in shown
        if row.noise is not None
    ]


def _kind(row: ValueRow) -> str:
    """Where the error heals, where it starts or grows, and the rest."""
    if row.trend in _TURNS or row.output:
        return "ships" if TONES[row.trend] == "good" else "bad"
    return "source"


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
    )
    return environment
