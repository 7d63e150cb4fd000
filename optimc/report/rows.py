"""The table of cells and the conditions, as text that every view lays out in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimc.report import figures
from optimc.report.values import Skipped
from optimc.report.verdict import shipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from optimc.report.schema import Cell, Latency, Report, Speedup

SKIPPED = "skipped"


@dataclass(frozen=True)
class Row:
    """One cell's figures in words; a figure that was not measured reads `skipped`."""

    cell: Cell
    status: str
    metric: str
    drop: str
    p50: str
    speedup: str
    size: str
    int8: str
    verdict: str


def primary_metric(report: Report) -> str | None:
    """The metric that the gate's first limit and the choices use, or None where there is none."""
    return next(iter(report.source.metrics), None)


def first_case(report: Report) -> str:
    """The case that the table's latencies belong to, such as ``batch=1``."""
    for cell in report.results:
        if not isinstance(cell.latency, Skipped) and cell.latency:
            return case_text(cell.latency[0])
    return ""


def case_text(latency: Latency) -> str:
    """``batch=1, length=128``, or in words where the recipe names no sizes of dims."""
    sizes = ", ".join(f"{dim}={size}" for dim, size in latency.case.items())
    return sizes or ("evaluation data" if latency.inputs == "data" else "fixed shapes")


def rows(
    report: Report, interval: Callable[[float, figures.Ends, str], str] = figures.bracketed
) -> tuple[Row, ...]:
    """One row for each cell, in the recipe's order; `interval` writes a figure with its ends."""
    metric = primary_metric(report)
    return tuple(_row(report, cell, metric, interval) for cell in report.results)


def cell_verdict(report: Report, cell: Cell) -> str:
    """`ships`, or the worst verdict among the cell's checks, or a dash where none was asked.

    A candidate of `ship: best` that misses a limit fails nothing: its verdict is `not met`.
    """
    if cell in shipped(report):
        return "ships"
    checks = [check for check in report.gate.checks if check.cell == cell.name]
    if any(check.verdict == "failed" and not check.required for check in checks):
        return "not met"
    verdicts = {check.verdict for check in checks}
    return next((v for v in ("failed", "undecided", "passed") if v in verdicts), figures.NONE)


def judged_times(report: Report, cell: Cell) -> tuple[Speedup | Skipped, Latency | Skipped, bool]:
    """The speed-up and the first case's latency that the gate judged the cell by.

    Also whether both were measured again after the choice, whose own figures flatter it.
    """
    again = report.confirmation
    if again is not None and (again.variant, again.target) == (cell.variant, cell.target):
        return again.speedup, again.latency, True
    if isinstance(cell.latency, Skipped):
        return cell.speedup, cell.latency, False
    nothing = Skipped(skipped="no benchmark case")
    return cell.speedup, next(iter(cell.latency), nothing), False


def conditions(report: Report) -> tuple[tuple[str, str], ...]:
    """What the figures of time hold for: pairs of a term and its text."""
    machine = report.machine
    chosen = _chosen_options(report)
    memory = (
        machine.memory_mb.skipped
        if isinstance(machine.memory_mb, Skipped)
        else f"{figures.count(machine.memory_mb)} MB"
    )
    return (
        ("CPU", f"{machine.cpu}, {machine.cores} cores, {machine.architecture}"),
        ("CPU features", ", ".join(machine.features) or "none reported"),
        ("memory", memory),
        ("system", machine.os),
        ("versions", ", ".join(f"{name} {v}" for name, v in report.environment.items())),
        ("threads", _threads(report)),
        *((("inputs", _inputs(report)),) if report.source.inputs else ()),
        *((("chosen by measuring", chosen),) if chosen else ()),
        ("cases", _cases(report)),
        ("noise floor", noise_floor_text(report)),
        ("intervals of speed-ups", _sessions(report)),
    )


def noise_floor_text(report: Report) -> str:
    """The ratio of the source to itself, with its interval."""
    floor = report.noise_floor
    if isinstance(floor, Skipped):
        return f"{SKIPPED}: {floor.skipped}"
    return f"{figures.bracketed(floor.value, floor.ci95, figures.TIMES)}, the source against itself"


def _latencies(report: Report) -> list[Latency]:
    lists = [cell.latency for cell in report.results]
    return [one for each in lists if not isinstance(each, Skipped) for one in each]


def _threads(report: Report) -> str:
    """``1``, or ``1 (fp32/ort, int8/ov), 2 (int8/ort)`` where cells differ."""
    cells: dict[int, list[str]] = {}
    for cell in report.results:
        if not isinstance(cell.latency, Skipped) and cell.latency:
            cells.setdefault(cell.latency[0].threads, []).append(cell.name)
    if len(cells) == 1:
        return str(*cells)
    return ", ".join(f"{used} ({', '.join(cells[used])})" for used in sorted(cells)) or SKIPPED


def _inputs(report: Report) -> str:
    """``images float32 [batch, 3, 32, 32]``."""
    return "; ".join(
        f"{name} {one.dtype} "
        + ("of any rank" if one.shape is None else f"[{', '.join(map(str, one.shape))}]")
        for name, one in report.source.inputs.items()
    )


def _chosen_options(report: Report) -> str:
    """``int8/ort: threads 2, graph_optimization all; int8/ov: threads 1``."""
    return "; ".join(
        f"{cell.name}: {', '.join(f'{name} {one.value}' for name, one in cell.options.items())}"
        for cell in report.results
        if cell.options
    )


def _cases(report: Report) -> str:
    return "; ".join(dict.fromkeys(map(case_text, _latencies(report)))) or SKIPPED


def _sessions(report: Report) -> str:
    ratios = [cell.speedup for cell in report.results if not isinstance(cell.speedup, Skipped)]
    if not ratios:
        return SKIPPED
    least = min(ratios, key=lambda ratio: ratio.confidence)
    covered = figures.percent(least.confidence)
    return f"{covered} covered, by {least.sessions} pairs of freshly opened sessions"


def _row(
    report: Report,
    cell: Cell,
    metric: str | None,
    interval: Callable[[float, figures.Ends, str], str],
) -> Row:
    if cell.status != "built":
        none = figures.NONE
        verdict = cell_verdict(report, cell)
        return Row(cell, cell.status, none, none, none, none, none, none, verdict)
    value, drop = _metric(cell, metric, interval)
    engine = cell.engine
    return Row(
        cell=cell,
        status=cell.status,
        metric=value,
        drop=drop,
        p50=_p50(cell),
        speedup=SKIPPED
        if isinstance(cell.speedup, Skipped)
        else interval(cell.speedup.value, cell.speedup.ci95, figures.TIMES),
        size=SKIPPED if isinstance(engine, Skipped) else figures.size(engine.bytes),
        int8=SKIPPED
        if isinstance(engine, Skipped) or isinstance(engine.int8_share, Skipped)
        else figures.percent(engine.int8_share),
        verdict=cell_verdict(report, cell),
    )


def _metric(
    cell: Cell, name: str | None, interval: Callable[[float, figures.Ends, str], str]
) -> tuple[str, str]:
    if name is None or isinstance(cell.metrics, Skipped) or name not in cell.metrics:
        return SKIPPED, SKIPPED
    metric = cell.metrics[name]
    value = SKIPPED if isinstance(metric.value, Skipped) else figures.metric(metric.value)
    if isinstance(metric.drop, Skipped):
        return value, SKIPPED
    return value, interval(metric.drop, metric.ci95, "")


def _p50(cell: Cell) -> str:
    if isinstance(cell.latency, Skipped) or not cell.latency:
        return SKIPPED
    p50 = cell.latency[0].p50_ms
    return SKIPPED if isinstance(p50, Skipped) else figures.number(p50)
