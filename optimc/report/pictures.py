"""Which pictures report.html holds, from what of the report; `optimc.report.charts` draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimc.report import figures
from optimc.report.chart_svg import Chart
from optimc.report.charts import (
    Interval,
    Point,
    along,
    bars,
    intervals,
    shortened,
    trade,
    waterfall,
)
from optimc.report.rows import first_case, primary_metric
from optimc.report.values import Skipped
from optimc.report.verdict import shipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optimc.report.layers import LayerTable
    from optimc.report.schema import Cell, Metric, Report, Speedup
    from optimc.report.steps import CellSteps

_MOST_LAYERS = 12
_MOST_CELLS = 24
"""Of a picture: more would not be read; the tables have all."""


@dataclass(frozen=True)
class TradeRow:
    """A point of the picture of accuracy against latency, for the table beside it."""

    name: str
    latency: float
    metric: float
    on_front: bool


@dataclass(frozen=True)
class Trade:
    """Accuracy against latency."""

    chart: Chart
    metric: str
    rows: tuple[TradeRow, ...]


def drop_chart(report: Report, name: str, index: int) -> Chart | None:
    """The drops of one metric with their intervals, and the gate's limit."""
    lines = []
    for cell in report.results[:_MOST_CELLS]:
        metric = None if isinstance(cell.metrics, Skipped) else cell.metrics.get(name)
        if metric is None or isinstance(metric.drop, Skipped) or isinstance(metric.ci95, Skipped):
            continue
        text = f"{cell.name}: drop {figures.bracketed(metric.drop, metric.ci95)}"
        lines.append(Interval(cell.name, metric.drop, metric.ci95, _kind(report, cell), text))
    if not lines:
        return None
    return intervals(
        f"drop-{index}",
        f"Drop of {name} of each cell, with 95 % intervals",
        lines,
        axis=f"drop of {shortened(name)}: worse is to the right",
        marks=[("reference", 0.0), *_limits(report, f"drop.{name}")],
        write=lambda value: figures.trimmed(value, 3),
    )


def speed_chart(report: Report) -> Chart | None:
    """The speed-ups with their intervals, the noise floor and the gate's limit."""
    lines = []
    for cell in report.results[:_MOST_CELLS]:
        ratio: Speedup | Skipped = cell.speedup
        if isinstance(ratio, Skipped):
            continue
        text = f"{cell.name}: {figures.bracketed(ratio.value, ratio.ci95, figures.TIMES)}"
        lines.append(Interval(cell.name, ratio.value, ratio.ci95, _kind(report, cell), text))
    if not lines:
        return None
    return intervals(
        "speed-ups",
        "Speed-up of each cell over the source on ONNX Runtime, with 95 % intervals",
        lines,
        axis="speed-up over the source: faster is to the right",
        marks=[("reference", 1.0), *_limits(report, "speedup")],
        write=lambda value: f"{figures.trimmed(value, 3)}{figures.TIMES}",
        band=None if isinstance(report.noise_floor, Skipped) else report.noise_floor.ci95,
    )


def trade_chart(report: Report) -> Trade | None:
    """The first metric against the first case's p50; None below two points."""
    metric = primary_metric(report)
    points = [] if metric is None else _points(report, metric)
    if metric is None or len(points) < 2:
        return None
    better = _better(report, metric)
    front = pareto(points, better)
    chart = trade(
        "trade-chart",
        f"{metric} against p50 latency",
        points[: _MOST_CELLS + 1],
        front,
        axes=(
            f"p50 ms, {shortened(first_case(report), 48)} (lower is better)",
            f"{shortened(metric)} ({better} is better)",
        ),
        write=lambda value: figures.trimmed(value, 4),
    )
    rows = tuple(TradeRow(p.name, p.x, p.y, p in front) for p in sorted(points, key=_by_x))
    return Trade(chart, metric, rows)


def pareto(points: Sequence[Point], better: str) -> list[Point]:
    """The points that no other one beats in both, the fastest first."""
    sign = 1 if better == "higher" else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -sign * point.y)):
        if not front or sign * point.y > sign * front[-1].y:
            front.append(point)
    return front


def pass_charts(report: Report, cell: Cell) -> tuple[Chart, ...]:
    """What each pass of a cell gave in bytes and in nodes."""
    kept = [step for step in cell.passes if not isinstance(step.bytes, Skipped)]
    if not kept:
        return ()
    number = report.results.index(cell)
    sizes: list[tuple[str, float]] = []
    nodes: list[tuple[str, float]] = []
    for step in kept:
        if not sizes and not isinstance(step.bytes, Skipped):
            sizes.append(("source", step.bytes[0] / 1e6))
        if not nodes and not isinstance(step.nodes, Skipped):
            nodes.append(("source", float(step.nodes[0])))
        if not isinstance(step.bytes, Skipped):
            sizes.append((step.name, step.bytes[1] / 1e6))
        if not isinstance(step.nodes, Skipped):
            nodes.append((step.name, float(step.nodes[1])))
    made = [
        waterfall(
            f"size-{number}",
            f"Size of the weights of {cell.name} after each pass",
            sizes,
            axis="MB",
            write=lambda value: figures.trimmed(value, 3),
        )
    ]
    if len(nodes) > 1:
        made.append(
            waterfall(
                f"nodes-{number}",
                f"Nodes of {cell.name} after each pass",
                nodes,
                axis="nodes",
                write=lambda value: figures.count(round(value)),
            )
        )
    return tuple(made)


def steps_chart(one: CellSteps, index: int) -> Chart | None:
    """What each pass gave in speed and took in accuracy: a path from the source to the result."""
    points = [
        Point(
            step.name,
            step.speedup,
            step.drop,
            None,
            "source" if number == 0 else "cell",
            f"{step.name}: {figures.trimmed(step.speedup, 3)}{figures.TIMES}, "
            f"drop {figures.trimmed(step.drop, 3)}",
        )
        for number, step in enumerate(one.steps)
        if not isinstance(step.speedup, Skipped) and not isinstance(step.drop, Skipped)
    ]
    if len(points) < 2:
        return None
    return along(
        f"steps-{index}",
        f"{one.cell} from pass to pass: speed against drop",
        points,
        axes=("speed-up over the source", f"drop of {shortened(one.metric or 'metric')}"),
        write=lambda value: figures.trimmed(value, 3),
    )


def layer_kinds(report: Report, table: LayerTable) -> tuple[tuple[str, str], ...]:
    """The engines of the picture of layers with their kind, which gives the colour."""
    names = {cell.name for cell in shipped(report)}
    return tuple(
        (p.engine, "source" if p.cell is None else "ships" if p.cell in names else "cell")
        for p in table.profiles
    )


def layer_chart(report: Report, table: LayerTable) -> Chart:
    """The slowest rows of the table of layers, in every engine."""
    rows = table.rows[:_MOST_LAYERS]
    series = [
        (
            kind,
            engine,
            [None if (figure := row.figures[index]) is None else figure.ms for row in rows],
        )
        for index, (engine, kind) in enumerate(layer_kinds(report, table))
    ]
    return bars(
        "layer-times",
        "Time of the slowest layers",
        [row.name for row in rows],
        series,
        axis="ms",
        write=lambda value: f"{figures.trimmed(value, 3)} ms",
    )


def _kind(report: Report, cell: Cell) -> str:
    return "ships" if cell in shipped(report) else "cell"


def _limits(report: Report, name: str) -> list[tuple[str, float]]:
    limits = {check.limit for check in report.gate.checks if check.name == name}
    return [("limit", limit) for limit in sorted(limits)]


def _by_x(point: Point) -> float:
    return point.x


def _points(report: Report, metric: str) -> list[Point]:
    points = []
    source = report.source.metrics[metric]
    if not isinstance(report.source.latency, Skipped) and report.source.latency:
        p50 = report.source.latency[0].p50_ms
        if not isinstance(p50, Skipped) and not isinstance(source, Skipped):
            points.append(_point("source", p50, source, None, "source"))
    for cell in report.results:
        if isinstance(cell.latency, Skipped) or isinstance(cell.metrics, Skipped):
            continue
        found = cell.metrics.get(metric)
        p50 = cell.latency[0].p50_ms if cell.latency else Skipped(skipped="no case")
        if found is None or isinstance(p50, Skipped) or isinstance(found.value, Skipped):
            continue
        ends = _ends(found)
        points.append(_point(cell.name, p50, found.value, ends, _kind(report, cell)))
    return points


def _point(
    name: str, p50: float, value: float, ends: tuple[float, float] | None, kind: str
) -> Point:
    text = f"{name}: {figures.milliseconds(p50)}, {figures.metric(value)}"
    return Point(name, p50, value, ends, kind, text)


def _ends(metric: Metric) -> tuple[float, float] | None:
    """The interval of the metric, from that of its drop."""
    if isinstance(metric.ci95, Skipped) or isinstance(metric.source, Skipped):
        return None
    sign = 1 if metric.better == "higher" else -1
    low, high = sorted(metric.source - sign * end for end in metric.ci95)
    return low, high


def _better(report: Report, metric: str) -> str:
    for cell in report.results:
        if not isinstance(cell.metrics, Skipped) and metric in cell.metrics:
            return cell.metrics[metric].better
    return "higher"
