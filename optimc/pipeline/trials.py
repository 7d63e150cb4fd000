"""Which of several engines of one cell is the fastest here: a short trial, in turns.

The first engine is the usual one, and stays unless a later one is clearly faster: its interval lies
above 1. A trial that is not decided when its time is up is as good as a tie. What it found is kept
in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.digest import digest_of
from optimc.measure.latency import SamplingPlan, Timings
from optimc.measure.statistics import Interval
from optimc.pipeline.timing import exclusive
from optimc.pipeline.turns import time_in_turns
from optimc.pipeline.versions import compiler_digest
from optimc.targets.client import EngineWorker

if TYPE_CHECKING:
    from optimc.core.targets import Engine
    from optimc.pipeline.build import Build
    from optimc.pipeline.timing import Case

_FAST = "times as fast"


@dataclass(frozen=True)
class Trial:
    """What a trial found."""

    taken: str
    """The name of the engine that stays."""
    told: Mapping[str, str]
    """Of each but the first: `1.31 [1.27, 1.35] times as fast`, or why that is not known."""

    def told_against(self, other: str, first: str) -> str:
        """The same as a phrase, with what the first engine is called."""
        told = self.told[other]
        return f"{told} as {first}" if told.endswith(_FAST) else told


def fastest(build: Build, name: str, engines: Mapping[str, Engine], most_seconds: float) -> Trial:
    """The trial of `engines` of the cell `name` on the first benchmark case.

    From the cache where the same engines were tried on the same kind of machine. Raises
    OptimcError where a worker fails: then nothing is kept.
    """
    from optimc.measure.machine import describe_machine
    from optimc.pipeline.cases import benchmark_cases

    case = benchmark_cases(build)[0]
    seconds = min(build.recipe.benchmark.at_most, most_seconds)
    machine = describe_machine()
    key = digest_of(
        ["trial", [[n, e.digest, e.manifest["session"]] for n, e in engines.items()]],
        [case.name, dict(case.sizes), build.recipe.seed, seconds, compiler_digest()],
        [machine.cpu, machine.cores, list(machine.features)],
        [dict(engine.manifest["versions"]) for engine in engines.values()],
    )
    entry = build.cache.get("choice", key)
    if entry is None:

        def write(folder: Path) -> None:
            trial = _trial(build, name, engines, case, seconds)
            (folder / "choice.json").write_text(json.dumps(asdict(trial)), encoding="utf-8")

        entry = build.cache.put("choice", key, write)
    return Trial(**json.loads((entry / "choice.json").read_text(encoding="utf-8")))


def _trial(
    build: Build, name: str, engines: Mapping[str, Engine], case: Case, seconds: float
) -> Trial:
    """Times the engines in turns until it is clear which is the fastest, or the time is up."""
    names = tuple(engines)
    lock = build.cache.folder / "measuring.lock"
    with exclusive(lock, build.observer.on_share), ExitStack() as stack:
        workers = {
            key: stack.enter_context(
                EngineWorker(engine, name=f"the engine {name} ({key})", limits=build.limits)
            )
            for key, engine in engines.items()
        }
        for worker in workers.values():
            worker.bind_all(case.feeds)
        timings = time_in_turns(
            workers,
            SamplingPlan(at_most_s=seconds),
            feeds=len(case.feeds),
            decided=lambda sampled: taken(sampled, names)[1],
            progress=lambda rounds, s: build.observer.on_share(min(s / seconds, 1.0), name),
            seed=build.recipe.seed,
        )
    told = {other: _told(timings.ratio(other, names[0])) for other in names[1:]}
    return Trial(taken(timings, names)[0], told)


def taken(timings: Timings, names: Sequence[str]) -> tuple[str, bool]:
    """The subject that stays, and whether that is clear.

    A later one of `names` is taken where it is faster than what is taken so far, with 95 %
    confidence (one-sided).
    """
    current, clear = names[0], True
    for later in names[1:]:
        ratio = timings.ratio(later, current)
        if isinstance(ratio, str):
            clear = False
        elif ratio.lower > 1.0:
            current = later
        elif ratio.upper >= 1.0:
            clear = False
    return current, clear


def _told(ratio: Interval | str) -> str:
    if isinstance(ratio, str):
        return ratio
    low, high = ratio.ci95
    return f"{ratio.point:.2f} [{low:.2f}, {high:.2f}] {_FAST}"
