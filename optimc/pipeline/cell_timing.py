"""Latency of every cell, in turns with the source; once more for the one that ships."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimc.core.errors import OptimcError
from optimc.core.targets import Engine, Target
from optimc.pipeline.assemble import CellResult, figures_of, threads_of
from optimc.pipeline.cases import benchmark_cases
from optimc.pipeline.device_times import device_times_note
from optimc.pipeline.gate import judge
from optimc.pipeline.references import NOT_ASKED, reference_target, source_engine
from optimc.pipeline.timing import SOURCE, BuildTimings, CellTiming, Subject, Timer

if TYPE_CHECKING:
    from optimc.pipeline.build import Build


def time_cells(build: Build) -> BuildTimings:
    """Latency of every living cell, in turns with the source."""
    alive = {result.cell.name: result for result in build.cells_alive()}
    if not build.options.measure or not alive:
        reason = "nothing was built" if build.options.measure else NOT_ASKED
        for result in build.results.values():
            result.cases = result.load_ms = result.footprint = reason
        return BuildTimings(noise_floor=reason)
    references: dict[str, Engine] = {SOURCE: source_engine(build, reference_target(_first(alive)))}
    cells = {name: _subject(build, result, references) for name, result in alive.items()}
    timer = _timer(build, len(cells))
    decided = None
    if build.recipe.benchmark.until == "decided" and build.recipe.gate is not None:
        decided = _question(build, alive)
    measured = benchmark_cases(build)
    timings = timer.run(cells, references, measured, decided)
    timings.source_threads = threads_of(next(iter(alive.values())).cell)
    for name, result in alive.items():
        if name in timings.failures:
            result.fail(timings.failures[name])
            continue
        note = device_times_note(name, cells[name].engine, build.limits, measured[0].feeds[0])
        build.notes += [note] if note else []
        result.cases = {case: cells[name] for case, cells in timings.cases.items()}
        result.load_ms = timings.load_ms[name]
        result.footprint = timings.footprints[name]
    return timings


def _timer(build: Build, cells: int, *, seed: int = 0) -> Timer:
    return Timer(
        limits=build.limits,
        seconds=build.recipe.benchmark.at_most * cells,
        seed=build.recipe.seed + seed,
        lock=build.cache.folder / "measuring.lock",
        progress=build.observer.on_share,
    )


def time_again(build: Build, result: CellResult) -> Mapping[str, CellTiming] | str:
    """A second measurement of one cell on the first case, or why there is none."""
    build.observer.on_stage(f"measuring {result.cell.name} again, as it was chosen")
    name, alive = result.cell.name, {result.cell.name: result}
    references: dict[str, Engine] = {SOURCE: source_engine(build, reference_target(_first(alive)))}
    cells = {name: _subject(build, result, references)}
    first = benchmark_cases(build)[:1]
    decided = None
    if build.recipe.benchmark.until == "decided":
        decided = _question(build, alive)
    timings = _timer(build, 1, seed=1).run(cells, references, first, decided, footprints=False)
    if name in timings.failures:
        return timings.failures[name]
    return {case: found[name] for case, found in timings.cases.items()}


def _first(alive: Mapping[str, CellResult]) -> Target:
    return next(iter(alive.values())).cell.target


def _subject(build: Build, result: CellResult, references: dict[str, Engine]) -> Subject:
    """The cell's engine with the references it is held against, which are added where new."""
    target = result.cell.target
    assert result.engine is not None
    reference = source_engine(build, reference_target(target))
    against = _reference(
        references, reference, f"{SOURCE}, {getattr(target, 'threads', 1)} threads"
    )
    try:
        own = source_engine(build, target)
        same = _reference(references, own, f"source on {result.cell.target_name}")
    except OptimcError as error:
        build.notes.append(f"{result.cell.target_name} does not take the source: {error.what}")
        same = against
    return Subject(result.engine, against, same)


def _reference(references: dict[str, Engine], engine: Engine, name: str) -> str:
    """The name of a reference with this engine; a new one is added under `name`."""
    for known, other in references.items():
        same = ("runtime", "model_sha256", "session")
        if all(other.manifest[key] == engine.manifest[key] for key in same):
            return known
    references[name] = engine
    return name


def _question(build: Build, alive: Mapping[str, CellResult]) -> Any:
    """Whether the gate's verdict would be the same however long the sampling went on."""

    def decided(cells: Mapping[str, CellTiming]) -> bool:
        figures = []
        for name, timing in cells.items():
            trial = CellResult(alive[name].cell, engine=alive[name].engine)
            trial.metrics = alive[name].metrics
            trial.cases = {"": timing}
            figures.append(figures_of(trial))
        checks = judge(build.recipe.gate, figures).gate.checks
        timed = [c for c in checks if c.name.startswith(("speedup", "latency"))]
        return all(check.verdict != "undecided" for check in timed)

    return decided
