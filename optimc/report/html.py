"""``report.html``: one file that needs no network, for a browser, a printer, a screen reader."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.report import chart, figures, rows, verdict
from optimc.report.escape import one_line
from optimc.report.findings import findings, refusal_groups
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from jinja2 import Environment

    from optimc.report.chart import Strip
    from optimc.report.schema import Cell, Metric, Report, Speedup

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class MetricRow:
    """One metric of one cell, with its interval on a line that all rows of the metric share."""

    cell: Cell
    name: str
    metric: Metric
    strip: Strip | None
    span: int  # rows of the metric, at its first one; else 0


@dataclass(frozen=True)
class SpeedRow:
    """The speed of one cell, with its interval on a line that all rows share."""

    cell: Cell
    speedup: Speedup | Skipped
    same_runtime: Speedup | Skipped
    strip: Strip | None


def to_html(report: Report) -> str:
    """The whole page. Every text in it is escaped, and no character in it is invisible."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head = verdict.headline(report)
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
            speed_rows=_speed_rows(report),
            plot=chart.scatter(report),
            found=findings(report),
            conditions=rows.conditions(report),
            seconds_max=_longest(report),
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
        chart=chart,
        check_strip=chart.check_strip,
        option_text=_option_text,
        refusal_groups=refusal_groups,
    )
    return environment


def _option_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _metric_rows(report: Report) -> tuple[MetricRow, ...]:
    found = [
        (cell, name, metric)
        for cell in report.results
        if not isinstance(cell.metrics, Skipped)
        for name, metric in cell.metrics.items()
    ]
    names = list(dict.fromkeys(name for _, name, _ in found))
    spans: dict[str, list[float]] = {name: [0.0] for name in names}
    for _, name, metric in found:
        spans[name] += [] if isinstance(metric.ci95, Skipped) else metric.ci95
    made: list[MetricRow] = []
    for name in names:
        cells = [(cell, metric) for cell, other, metric in found if other == name]
        for index, (cell, metric) in enumerate(cells):
            strip = _metric_strip(metric, spans[name])
            made.append(MetricRow(cell, name, metric, strip, 0 if index else len(cells)))
    return tuple(made)


def _metric_strip(metric: Metric, span: list[float]) -> Strip | None:
    if isinstance(metric.drop, Skipped) or isinstance(metric.ci95, Skipped):
        return None
    return chart.strip(metric.drop, metric.ci95, 0.0, span)


def _speed_rows(report: Report) -> tuple[SpeedRow, ...]:
    built = [cell for cell in report.results if cell.status == "built"]
    ratios = [cell.speedup for cell in built if not isinstance(cell.speedup, Skipped)]
    span = [end for ratio in ratios for end in ratio.ci95]
    noise = None if isinstance(report.noise_floor, Skipped) else report.noise_floor.ci95
    return tuple(
        SpeedRow(
            cell=cell,
            speedup=cell.speedup,
            same_runtime=cell.speedup_same_runtime,
            strip=None
            if isinstance(cell.speedup, Skipped)
            else chart.strip(cell.speedup.value, cell.speedup.ci95, 1.0, span, noise),
        )
        for cell in built
    )


def _longest(report: Report) -> float:
    return max((step.seconds for cell in report.results for step in cell.passes), default=0.0)
