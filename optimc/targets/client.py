"""Engines in worker processes of their own, one each: a crash, a leak or a hang stays there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self, cast

from optimc.core.worker import Limits, Worker

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from optimc.core.targets import Arrays, DimSizes, Engine, Target, TimedLayer

ENVIRONMENT = {
    # Thread pools of numpy's BLAS and of OpenMP would stand beside the runtime's own.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def build_engine(
    target: Target,
    model_folder: Path,
    folder: Path,
    *,
    name: str,
    limits: Limits | None = None,
    seed: int = 0,
    dims: Mapping[str, DimSizes] | None = None,
    timings: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
    then: Callable[[OpenEngine], None] | None = None,
) -> Engine:
    """Builds the stored model in `model_folder` into the empty `folder`, in a worker.

    `then` is called with the engine where the build left it open, as long as the worker lives; what
    it raises is raised. `timings` is a file that a target which `keeps_timings` starts from, where
    it is there, and leaves what it knows in. Raises CellError where the runtime refuses,
    WorkerError where the worker dies, hangs or runs out of memory. Then the folder may hold parts:
    use `optimc.core.files.atomic_folder`.
    """
    from optimc.core.targets import Engine

    with Worker("optimc.targets.service:BuildService", name=name, limits=limits) as worker:
        worker.on_progress = progress
        built = worker.call(
            "build",
            runtime=target.runtime,
            options=target.model_dump(mode="json"),
            model_folder=str(model_folder),
            out_folder=str(folder),
            seed=seed,
            dims={name: asdict(sizes) for name, sizes in (dims or {}).items()},
            timings=str(timings) if timings else "",
        )
        engine = Engine.read(folder)
        if then is not None and built.data["opened"]:
            worker.on_progress = None
            then(OpenEngine(engine, worker))
    return engine


@dataclass(frozen=True)
class OpenEngine:
    """An engine in the process that built it, opened from its finished files.

    The methods are those of `EngineWorker`.
    """

    engine: Engine
    worker: Worker

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs for `feeds`, by name."""
        from optimc.targets.feeds import in_its_types

        return self.worker.call("run", in_its_types(self.engine.signature, feeds)).arrays

    def precisions(self) -> dict[str, Any]:
        """What the runtime really runs, see `optimc.targets.layers.summary`."""
        return dict(self.worker.call("precisions").data)


class EngineWorker:
    """An engine in a worker process. A context manager.

    The methods raise the errors of `Worker.call`: CellError where the runtime fails, InputError
    for wrong feeds, WorkerError where the process died, hung or ran out of memory; after that the
    worker is gone.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        limits: Limits | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """`overrides` replace settings of the manifest's session, such as ``threads``."""
        self.name = name
        self.runtime = engine.runtime
        self._engine = engine
        self._opened: dict[str, Any] = {
            "folder": str(engine.folder.resolve()),
            "overrides": dict(overrides or {}),
        }
        self._worker = Worker(
            "optimc.targets.service:EngineService",
            self._opened,
            name=name,
            limits=limits,
            environment=ENVIRONMENT,
        )
        self._feeds: Sequence[Arrays] = ()
        self._moved = False
        """Whether another engine may be open in the process, with its feeds."""

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._worker.pid

    @property
    def threads(self) -> int:
        """How many threads a run takes; 0 where it is as many as there are cores, or unknown."""
        session = {**self._engine.manifest["session"], **self._opened["overrides"]}
        threads = session.get("threads")
        return threads if isinstance(threads, int) else 0

    def reopen(self) -> float:
        """Opens a fresh session, closing the one before, and returns how long that took, in ms.

        What was bound is bound again. A session is opened by the other methods, too, where there
        is none.
        """
        from optimc.targets.service import numbered

        feeds = numbered(self._feeds) if self._moved else None
        reply = self._worker.call("open", feeds, **self._opened, moved=self._moved)
        self._moved = False
        return float(reply.data["load_ms"])

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs for `feeds`, by name."""
        return self._settled().call("run", self._typed(feeds)).arrays

    def bind(self, feeds: Arrays) -> None:
        """Puts `feeds` in place for `time_block`."""
        self.bind_all([feeds])

    def bind_all(self, feeds: Sequence[Arrays]) -> None:
        """Puts several feeds in place; `choose` says which are run, at first the first ones."""
        from optimc.targets.service import numbered

        typed = [self._typed(one) for one in feeds]
        self._feeds = ()
        self._settled().call("bind", numbered(typed))
        self._feeds = [dict(one) for one in typed]

    def choose(self, index: int) -> None:
        """Turns to the feeds with this number (modulo their count)."""
        self._settled().call("choose", index=index)

    def throughput(self, streams: int, seconds: float) -> tuple[int, float]:
        """Runs in `streams` fresh sessions at once on what is bound, a thread each, and the
        seconds that they took; at least one run a stream."""
        data = self._settled().call("throughput", streams=streams, seconds=seconds).data
        return int(data["runs"]), float(data["spent_s"])

    def _typed(self, feeds: Arrays) -> Arrays:
        """The feeds as float16 where the engine takes that and they are float32."""
        from optimc.targets.feeds import in_its_types

        return in_its_types(self._engine.signature, feeds)

    def time_block(self, runs: int) -> NDArray[np.int64]:
        """Times `runs` runs on what is bound; nanoseconds [runs]."""
        reply = self._settled().call("time_block", runs=runs)
        return cast("NDArray[np.int64]", reply.arrays["ns"])

    def device_times(self, runs: int) -> dict[str, Any]:
        """See `optimc.targets.service.EngineService.device_times`."""
        return dict(self._settled().call("device_times", runs=runs).data)

    def first_result_ms(self, feeds: Arrays) -> float:
        """How long a fresh session takes from opening to its first outputs, in ms.

        The runtime's libraries are loaded already. What was bound is not any more.
        """
        self._feeds = ()
        reply = self._settled().call("first_result", self._typed(feeds))
        return float(reply.data["first_result_ms"])

    def memory(self) -> dict[str, float | None]:
        """The process's resident memory in MB: `current_mb`, `peak_mb`, and `baseline_mb`, what it
        took before an engine was opened; None where the system does not say."""
        return dict(self._worker.call("memory").data)

    def precisions(self) -> dict[str, Any]:
        """What the runtime really runs, see `optimc.targets.layers.summary`."""
        return dict(self._settled().call("precisions").data)

    def profile(self, feeds: Arrays, warmup: int, runs: int) -> tuple[TimedLayer, ...] | None:
        """The time of each layer, see `optimc.core.targets.Session.profile`."""
        from optimc.core.targets import TimedLayer

        reply = self._settled().call("profile", self._typed(feeds), warmup=warmup, runs=runs)
        layers = reply.data["layers"]
        if layers is None:
            return None
        return tuple(TimedLayer(**{**layer, "parts": tuple(layer["parts"])}) for layer in layers)

    def _settled(self) -> Worker:
        """The process, with this engine in it."""
        if self._moved:
            self.reopen()
        return self._worker

    def close(self) -> None:
        """Ends the process."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def exchange_processes(workers: Sequence[EngineWorker], rng: np.random.Generator) -> None:
    """Deals the processes of `workers` out anew among those of one runtime, and opens nothing.

    Where a process lies in memory makes it a per cent or two faster or slower for as long as it
    lives. An engine that stays in one process takes that for its own: an interval of the ratio of
    two engines is then narrow and beside the truth. What was bound is bound again.
    """
    for runtime in sorted({worker.runtime for worker in workers}):
        group = [worker for worker in workers if worker.runtime == runtime]
        processes = [worker._worker for worker in group]
        for worker, index in zip(group, rng.permutation(len(group)), strict=True):
            worker._worker = processes[index]
            worker._worker.name = worker.name
            worker._moved = True
