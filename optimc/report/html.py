"""``report.html``: one file that needs no network, for a browser, a printer, a screen reader."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.report import figures, pictures, rows, verdict
from optimc.report.escape import one_line
from optimc.report.findings import findings, refusal_groups
from optimc.report.layers import layer_table
from optimc.report.step_rows import HEADER as STEP_HEADER
from optimc.report.step_rows import step_rows
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from jinja2 import Environment

    from optimc.report.chart_svg import Chart
    from optimc.report.schema import Cell, Metric, Report

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class MetricRow:
    """One metric of one cell."""

    cell: Cell
    name: str
    metric: Metric
    span: int  # rows of the metric, at its first one; else 0


def to_html(report: Report) -> str:
    """The whole page. Every text in it is escaped, and no character in it is invisible."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head = verdict.headline(report)
    table = layer_table(report)
    page: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            head=head,
            ships=verdict.shipped(report),
            rows=rows.rows(report),
            metric=rows.primary_metric(report),
            case=rows.first_case(report),
            metric_rows=_metric_rows(report),
            speed_cells=[cell for cell in report.results if cell.status == "built"],
            drop_charts=_drop_charts(report),
            speed_chart=pictures.speed_chart(report),
            trade=pictures.trade_chart(report),
            layers=table,
            layer_kinds=() if table is None else pictures.layer_kinds(report, table),
            layer_chart=None if table is None else pictures.layer_chart(report, table),
            found=findings(report),
            conditions=rows.conditions(report),
            style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=script,
            script_digest=digest,
        )
    )
    return page


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        """Control characters would pass through HTML's own escaping."""
        return (
            one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        )

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["skipped"] = lambda value: isinstance(value, Skipped)
    environment.globals.update(
        figures=figures,
        verdict=verdict,
        rows_of=rows,
        pass_charts=pictures.pass_charts,
        steps_chart=pictures.steps_chart,
        step_rows=step_rows,
        step_header=STEP_HEADER,
        option_text=_option_text,
        refusal_groups=refusal_groups,
    )
    return environment


def _option_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _drop_charts(report: Report) -> tuple[Chart, ...]:
    charts = (
        pictures.drop_chart(report, name, index) for index, name in enumerate(report.source.metrics)
    )
    return tuple(chart for chart in charts if chart is not None)


def _metric_rows(report: Report) -> tuple[MetricRow, ...]:
    found = [
        (cell, name, metric)
        for cell in report.results
        if not isinstance(cell.metrics, Skipped)
        for name, metric in cell.metrics.items()
    ]
    made: list[MetricRow] = []
    for name in dict.fromkeys(name for _, name, _ in found):
        cells = [(cell, metric) for cell, other, metric in found if other == name]
        made += [
            MetricRow(cell, name, metric, 0 if index else len(cells))
            for index, (cell, metric) in enumerate(cells)
        ]
    return tuple(made)
