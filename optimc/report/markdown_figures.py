"""The measured parts of ``report.md``: accuracy, speed, latency, and what runs in INT8."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from optimc.report import figures
from optimc.report.escape import markdown_code as code
from optimc.report.escape import markdown_text as text
from optimc.report.rows import SKIPPED, case_text, conditions, judged_times
from optimc.report.values import Skipped
from optimc.report.verdict import shipped

if TYPE_CHECKING:
    from optimc.report.schema import Cell, Latency, Metric, Report, Speedup, Throughput

_Value = TypeVar("_Value")


def folded(title: str, lines: list[str]) -> list[str]:
    """`lines` under a line that unfolds them."""
    return [f"<details><summary><b>{title}</b></summary>", "", *lines, "", "</details>"]


def table(header: Sequence[str], body: Iterable[Sequence[str]], right: range) -> list[str]:
    """A table in Markdown; the columns in `right` are set to the right."""
    rule = ["--:" if index in right else "---" for index in range(len(header))]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *body)]


def shown(value: _Value | Skipped | None, write: Callable[[_Value], str]) -> str:
    """The figure, `skipped`, or a dash where there is none to measure."""
    if value is None:
        return figures.NONE
    return SKIPPED if isinstance(value, Skipped) else write(value)


def accuracy(report: Report) -> list[str]:
    """Each metric against the source, paired by samples, and the worst samples of what ships."""
    found = [
        (cell, name, metric)
        for cell in report.results
        if isinstance(cell.metrics, Mapping)
        for name, metric in cell.metrics.items()
    ]
    if not found:
        return []
    header = ["metric", "cell", "source", "value", "drop [95 %]", "n", "agreement"]
    body = [[text(name), code(cell.name), *_accuracy(metric)] for cell, name, metric in found]
    lines = table([*header, "lost / won", "McNemar p"], body, right=range(2, 9))
    worst = _worst(report, found)
    return folded("Accuracy", [*lines, "", *worst] if worst else lines)


def _accuracy(metric: Metric) -> list[str]:
    drop = metric.drop
    return [
        shown(metric.source, figures.metric),
        shown(metric.value, figures.metric),
        SKIPPED if isinstance(drop, Skipped) else figures.bracketed(drop, metric.ci95),
        shown(metric.samples, figures.count),
        shown(metric.agreement, figures.percent),
        f"{shown(metric.lost, figures.count)} / {shown(metric.won, figures.count)}",
        shown(metric.mcnemar_p, figures.number),
    ]


def _worst(report: Report, found: Sequence[tuple[Cell, str, Metric]]) -> list[str]:
    ships = shipped(report)
    texts = {one.number: one.texts for one in report.shown}
    body = [
        [
            code(cell.name),
            text(name),
            code(sample.id),
            " / ".join(text(one) for one in texts.get(sample.number, ())),
            figures.trimmed(sample.source, 4),
            figures.trimmed(sample.candidate, 4),
        ]
        for cell, name, metric in found
        if cell in ships or not ships
        for sample in metric.worst
    ]
    header = ["cell", "metric", "worst sample", "its text", "source", "cell's"]
    return table(header, body, right=range(4, 6)) if body else []


def speed(report: Report) -> list[str]:
    """Speed-ups, throughput, cold start and memory of each engine, then the conditions."""
    body = [_speed(cell) for cell in report.results if cell.status == "built"]
    header = ["cell", "over the source on ONNX Runtime", "on the same runtime"]
    header += ["throughput per s", "load ms", "first result ms", "steady MB", "peak MB"]
    lines = [*folded("Speed and memory", table(header, body, right=range(1, 8)))] if body else []
    latencies = _latencies(report)
    if latencies:
        lines += ["", *latencies] if lines else latencies
    return lines


def _speed(cell: Cell) -> list[str]:
    engine = cell.engine
    memory = (
        [figures.NONE] * 4
        if isinstance(engine, Skipped)
        else [
            shown(engine.load_ms, figures.number),
            shown(engine.first_result_ms, figures.number),
            shown(engine.steady_memory_mb, figures.number),
            shown(engine.peak_memory_mb, figures.number),
        ]
    )
    through = shown(cell.throughput_per_s, figures.number)
    if cell.throughput is not None:
        through = _throughput(cell.throughput)
    return [
        code(cell.name),
        shown(cell.speedup, _ratio),
        shown(cell.speedup_same_runtime, _ratio),
        through,
        *memory,
    ]


def _ratio(value: Speedup) -> str:
    return figures.bracketed(value.value, value.ci95, figures.TIMES)


def _throughput(value: Throughput) -> str:
    streams = figures.count(value.streams, "stream")
    return f"{figures.bracketed(value.per_s, value.ci95)}, {streams}, batch {value.batch}"


def _latencies(report: Report) -> list[str]:
    source = report.source.latency
    found = [] if isinstance(source, Skipped) else [("source", one) for one in source]
    found += [
        (cell.name, one)
        for cell in report.results
        if not isinstance(cell.latency, Skipped)
        for one in cell.latency
    ]
    body = [
        [
            code(name),
            text(case_text(one)),
            *(_percentile(one, which) for which in ("p50", "p90", "p99")),
            figures.count(one.runs),
            figures.NONE if one.sessions is None else figures.count(one.sessions),
            one.inputs,
            str(one.threads),
        ]
        for name, one in found
    ]
    header = ["cell", "case", "p50 ms [95 %]", "p90 ms [95 %]", "p99 ms [95 %]"]
    header += ["runs", "sessions", "inputs", "threads"]
    return folded("Latency", table(header, body, right=range(2, 7))) if body else []


def _percentile(one: Latency, which: str) -> str:
    value: float | Skipped = getattr(one, f"{which}_ms")
    ends: tuple[float, float] | None = getattr(one, f"{which}_ci95")
    if isinstance(value, Skipped) or ends is None:
        return shown(value, figures.number)
    return figures.bracketed(value, ends)


def measured_again(report: Report) -> list[str]:
    """The figures of what was chosen, measured after the choice."""
    again = report.confirmation
    if again is None:
        return []
    name = f"{again.variant}/{again.target}"
    cell = next((cell for cell in report.results if cell.name == name), None)
    if cell is None:
        return []
    speedup, latency, _ = judged_times(report, cell)
    p50 = SKIPPED if isinstance(latency, Skipped) else _percentile(latency, "p50")
    return [
        f"Measured again after the choice, which flatters what was chosen: {code(name)}, speed-up "
        f"{shown(speedup, _ratio)}, p50 ms {p50}. The gate judges by this."
    ]


def condition_lines(report: Report) -> list[str]:
    """What the figures of time hold for."""
    lines = ["## Conditions", ""]
    return lines + [f"- {term}: {text(value)}" for term, value in conditions(report)]


def int8(report: Report) -> list[str]:
    """The share that each runtime really runs in INT8, and what it leaves in float."""
    body = [
        [
            code(cell.name),
            shown(cell.engine.int8_share, figures.percent),
            shown(cell.engine.precision, text),
            shown(cell.engine.sqnr_db, lambda value: f"{figures.number(value)} dB"),
            cell.engine.verdict.replace("_", " "),
            figures.count(len(cell.engine.float_islands)),
        ]
        for cell in report.results
        if not isinstance(cell.engine, Skipped)
    ]
    header = ["cell", "share in INT8", "precision", "SQNR to source", "engine's verdict"]
    lines = table([*header, "nodes left in float"], body, right=range(1, 2))
    return folded("What really runs in INT8", lines) if body else []
