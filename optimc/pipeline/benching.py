"""`optimc bench`: measures engines and models alone, or several in turns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError, unknown_name
from optimc.core.targets import Engine
from optimc.core.worker import Limits
from optimc.measure.latency import SamplingPlan, Timings
from optimc.measure.statistics import Interval, Percentile
from optimc.pipeline.bench_inputs import check_feeds, read_feeds, seeded_feeds
from optimc.pipeline.timing import Case, Footprint, exclusive, footprint
from optimc.pipeline.turns import time_in_turns
from optimc.targets.client import EngineWorker, build_engine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.pipeline.cache import Cache

    Feeds = dict[str, NDArray[Any]]

FLOOR = "the first, a second time"
MOST_SUBJECTS = 16


@dataclass(frozen=True)
class BenchOptions:
    """What the command line says."""

    paths: Sequence[Path]
    case: Mapping[str, int]
    threads: int | None
    seconds: float
    runtime: str
    """Which runtime runs models that are no engines."""
    inputs: Path | None
    progress: Callable[[float, str], None]


def bench(options: BenchOptions) -> dict[str, Any]:
    """Everything that was measured, as plain data; the first subject is the baseline.

    Raises InputError for what is wrong, CellError and WorkerError as engines fail.
    """
    import psutil

    from optimc.pipeline.cache import Cache

    if len(options.paths) > MOST_SUBJECTS:
        raise InputError(f"{len(options.paths)} engines at once", fix=f"at most {MOST_SUBJECTS}")
    limits = Limits(0.8 * psutil.virtual_memory().total / 1e6)
    cache = Cache(enabled=True)
    try:
        with cache.workspace() as workspace:
            engines = _engines(options, workspace, limits)
            return _measured(options, engines, limits, cache)
    finally:
        cache.close()


def parse_case(text: str) -> dict[str, int]:
    """``batch=8,length=128``. Raises InputError for other texts."""
    found: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        name, _, size = item.partition("=")
        if not name or not re.fullmatch(r"[1-9][0-9]{0,8}", size):
            raise InputError(f"`{item}` is not DIM=SIZE", where="--case", fix="such as batch=8")
        found[name] = int(size)
    return found


def _engines(options: BenchOptions, workspace: Path, limits: Limits) -> dict[str, Engine]:
    found: dict[str, Engine] = {}
    for number, path in enumerate(options.paths):
        name = str(path)
        if name in found:
            name = f"{path} ({number + 1})"
        if (path / Engine.MANIFEST).is_file():
            found[name] = Engine.read(path)
        else:
            found[name] = _built(path, number, options, workspace, limits)
    return found


def _built(
    path: Path, number: int, options: BenchOptions, workspace: Path, limits: Limits
) -> Engine:
    """A model as the runtime takes it, without any pass."""
    from optimc.core.registry import target_class, target_names

    if not path.is_file():
        raise InputError(
            "no such file" if not path.exists() else "this folder holds no manifest.json",
            where=str(path),
            fix="name an ONNX file, or an engine's folder: DIR/artifacts/VARIANT/TARGET",
        )
    if options.runtime not in target_names():
        raise unknown_name("runtime", options.runtime, target_names(), where="--runtime")
    from optimc.frontends.onnx import load_onnx

    kind = target_class(options.runtime)
    missing = kind.unavailable()
    if missing is not None:
        raise InputError(missing.reason, where="--runtime", fix=missing.remedy)
    own = workspace / f"bench{number}"
    for part in ("ingest", "model", "engine"):
        (own / part).mkdir(parents=True)
    model = load_onnx(path, limits=limits, workspace=own / "ingest").model
    model.save(own / "model" / "stored")
    # Threads are set when engines are opened.
    target = kind.model_validate({"runtime": options.runtime})
    return build_engine(
        target, own / "model" / "stored", own / "engine", name=f"building {path}", limits=limits
    )


def _measured(
    options: BenchOptions, engines: Mapping[str, Engine], limits: Limits, cache: Cache
) -> dict[str, Any]:
    overrides = {} if options.threads is None else {"threads": options.threads}
    given = read_feeds(options.inputs) if options.inputs is not None else None
    feeds = {
        name: check_feeds(engine.signature, given, str(options.inputs))
        if given is not None
        else seeded_feeds(engine.signature, options.case)
        for name, engine in engines.items()
    }
    first = next(iter(engines))
    subjects = {**engines, FLOOR: engines[first]}
    with exclusive(cache.folder / "measuring.lock", options.progress):
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(
                    EngineWorker(engine, name=name, limits=limits, overrides=overrides)
                )
                for name, engine in subjects.items()
            }
            for name, worker in workers.items():
                worker.bind(feeds[first if name == FLOOR else name])
            timings = _timed(workers, options)
        footprints = {
            name: footprint(engine, _case(engine, feeds[name]), name, limits, overrides)
            for name, engine in engines.items()
        }
    return _told(options, engines, feeds, timings, footprints, first)


def _timed(workers: Mapping[str, EngineWorker], options: BenchOptions) -> Timings:
    return time_in_turns(
        workers,
        SamplingPlan(at_most_s=options.seconds),
        progress=lambda rounds, s: options.progress(
            min(s / options.seconds, 1.0), f"{rounds} rounds"
        ),
    )


def _case(engine: Engine, feeds: Feeds) -> Case:
    from optimc.pipeline.cases import samples_in

    return Case({}, [feeds], [feeds], batch=samples_in(engine.signature, feeds))


def _told(
    options: BenchOptions,
    engines: Mapping[str, Engine],
    feeds: Mapping[str, Feeds],
    timings: Timings,
    footprints: Mapping[str, Footprint],
    first: str,
) -> dict[str, Any]:
    from optimc import __version__
    from optimc.measure.machine import describe_machine

    machine = describe_machine()
    subjects = []
    for name, engine in engines.items():
        latency, own = timings.latency(name), footprints[name]
        threads = engine.manifest["session"].get("threads", 1)
        throughput = own.throughput
        subjects.append(
            {
                "name": name,
                "runtime": engine.runtime,
                "versions": dict(engine.manifest["versions"]),
                "threads": threads if options.threads is None else options.threads,
                "inputs": {n: [a.dtype.name, list(a.shape)] for n, a in feeds[name].items()},
                "bytes": engine.bytes,
                **{f"{q}_ms": _percentile(getattr(latency, q)) for q in ("p50", "p90", "p99")},
                "runs": latency.runs,
                "steady": latency.steady,
                "load_ms": sorted(latency.load_ms)[len(latency.load_ms) // 2],
                "first_result_ms": _plain(own.first_result_ms),
                "peak_memory_mb": _plain(own.peak_memory_mb),
                "steady_memory_mb": _plain(own.steady_memory_mb),
                "throughput_per_s": {"skipped": throughput}
                if isinstance(throughput, str)
                else {**_interval(throughput.per_s), "streams": throughput.streams},
                "speedup": None if name == first else _interval(timings.ratio(name, first)),
            }
        )
    return {
        "schema": 1,
        "optimc": __version__,
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "os": machine.os},
        "baseline": first,
        "seconds": timings.seconds,
        "sessions": timings.rounds,
        "noise_floor": _interval(timings.ratio(FLOOR, first)),
        "subjects": subjects,
    }


def _plain(value: float | str) -> Any:
    return {"skipped": value} if isinstance(value, str) else value


def _percentile(value: Percentile | str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"skipped": value}
    return {"value": value.ms, "ci95": list(value.ci95)}


def _interval(value: Interval | str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"skipped": value}
    return {"value": value.point, "ci95": list(value.ci95)}
