"""The worker's side of building and running engines, see `optimc.targets.client`."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError, InputError
from optimc.core.memory import give_back, memory_use
from optimc.core.model import load_model
from optimc.core.registry import target_class
from optimc.core.targets import BuildContext, ClockedBound, DimSizes, Engine
from optimc.targets.layers import summary

if TYPE_CHECKING:
    from optimc.core.targets import Arrays, Bound, Session

Answer = tuple[Any, dict[str, Any]]
"""What a method of a service returns: plain data and arrays."""


class BuildService:
    """Builds one engine, and runs it where the build left it open."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def build(
        self,
        arrays: Arrays,
        runtime: str,
        options: dict[str, Any],
        model_folder: str,
        out_folder: str,
        seed: int = 0,
        dims: dict[str, dict[str, int]] | None = None,
        timings: str = "",
    ) -> Answer:
        """Makes the engine of the target `runtime` with `options` (plain data).

        The model is a stored one; the engine goes into the empty folder `out_folder`. `opened` says
        whether `run` and `precisions` may be asked. Raises CellError where the runtime refuses,
        InputError where nothing more can be written, and MemoryError where the runtime runs out of
        memory.
        """
        # By way of JSON text, which strict fields take lists for tuples from.
        target = target_class(runtime).model_validate_json(json.dumps(options))
        out = Path(out_folder)
        try:
            with tempfile.TemporaryDirectory() as workspace:
                sizes = {name: DimSizes(**dim) for name, dim in (dims or {}).items()}
                context = BuildContext(workspace=Path(workspace), seed=seed, dims=sizes)
                known = Path(timings) if timings else None
                if known is not None and known.is_file():
                    context.timing_cache = known.read_bytes()
                target.build(load_model(Path(model_folder)), out, context)
                if known is not None:
                    known.write_bytes(context.timing_cache)
        except OSError as error:
            raise _unwritable(out, error.strerror or str(error)) from error
        except CellError as error:
            # A runtime that cannot write says so in words of its own, or says something else.
            stored = Path(model_folder).iterdir()
            if shutil.disk_usage(out).free < sum(file.stat().st_size for file in stored):
                raise _unwritable(out, os.strerror(errno.ENOSPC)) from error
            raise
        self._session = context.opened
        return {"opened": self._session is not None}, {}

    def run(self, arrays: Arrays) -> Answer:
        """The outputs for the feeds `arrays`."""
        return _run(self._opened(), arrays)

    def precisions(self, arrays: Arrays) -> Answer:
        """See `EngineService.precisions`."""
        return summary(self._opened().layers()), {}

    def _opened(self) -> Session:
        if self._session is None:
            raise ValueError("the build left nothing open")
        return self._session


def _unwritable(folder: Path, reason: str) -> InputError:
    return InputError(
        f"cannot write the engine: {reason}",
        where=str(folder),
        fix="choose a folder with free space that you may write to",
    )


class EngineService:
    """Runs the engine in `folder`; `overrides` replace settings of its manifest's session."""

    def __init__(self, folder: str, overrides: dict[str, Any]) -> None:
        self._engine = Engine.read(Path(folder))
        self._target = target_class(self._engine.runtime)
        self._overrides = overrides
        self._target.preload()
        self._baseline = memory_use()
        self._session: Session | None = None
        self._feeds: list[Arrays] = []
        self._bounds: list[Bound] = []
        self._bound: Bound | None = None

    def open(
        self, arrays: Arrays, folder: str, overrides: dict[str, Any], moved: bool = False
    ) -> Answer:
        """Opens a fresh session in place of the last one, and binds again what was bound.

        Where an engine `moved` here, its feeds are in `arrays`. Returns `load_ms`: reading the
        files and whatever the runtime compiles, imports not counted, as these were done before.
        """
        self._engine, self._overrides = Engine.read(Path(folder)), overrides
        if moved:
            self._feeds = unnumbered(arrays)
        return {"load_ms": self._open()}, {}

    def _open(self) -> float:
        self._bound, self._bounds = None, []
        if self._session is not None:
            self._session.close()
        self._session = None
        # What the old session leaves behind is not to be swept up while the new one is timed, nor
        # to be counted as the new one's memory.
        gc.collect()
        give_back()
        start = time.perf_counter_ns()
        self._session = self._target.open(self._engine, **self._overrides)
        load_ms = (time.perf_counter_ns() - start) / 1e6
        self._bind(self._session)
        return load_ms

    def _bind(self, session: Session) -> None:
        self._bounds = [session.bind(feeds) for feeds in self._feeds]
        self._bound = self._bounds[0] if self._bounds else None

    def run(self, arrays: Arrays) -> Answer:
        """The outputs for the feeds `arrays`. What is bound stays bound."""
        return _run(self._opened(), arrays)

    def bind(self, arrays: Arrays) -> Answer:
        """Puts feeds in place for `time_block`, also in sessions opened later.

        `arrays` are those of `numbered`; the first feeds are run until `choose` turns to others.
        """
        session = self._opened()
        before, self._feeds = self._feeds, unnumbered(arrays)
        try:
            self._bind(session)
        except BaseException:
            self._feeds = before
            raise
        return None, {}

    def choose(self, arrays: Arrays, index: int) -> Answer:
        """Turns to the feeds with this number (modulo their count)."""
        if self._bounds:
            self._bound = self._bounds[index % len(self._bounds)]
        return None, {}

    def throughput(self, arrays: Arrays, streams: int, seconds: float) -> Answer:
        """Runs what is bound in `streams` fresh sessions at once, a thread each.

        Returns `runs` that ended within the `seconds` (each stream makes one in any case) and
        `spent_s`, from the common start to the end of the last of them.
        """
        sessions = [self._target.open(self._engine, **self._overrides) for _ in range(streams)]
        try:
            bounds = [[session.bind(feeds) for feeds in self._feeds] for session in sessions]
            runs, spent = run_streams([[one.run for one in own] for own in bounds], seconds)
        finally:
            for session in sessions:
                session.close()
        return {"runs": runs, "spent_s": spent}, {}

    def first_result(self, arrays: Arrays) -> Answer:
        """`first_result_ms`: from opening a fresh session to the first outputs for `arrays`."""
        self._feeds = []
        load_ms = self._open()
        start = time.perf_counter_ns()
        bound = self._opened().bind(arrays)
        bound.run()
        outputs = dict(bound.outputs())
        return {"first_result_ms": load_ms + (time.perf_counter_ns() - start) / 1e6}, outputs

    def time_block(self, arrays: Arrays, runs: int) -> Answer:
        """Times `runs` runs on what is bound: `ns` int64 [runs]. The collector is off meanwhile."""
        import numpy as np

        if self._bound is None:
            raise ValueError("nothing is bound")
        run_ns = _stopwatch(self._bound)
        samples = [0] * runs
        collecting = gc.isenabled()
        gc.disable()
        try:
            for index in range(runs):
                samples[index] = run_ns()
        finally:
            if collecting:
                gc.enable()
        return None, {"ns": np.array(samples, dtype=np.int64)}

    def device_times(self, arrays: Arrays, runs: int) -> Answer:
        """Medians of `runs` runs on what is bound, by the device's own clock: `copy_in_ms`,
        `compute_ms`, `copy_out_ms`; `clocks` right behind them. For targets that
        `times_on_device`."""
        from statistics import median

        bound: Any = self._bound
        session: Any = self._session
        found = [bound.times() for _ in range(runs)]
        medians = {
            name: median(getattr(one, name) for one in found)
            for name in ("copy_in_ms", "compute_ms", "copy_out_ms")
        }
        return {**medians, "clocks": session.clocks_mhz()}, {}

    def memory(self, arrays: Arrays) -> Answer:
        """Resident memory of this process in MB: `current_mb`, `peak_mb`, and `baseline_mb`.

        The baseline is what the interpreter and the runtime's libraries took before the engine was
        opened.
        """
        return {**asdict(memory_use()), "baseline_mb": self._baseline.current_mb}, {}

    def precisions(self, arrays: Arrays) -> Answer:
        """What the runtime really runs, see `optimc.targets.layers.summary`."""
        return summary(self._opened().layers()), {}

    def profile(self, arrays: Arrays, warmup: int, runs: int) -> Answer:
        """`layers`, see `Session.profile`; None where the runtime has no profiler."""
        found = self._opened().profile(arrays, warmup, runs)
        return {"layers": None if found is None else [asdict(layer) for layer in found]}, {}

    def _opened(self) -> Session:
        if self._session is None:
            self._open()
        assert self._session is not None
        return self._session


def _run(session: Session, arrays: Arrays) -> Answer:
    bound = session.bind(arrays)
    bound.run()
    return None, dict(bound.outputs())


def _stopwatch(bound: Bound) -> Callable[[], int]:
    """What runs `bound` once and gives the nanoseconds that took."""
    if isinstance(bound, ClockedBound):
        return bound.run_ns
    run, clock = bound.run, time.perf_counter_ns

    def run_ns() -> int:
        start = clock()
        run()
        return clock() - start

    return run_ns


def run_streams(
    streams: Sequence[Sequence[Callable[[], None]]], seconds: float
) -> tuple[int, float]:
    """Runs each stream's calls in turns in a thread of its own for `seconds`, all at once.

    Every call is made once before, so that nothing is cold. Returns how many runs there were, and
    the seconds from the common start until the last one ended. Raises what a call raises.
    """
    for stream in streams:
        for call in stream:
            call()
    start = threading.Barrier(len(streams) + 1)
    counts, ends = [0] * len(streams), [0.0] * len(streams)

    def work(number: int) -> None:
        stream = streams[number]
        start.wait()
        end = time.perf_counter() + seconds
        while True:
            stream[counts[number] % len(stream)]()
            counts[number] += 1
            now = time.perf_counter()
            if now >= end:
                ends[number] = now
                return

    with ThreadPoolExecutor(len(streams)) as pool:
        futures = [pool.submit(work, number) for number in range(len(streams))]
        start.wait()
        began = time.perf_counter()
        for future in futures:
            future.result()
    return sum(counts), max(ends) - began


def numbered(feeds: Sequence[Arrays]) -> dict[str, Any]:
    """Several feeds as one mapping, for a message: ``<number>:<input>``."""
    return {f"{n}:{name}": array for n, one in enumerate(feeds) for name, array in one.items()}


def unnumbered(arrays: Arrays) -> list[Arrays]:
    """What `numbered` was made from."""
    found: dict[int, dict[str, Any]] = {}
    for key, array in arrays.items():
        number, _, name = key.partition(":")
        found.setdefault(int(number), {})[name] = array
    return [found[number] for number in sorted(found)]
