"""Latency of all cells of a build, in turns with the source, alone on the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.cpu import usable_cores
from optimc.core.errors import OptimcError
from optimc.core.targets import Engine
from optimc.core.worker import Limits
from optimc.measure.latency import Latency, SamplingPlan, SubjectFailed, Timings
from optimc.measure.statistics import Interval
from optimc.measure.throughput import Throughput, measure_throughput
from optimc.pipeline.turns import time_in_turns
from optimc.targets.client import EngineWorker

if TYPE_CHECKING:
    from numpy.typing import NDArray

SOURCE = "source on ONNX Runtime"
DATA = "data"
"""What the case is called that runs on samples of the evaluation data."""
AGAIN = "source on ONNX Runtime, a second time"
_STEADY_SHARE = 0.01
_MOST_BATCHES = 10
_BATCH_RUNS = 3


@dataclass(frozen=True)
class CellTiming:
    """What was measured of one engine on one case; a string is why there is nothing."""

    latency: Latency
    speedup: Interval | str
    speedup_same_runtime: Interval | str


@dataclass(frozen=True)
class Footprint:
    """What one engine takes, each in a fresh process; a string is why there is nothing."""

    first_result_ms: float | str
    peak_memory_mb: float | str
    steady_memory_mb: float | str
    throughput: Throughput | str
    """On the first case."""


@dataclass
class BuildTimings:
    """Timings by case and cell; load times and footprints by cell."""

    cases: dict[str, dict[str, CellTiming]] = field(default_factory=dict)
    source: dict[str, Latency] = field(default_factory=dict)
    source_threads: int = 1
    """With how many threads the source ran: as many as the first cell."""
    noise_floor: Interval | str = "not measured"
    load_ms: dict[str, float] = field(default_factory=dict)
    footprints: dict[str, Footprint] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """By cell: why its worker failed while it was measured."""


@dataclass(frozen=True)
class Case:
    """A benchmark case: sizes of the dims, and inputs for engines and references."""

    sizes: Mapping[str, int]
    feeds: Sequence[Mapping[str, NDArray[Any]]]
    """What the cells' engines take: one feed, or several that sweeps take in turns."""
    reference: Sequence[Mapping[str, NDArray[Any]]]
    """What the source takes, which may lack the preprocessing that the engines have in them."""
    from_data: bool = False
    """Whether the feeds are samples of the evaluation data."""
    batch: int = 1
    """Samples in one run."""

    @property
    def name(self) -> str:
        """``batch=1,length=128``, or `DATA`."""
        return DATA if self.from_data else case_name(self.sizes)


@dataclass(frozen=True)
class Subject:
    """An engine to be timed: a cell's, or the source on the cell's target."""

    engine: Engine
    against: str
    """The reference that is the source on ONNX Runtime, with this cell's threads."""
    same_runtime: str
    """The reference that is the source on this cell's target."""


@dataclass
class Timer:
    """Times engines of one build; `seconds` is the most for all of them together, a case."""

    limits: Limits
    seconds: float
    seed: int
    lock: Path
    """Held while anything is timed: two builds at once would disturb each other."""
    progress: Callable[[float, str], None]

    def run(
        self,
        cells: Mapping[str, Subject],
        references: Mapping[str, Engine],
        cases: Sequence[Case],
        decided: Callable[[Mapping[str, CellTiming]], bool] | None,
        *,
        footprints: bool = True,
    ) -> BuildTimings:
        """Times `cells` and `references` (which hold `SOURCE`) on every case.

        `decided` is asked on the first case whether the gate needs more. A cell whose worker fails
        is left out from then on and named in `failures`. `footprints` asks for cold start, memory
        and throughput, too.
        """
        result = BuildTimings()
        with exclusive(self.lock, self.progress), ExitStack() as stack:
            workers = {
                name: stack.enter_context(
                    EngineWorker(engine, name=f"the engine {name}", limits=self.limits)
                )
                for name, engine in self._engines(cells, references).items()
            }
            for index, case in enumerate(cases):
                question = decided if index == 0 else None
                self._case(result, case, cells, workers, question)
            for worker in workers.values():
                worker.close()
            for name in [n for n in cells if footprints and n not in result.failures]:
                self.progress(1.0, f"memory and throughput of {name}")
                try:
                    found = footprint(cells[name].engine, cases[0], name, self.limits)
                    result.footprints[name] = found
                except OptimcError as error:
                    result.failures[name] = str(error)
        return result

    def _engines(
        self, cells: Mapping[str, Subject], references: Mapping[str, Engine]
    ) -> dict[str, Engine]:
        engines = dict(references)
        engines[AGAIN] = references[SOURCE]
        engines.update({name: subject.engine for name, subject in cells.items()})
        return engines

    def _case(
        self,
        result: BuildTimings,
        asked: Case,
        cells: Mapping[str, Subject],
        workers: Mapping[str, EngineWorker],
        decided: Callable[[Mapping[str, CellTiming]], bool] | None,
    ) -> None:
        case = asked.name
        while True:
            alive = {name: w for name, w in workers.items() if name not in result.failures}
            for name, worker in alive.items():
                worker.bind_all(asked.feeds if name in cells else asked.reference)
            judged = {name: cell for name, cell in cells.items() if name in alive}

            def question(timings: Timings, judged: Mapping[str, Subject] = judged) -> bool:
                return decided is not None and decided(_cells(timings, judged))

            try:
                timings = time_in_turns(
                    alive,
                    SamplingPlan(at_most_s=self.seconds),
                    feeds=len(asked.feeds),
                    decided=question if decided else None,
                    progress=lambda rounds, s: self.progress(
                        min(s / self.seconds, 1.0), f"{case or 'latency'}, {rounds} rounds"
                    ),
                    seed=self.seed,
                )
                break
            except SubjectFailed as error:
                if error.subject not in cells:
                    raise
                result.failures[error.subject] = str(error)
        result.cases[case] = _cells(timings, judged)
        result.source[case] = timings.latency(SOURCE)
        if isinstance(result.noise_floor, str):
            result.noise_floor = timings.ratio(AGAIN, SOURCE)
        for name in alive:
            result.load_ms.setdefault(name, _median(timings.load_ms[name]))


def _cells(timings: Timings, cells: Mapping[str, Subject]) -> dict[str, CellTiming]:
    return {
        name: CellTiming(
            latency=timings.latency(name),
            speedup=timings.ratio(name, subject.against),
            speedup_same_runtime=timings.ratio(name, subject.same_runtime),
        )
        for name, subject in cells.items()
    }


def footprint(
    engine: Engine,
    case: Case,
    name: str,
    limits: Limits | None,
    overrides: Mapping[str, Any] | None = None,
) -> Footprint:
    """Cold start, memory and throughput of `engine`; nothing else of ours may run meanwhile.

    Memory is that of a fresh process: one that opened many sessions keeps what they left. Raises
    the errors of the engine's worker.
    """

    def worker() -> EngineWorker:
        return EngineWorker(engine, name=f"the engine {name}", limits=limits, overrides=overrides)

    with worker() as fresh:
        first = fresh.first_result_ms(case.feeds[0])
        fresh.bind_all(case.feeds)
        steady = _steady_memory(fresh)
        peak = fresh.memory()["peak_mb"]
    unknown = "the system does not say"
    settings = {**engine.manifest["session"], **(overrides or {})}
    with worker() as several:
        several.bind_all(case.feeds)
        throughput = measure_throughput(
            several,
            threads=int(settings.get("threads", 1)),
            cores=usable_cores(),
            batch=case.batch,
        )
    return Footprint(first, peak or unknown, steady or unknown, throughput)


def _steady_memory(worker: EngineWorker) -> float | None:
    """Resident MB after runs on every feed, when it no longer grows."""
    before = 0.0
    for batch in range(_MOST_BATCHES):
        worker.choose(batch)
        worker.time_block(_BATCH_RUNS)
        current = worker.memory()["current_mb"]
        if current is None or current <= before * (1 + _STEADY_SHARE):
            return current
        before = current
    return before


def case_name(sizes: Mapping[str, int]) -> str:
    """What a benchmark case is called: ``batch=1,length=128``."""
    return ",".join(f"{name}={size}" for name, size in sizes.items())


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


@contextmanager
def exclusive(path: Path, progress: Callable[[float, str], None]) -> Iterator[None]:
    """Holds the machine-wide lock of measuring; waits, and says so, while another build has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(0.0, "waiting until another build has measured")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
