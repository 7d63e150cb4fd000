"""What a report comes to: its exit code, its headline, and a sentence for each check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optimc.core.errors import ExitCode
from optimc.report import figures
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from optimc.report.schema import Cell, Check, Report

Tone = Literal["good", "bad", "open", "plain"]


@dataclass(frozen=True)
class Headline:
    """The verdict in one word or two, and the sentence that says why."""

    tone: Tone
    title: str
    sentence: str


def exit_code(report: Report) -> ExitCode:
    """The exit code that a build with this report ends with."""
    if report.interrupted:
        return ExitCode.INTERRUPTED
    if any(cell.status == "failed" for cell in report.results):
        return ExitCode.CELL
    codes = {"failed": ExitCode.GATE_FAILED, "undecided": ExitCode.GATE_UNDECIDED}
    return codes.get(report.gate.verdict, ExitCode.OK)


def headline(report: Report) -> Headline:
    """The verdict of `report`; it agrees with `exit_code`."""
    total = len(report.results)
    built = sum(cell.status == "built" for cell in report.results)
    failed = [cell for cell in report.results if cell.status == "failed"]
    if report.interrupted:
        text = f"{built} of {total} cells were built before that; nothing here may ship."
        return Headline("bad", "Interrupted", text)
    if failed:
        return Headline("bad", f"{len(failed)} of {total} cells failed", _failed(report, failed))
    if report.gate.verdict == "passed":
        return Headline("good", "Gate passed", _passed(report))
    if report.gate.verdict in ("failed", "undecided"):
        tone: Tone = "bad" if report.gate.verdict == "failed" else "open"
        return Headline(tone, f"Gate {report.gate.verdict}", _not_passed(report))
    text = f"{built} of {total} cells built; the recipe sets no gate, so no limit was asked."
    return Headline("plain", "Built, no gate", text)


def shipped(report: Report) -> tuple[Cell, ...]:
    """The cells that the gate lets out: the best one, or each one that was named."""
    if report.gate.verdict != "passed":
        return ()
    if report.best is not None and report.gate.ship == "best":
        names = {report.best.name}
    else:
        names = {check.cell for check in report.gate.checks if check.required}
    return tuple(cell for cell in report.results if cell.name in names)


def check_title(check: Check) -> str:
    """The limit in words: ``top1 drop`` for ``drop.top1``, ``p99`` for ``latency_ms.p99``."""
    kind, _, which = check.name.partition(".")
    if kind == "drop" and which:
        return f"{which} drop"
    if kind == "metrics" and which:
        return which
    if kind == "latency_ms":
        return which or "latency"
    plain = {"throughput_per_s": "throughput", "size_mb": "size", "speedup": "speed-up"}
    return plain.get(check.name, check.name)


def check_unit(check: Check) -> str:
    """What follows the check's figures."""
    units = {"latency_ms": " ms", "throughput_per_s": " per s", "size_mb": " MB"}
    if check.name in ("speedup", "speedup_same_runtime"):
        return figures.TIMES
    return units.get(check.name.partition(".")[0], "")


def limit_text(check: Check) -> str:
    """``limit 0.005`` or ``at least 1.8× needed``."""
    limit = f"{figures.trimmed(check.limit, 6)}{check_unit(check)}"
    return f"limit {limit}" if check.bound == "at_most" else f"at least {limit} needed"


def margin(check: Check) -> float | None:
    """How far the worse end of the interval lies within the limit; None where not measured."""
    if isinstance(check.value, Skipped):
        return None
    ends = (check.value, check.value) if isinstance(check.ci95, Skipped) else check.ci95
    return check.limit - ends[1] if check.bound == "at_most" else ends[0] - check.limit


def check_message(check: Check) -> str:
    """One sentence: the cell, the verdict, the figure with its interval, what would decide."""
    head = f"{check.cell} {check.verdict}: {check_title(check)}"
    if isinstance(check.value, Skipped):
        return f"{head} was not measured ({check.value.skipped}), {limit_text(check)}"
    parts = [f"{head} {check_value(check)}", limit_text(check)]
    if not isinstance(check.samples, Skipped):
        parts.append(samples_text(check, check.samples))
    left = margin(check)
    if check.verdict == "passed" and left is not None:
        return f"{', '.join(parts)}; margin {figures.trimmed(left, 2)}{check_unit(check)}"
    decides = what_decides(check)
    return ", ".join(parts) + (f"; {decides}" if decides else "")


def check_value(check: Check) -> str:
    """The check's figure with its interval and unit, or why there is none."""
    if isinstance(check.value, Skipped):
        return f"not measured: {check.value.skipped}"
    return figures.estimate(check.value, check.ci95, check_unit(check))


def samples_text(check: Check, samples: int) -> str:
    """``n=500``, and in words where it is runs or sessions that are counted."""
    if check.name.startswith(("drop", "metrics")):
        return f"n={figures.count(samples)}"
    return f"{figures.count(samples)} {_counted(check)}"


def _counted(check: Check) -> str:
    if check.name.startswith(("drop", "metrics")):
        return "samples"
    return "session pairs" if check.name.startswith("speedup") else "runs"


def what_decides(check: Check) -> str:
    """What would decide an undecided check; empty for the others."""
    if check.verdict != "undecided" or check.samples_to_decide is None:
        return ""
    if isinstance(check.samples_to_decide, Skipped):
        return check.samples_to_decide.skipped
    return f"about {figures.count(check.samples_to_decide)} {_counted(check)} would decide"


def _failed(report: Report, failed: list[Cell]) -> str:
    first = f"{failed[0].name}: {(failed[0].reason or '').rstrip('.')}"
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    rest = {
        "passed": " The other cells passed the gate.",
        "failed": " The gate failed, too.",
        "undecided": " The gate is undecided, too.",
        "none": "",
    }[report.gate.verdict]
    return f"{first}{more}.{rest}"


def _passed(report: Report) -> str:
    cells = shipped(report)
    names = " and ".join(cell.name for cell in cells)
    among = f", the best of {report.gate.candidates}," if report.gate.candidates > 1 else ""
    checks = [c for c in report.gate.checks if c.required and c.cell in {x.name for x in cells}]
    verb = "ships" if len(cells) == 1 else "ship"
    if not cells:
        return "Every limit was met."
    if len(cells) > 1:
        return f"{names} {verb}: every limit was met, {len(checks)} checks in all."
    facts = [f"{check_title(c)} {check_value(c)} ({limit_text(c)})" for c in checks]
    return f"{names}{among} {verb}: {', '.join(facts)}."


def _not_passed(report: Report) -> str:
    verdict = report.gate.verdict
    to_blame = [c for c in report.gate.checks if c.required and c.verdict == verdict]
    if not to_blame:
        return "No cell meets every limit."
    more = f" (and {len(to_blame) - 1} more)" if len(to_blame) > 1 else ""
    return f"{check_message(to_blame[0])}{more}."
