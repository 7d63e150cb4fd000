"""Latency of all cells of a build, in turns with the source, alone on the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.targets import Engine
from optimc.core.worker import Limits
from optimc.measure.latency import Latency, SamplingPlan, SubjectFailed, Timings, measure
from optimc.measure.statistics import Interval
from optimc.pipeline.parallel import run_side_by_side
from optimc.targets.client import EngineWorker, exchange_processes

if TYPE_CHECKING:
    from numpy.typing import NDArray

SOURCE = "source on ONNX Runtime"
AGAIN = "source on ONNX Runtime, a second time"
_MEMORY_RUNS = 3


@dataclass(frozen=True)
class CellTiming:
    """What was measured of one engine on one case; a string is why there is nothing."""

    latency: Latency
    speedup: Interval | str
    speedup_same_runtime: Interval | str
    throughput_per_s: float | str


@dataclass
class BuildTimings:
    """Timings by case and cell; memory and load time by cell."""

    cases: dict[str, dict[str, CellTiming]] = field(default_factory=dict)
    source: dict[str, Latency] = field(default_factory=dict)
    noise_floor: Interval | str = "not measured"
    load_ms: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: dict[str, float | str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """By cell: why its worker failed while it was measured."""


@dataclass(frozen=True)
class Case:
    """A benchmark case: sizes of the dims, and inputs of these sizes for engines and references."""

    sizes: Mapping[str, int]
    feeds: Mapping[str, NDArray[Any]]
    """What the cells' engines take."""
    reference: Mapping[str, NDArray[Any]]
    """What the source takes, which may lack the preprocessing that the engines have in them."""


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
    ) -> BuildTimings:
        """Times `cells` and `references` (which hold `SOURCE`) on every case.

        `decided` is asked on the first case whether the gate needs more. A cell whose worker fails
        is left out from then on and named in `failures`.
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
        alive = [name for name in cells if name not in result.failures]
        run_side_by_side(
            alive, lambda name: self._memory(result, name, cells[name], cases[0].feeds)
        )
        return result

    def _memory(
        self,
        result: BuildTimings,
        name: str,
        subject: Subject,
        feeds: Mapping[str, NDArray[Any]],
    ) -> None:
        """The peak of a fresh process: one that opened many sessions keeps what they left."""
        with EngineWorker(subject.engine, name=f"the engine {name}", limits=self.limits) as worker:
            worker.bind(feeds)
            worker.time_block(_MEMORY_RUNS)
            peak = worker.memory()["peak_mb"]
        result.peak_memory_mb[name] = peak or "the system does not say"

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
        case = case_name(asked.sizes)
        while True:
            alive = {name: w for name, w in workers.items() if name not in result.failures}
            for name, worker in alive.items():
                worker.bind(asked.feeds if name in cells else asked.reference)
            judged = {name: cell for name, cell in cells.items() if name in alive}

            def question(timings: Timings, judged: Mapping[str, Subject] = judged) -> bool:
                return decided is not None and decided(_cells(timings, judged))

            exchange = partial(exchange_processes, tuple(alive.values()))

            try:
                timings = measure(
                    alive,
                    SamplingPlan(at_most_s=self.seconds),
                    decided=question if decided else None,
                    progress=lambda rounds, s: self.progress(
                        min(s / self.seconds, 1.0), f"{case or 'latency'}, {rounds} rounds"
                    ),
                    before_round=exchange,
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
            throughput_per_s="needs concurrent requests, which are not measured yet",
        )
        for name, subject in cells.items()
    }


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
