"""Times the baseline's engine and the candidate's side by side on this machine, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from optimc.core.worker import Limits
from optimc.measure.latency import SamplingPlan, Timings
from optimc.measure.statistics import ALPHA, Interval
from optimc.pipeline.regression.pairs import Fresh
from optimc.pipeline.regression.time_checks import verdict_of_speed
from optimc.pipeline.turns import time_in_turns
from optimc.targets.client import EngineWorker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.core.targets import Engine

    Feeds = Mapping[str, NDArray[Any]]

BASELINE, CANDIDATE, AGAIN = "baseline", "candidate", "the baseline, a second time"


def speed_verdict(timings: Timings, margin: float, false_alarms: float) -> str:
    """Of the candidate, as the gate decides it."""
    return verdict_of_speed(
        timings.ratio(CANDIDATE, BASELINE),
        timings.ratio(CANDIDATE, BASELINE, error=false_alarms),
        margin,
    )


def time_side_by_side(
    workers: Mapping[str, EngineWorker],
    *,
    margin: float | None,
    false_alarms: float,
    seconds: float,
    progress: Callable[[float, str], None] | None = None,
    seed: int = 0,
) -> Timings:
    """Times `BASELINE`, `CANDIDATE` and, where it is there, `AGAIN`, until `margin` is decided.

    The workers' feeds are bound. Without a `margin` the time is used up. Raises SubjectFailed.
    """

    def decided(timings: Timings) -> bool:
        assert margin is not None
        return speed_verdict(timings, margin, false_alarms) != "undecided"

    return time_in_turns(
        workers,
        SamplingPlan(at_most_s=seconds),
        decided=decided if margin is not None else None,
        progress=None
        if progress is None
        else lambda rounds, s: progress(min(s / seconds, 1.0), f"{rounds} rounds"),
        seed=seed,
    )


def remeasured(
    candidate: Engine,
    baseline: Engine,
    feeds: tuple[Feeds, Feeds],
    *,
    margin: float | None,
    false_alarms: float,
    seconds: float,
    memory: bool,
    throughput: bool,
    progress: Callable[[float, str], None],
    limits: Limits,
    seed: int = 0,
) -> tuple[Fresh, Interval | str, float]:
    """What a pair gives here, the baseline against itself, and the seconds that timing took.

    `feeds` are the candidate's and the baseline's. Raises the errors of the engines' workers.
    """
    engines = {BASELINE: baseline, CANDIDATE: candidate, AGAIN: baseline}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(EngineWorker(engine, name=f"the {name}", limits=limits))
            for name, engine in engines.items()
        }
        for name, worker in workers.items():
            worker.bind(feeds[0] if name == CANDIDATE else feeds[1])
        timings = time_side_by_side(
            workers,
            margin=margin,
            false_alarms=false_alarms,
            seconds=seconds,
            progress=progress,
            seed=seed,
        )
    fresh = Fresh(
        speed=timings.ratio(CANDIDATE, BASELINE, error=ALPHA),
        speed_alarm=timings.ratio(CANDIDATE, BASELINE, error=false_alarms),
        latency=timings.latency(CANDIDATE),
        baseline_latency=timings.latency(BASELINE),
        memory_mb=_memory(engines, feeds, limits) if memory else ("not asked", "not asked"),
        throughput=_throughput(candidate, feeds[0], limits) if throughput else "not asked",
    )
    return fresh, timings.ratio(AGAIN, BASELINE), timings.seconds


def _memory(
    engines: Mapping[str, Engine], feeds: tuple[Feeds, Feeds], limits: Limits
) -> tuple[float | str, float | str]:
    """The middle one of three peaks of fresh processes, each in turns."""
    peaks: dict[str, list[float]] = {CANDIDATE: [], BASELINE: []}
    for _ in range(3):
        for name, found in peaks.items():
            with EngineWorker(engines[name], name=f"the {name}", limits=limits) as worker:
                worker.bind(feeds[0] if name == CANDIDATE else feeds[1])
                worker.time_block(10)
                found.append(worker.memory()["peak_mb"] or 0.0)
    middle = {name: sorted(found)[1] or "the system does not say" for name, found in peaks.items()}
    return middle[CANDIDATE], middle[BASELINE]


def _throughput(engine: Engine, feeds: Feeds, limits: Limits) -> Interval:
    from optimc.core.cpu import usable_cores
    from optimc.measure.throughput import measure_throughput
    from optimc.pipeline.cases import samples_in

    with EngineWorker(engine, name="the candidate", limits=limits) as worker:
        worker.bind(feeds)
        return measure_throughput(
            worker,
            threads=int(engine.manifest["session"].get("threads", 1)),
            cores=usable_cores(),
            batch=samples_in(engine.signature, feeds),
        ).per_s
