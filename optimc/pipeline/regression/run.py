"""One run of the gate: both sides, the policy, the checks, and one verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc import __version__
from optimc.pipeline.regression.checks import checks_of
from optimc.pipeline.regression.pairs import Fresh, Pair
from optimc.pipeline.regression.policy import (
    RELATIVE_DROP,
    SIZE_GROWTH,
    SLOWDOWN,
    Policy,
    load_policy,
)
from optimc.pipeline.regression.sides import Side, differences, paired_cells, read_side
from optimc.report.regression import PolicyReport, RegressionCheck, RegressionReport, SideReport
from optimc.report.values import CheckVerdict, Skipped

if TYPE_CHECKING:
    from optimc.measure.statistics import Interval
    from optimc.report.schema import Machine, Ratio

_SEVERITY: tuple[CheckVerdict, ...] = ("passed", "undecided", "failed")


@dataclass(frozen=True)
class GateOptions:
    """What the command line says of one gate."""

    candidate: Path
    baseline: Path
    command: str
    policy: Path | None = None
    remeasure: bool = False
    inputs: Path | None = None
    """An npz archive with the inputs to time on."""
    progress: Callable[[float, str], None] = lambda done, text: None


@dataclass
class _Remeasured:
    """What was spent on measuring again, and what the baseline against itself gave."""

    seconds: float = 0.0
    floor: Interval | str = "nothing was measured here"
    found: dict[str, Fresh] = field(default_factory=dict)


def run_gate(options: GateOptions) -> RegressionReport:
    """Judges. Raises InputError for what is wrong, and the errors of engines that are run."""
    candidate, baseline = read_side(options.candidate), read_side(options.baseline)
    sha256: str | None = None
    if options.policy is not None:
        policy, sha256 = load_policy(options.policy)
    else:
        policy = default_policy(candidate, baseline)
    pairs = paired_cells(candidate, baseline, policy.cells)
    records = (candidate.records(), baseline.records())
    differ = differences(candidate, baseline)
    again = _Remeasured()
    checks = [] if sha256 else _own_gate(candidate)
    for cell, against in pairs:
        pair = Pair(candidate, baseline, cell, against, policy, differ, records)
        if options.remeasure and _both_built(pair):
            pair = replace(pair, fresh=_measure(pair, options, again))
        checks += checks_of(pair)
    return RegressionReport(
        optimc=__version__,
        created=_now(),
        command=options.command,
        candidate=_side(candidate),
        baseline=_side(baseline),
        policy=_policy(options.policy, sha256, policy),
        remeasured=bool(again.found),
        machine=_machine() if again.found else Skipped(skipped="nothing was measured here"),
        differences=differ,
        noise_floor=_floor(again.floor),
        seconds=again.seconds,
        checks=tuple(checks),
        verdict=max((check.verdict for check in checks), key=_SEVERITY.index, default="undecided"),
        notes=tuple(_notes(candidate, baseline, sha256, options)),
    )


def default_policy(candidate: Side, baseline: Side) -> Policy:
    """The limits without a policy file.

    Drops as the baseline's recipe allows them from the source, else 1 % of the baseline's value:
    the baseline's, because the candidate's recipe may be part of what is judged. 5 % slower and
    10 % larger at most.
    """
    drops: dict[str, float] = {}
    if baseline.report is not None and candidate.report is not None:
        for cell in baseline.report.results:
            for name, metric in ({} if isinstance(cell.metrics, Skipped) else cell.metrics).items():
                value = 0.0 if isinstance(metric.source, Skipped) else abs(metric.source)
                drops.setdefault(name, RELATIVE_DROP * value)
        for check in baseline.report.gate.checks:
            if check.name.startswith("drop."):
                drops[check.name.removeprefix("drop.")] = check.limit
    return Policy(drop=drops, slowdown=SLOWDOWN, size_growth=SIZE_GROWTH)


def _own_gate(candidate: Side) -> list[RegressionCheck]:
    """The recipe's gate, as the candidate's build judged it: it counts where no policy does."""
    report = candidate.report
    if report is None or (report.gate.verdict == "none" and not report.interrupted):
        return []
    from optimc.report.verdict import headline

    verdict: CheckVerdict = "passed" if report.gate.verdict == "passed" else "failed"
    if report.gate.verdict == "undecided":
        verdict = "undecided"
    if report.interrupted:
        verdict = "failed"
    text = headline(report).sentence
    none = Skipped(skipped="the recipe's limits are in the candidate's report")
    return [
        RegressionCheck(
            name="recipe_gate",
            cell=report.gate.ship or "best",
            against="the source",
            bound="at_most",
            limit=none,
            value=none,
            ci95=none,
            candidate=none,
            baseline=none,
            verdict=verdict,
            samples=none,
            method=text,
            decides="what the candidate's report says" if verdict == "undecided" else None,
        )
    ]


def _both_built(pair: Pair) -> bool:
    return all(
        side.report is None or (name in side.cells() and side.cells()[name].status == "built")
        for side, name in ((pair.candidate, pair.cell), (pair.baseline, pair.against))
    )


def _measure(pair: Pair, options: GateOptions, again: _Remeasured) -> Fresh | None:
    """The pair's engines side by side, where the policy asks for anything that is measured."""
    policy = pair.policy
    timed = policy.slowdown is not None or policy.latency_ms
    memory = policy.memory_mb is not None or policy.memory_growth is not None
    throughput = policy.throughput_per_s is not None
    if not (timed or memory or throughput):
        return None
    from optimc.pipeline.cache import Cache
    from optimc.pipeline.regression.remeasure import remeasured
    from optimc.pipeline.timing import exclusive

    engines = pair.candidate.engine(pair.cell), pair.baseline.engine(pair.against)
    feeds = _feeds(pair, engines, options.inputs)
    cache = Cache(enabled=True)
    try:
        with exclusive(cache.folder / "measuring.lock", options.progress):
            fresh, floor, seconds = remeasured(
                *engines,
                feeds,
                margin=policy.slowdown if not policy.latency_ms else None,
                false_alarms=policy.false_alarms,
                seconds=policy.at_most,
                memory=memory,
                throughput=throughput,
                progress=options.progress,
                limits=_limits(),
            )
    finally:
        cache.close()
    again.seconds += seconds
    again.floor = floor
    again.found[pair.cell] = fresh
    return fresh


def _limits() -> Any:
    import psutil

    from optimc.core.worker import Limits

    return Limits(0.8 * psutil.virtual_memory().total / 1e6)


def _feeds(pair: Pair, engines: Any, inputs: Path | None) -> tuple[Any, Any]:
    """The candidate's and the baseline's inputs: the same where they take the same."""
    from optimc.pipeline.bench_inputs import check_feeds, read_feeds, seeded_feeds

    if inputs is not None:
        given = read_feeds(inputs)
        found = [check_feeds(engine.signature, given, str(inputs)) for engine in engines]
        return found[0], found[1]
    made = []
    for engine, side in zip(engines, (pair.candidate, pair.baseline), strict=True):
        report = side.report or pair.candidate.report or pair.baseline.report
        known = set(engine.signature.symbols)
        sizes = {}
        if report is not None:
            sizes = {n: dim.typical for n, dim in report.source.dims.items() if n in known}
            sizes |= {n: size for n, size in _first_case(side, pair).items() if n in known}
        declared = report.source.inputs if report is not None else {}
        made.append(seeded_feeds(engine.signature, sizes, declared))
    return made[0], made[1]


def _first_case(side: Side, pair: Pair) -> dict[str, int]:
    """The sizes that the baseline was timed on: both are timed on these."""
    cell = pair.theirs or pair.ours
    if cell is None or isinstance(cell.latency, Skipped) or not cell.latency:
        return {}
    return dict(cell.latency[0].case)


def _policy(path: Path | None, sha256: str | None, policy: Policy) -> PolicyReport:
    missing = Skipped(skipped="no --policy: the recipe's gate, and the limits by default")
    return PolicyReport(
        path=str(path) if path is not None else missing,
        sha256=sha256 if sha256 is not None else missing,
        limits=dict(policy.limits),
    )


def _side(side: Side) -> SideReport:
    report = side.report
    none = Skipped(skipped="an engine without a report")
    return SideReport(
        path=str(side.path),
        kind=side.kind,
        optimc=report.optimc if report else none,
        created=report.created if report else none,
        machine=report.machine if report else none,
    )


def _notes(candidate: Side, baseline: Side, sha256: str | None, options: GateOptions) -> list[str]:
    notes = []
    report = candidate.report
    if sha256 and report is not None and report.gate.verdict not in ("none", "passed"):
        notes.append(
            f"the recipe's own gate says {report.gate.verdict}: the policy file wins over it"
        )
    if report is not None:
        failed = [cell.name for cell in report.results if cell.status == "failed"]
        if failed:
            notes.append(f"cells that failed in the candidate: {', '.join(failed)}")
    if differences(candidate, baseline) and not options.remeasure:
        notes.append(
            "times were not compared: the reports are of different conditions; --remeasure times "
            "both here, side by side"
        )
    return notes


def _floor(value: Interval | str) -> Ratio | Skipped:
    from optimc.report.schema import Ratio

    if isinstance(value, str):
        return Skipped(skipped=value)
    return Ratio(value=value.point, ci95=value.ci95, confidence=0.95, sessions=value.n)


def _machine() -> Machine:
    from optimc.measure.machine import describe_machine
    from optimc.report.schema import Machine

    found = describe_machine()
    names = ("cpu", "architecture", "cores", "features", "memory_mb", "os")
    return Machine(**{name: getattr(found, name) for name in names})


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
