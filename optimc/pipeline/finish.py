"""The second half of a build: measure what was built, judge it, and write everything down."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc import __version__
from optimc.core.errors import CellError, InputError, OptimcError
from optimc.core.files import alone_in, atomic_folder, file_sha256
from optimc.core.passes import Budget
from optimc.core.targets import Engine, Target
from optimc.pipeline import assemble
from optimc.pipeline.assemble import CellResult, figures_of, skipped
from optimc.pipeline.cases import benchmark_cases
from optimc.pipeline.confirmation import confirmed
from optimc.pipeline.details import with_details
from optimc.pipeline.device_times import device_times_note
from optimc.pipeline.evaluation import Evaluator, loaded_metrics
from optimc.pipeline.gate import GateResult, judge
from optimc.pipeline.kits import write_reports
from optimc.pipeline.lock import lock_path, read_lock, refuse_differences, write_lock
from optimc.pipeline.observer import working_on
from optimc.pipeline.parallel import run_side_by_side
from optimc.pipeline.records import FILE, write_records
from optimc.pipeline.timing import SOURCE, BuildTimings, CellTiming, Subject, Timer
from optimc.pipeline.versions import tool_versions
from optimc.report import schema
from optimc.report.values import Skipped
from optimc.report.write import write_report

if TYPE_CHECKING:
    from optimc.pipeline.build import Build

NOT_ASKED = "measuring is off (--no-measure)"
RELATIVE_DROP = 0.01
"""The default bound of lossy passes where a metric judges them and the recipe sets no limit."""
_TOOLS = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def source_engine(build: Build, target: Target) -> Engine:
    """The source, untouched, built for `target`."""
    return build.engines.build(f"the source for {target.runtime}", target, build.source.model)


def reference_target(target: Target) -> Target:
    """ONNX Runtime with the threads of `target`: what every speed-up is held against."""
    from optimc.targets.onnxruntime import OnnxRuntime

    return OnnxRuntime(runtime="onnxruntime", threads=getattr(target, "threads", 1))


def evaluate(build: Build) -> dict[str, float]:
    """The metrics of every living cell against the source; returns the source's own values."""
    dataset = build.data.evaluation
    if not build.options.measure or dataset is None or not build.recipe.metrics:
        reason = NOT_ASKED
        if build.options.measure:
            reason = "no evaluation data" if dataset is None else "the recipe names no metrics"
        for result in build.results.values():
            result.metrics = reason
        return {}
    evaluator = Evaluator(
        metrics=loaded_metrics(build.recipe),
        dataset=dataset,
        raw=build.start.data.evaluation or dataset,
        dims=build.data.dims,
        signature=build.source.model.signature,
        cache=build.cache,
        limits=build.limits,
        seed=build.recipe.seed,
        progress=build.observer.on_share,
    )
    engine = source_engine(build, reference_target(_any_target(build)))
    build.observer.on_cells(len(build.cells_alive()) + 1)
    with working_on(build.observer, "the source"):
        evaluator.evaluate_source(engine)
    run_side_by_side(build.cells_alive(), lambda result: _evaluate_cell(build, evaluator, result))
    build.records = evaluator.kept
    return evaluator.source_values()


def _evaluate_cell(build: Build, evaluator: Evaluator, result: CellResult) -> None:
    assert result.engine is not None
    try:
        with working_on(build.observer, result.cell.name):
            result.metrics = evaluator.evaluate(result.cell.name, result.engine)
    except CellError as error:
        result.metrics = error.what
        result.fail(f"evaluation: {error.what}")
        return
    _default_bound(build, result)


def _any_target(build: Build) -> Target:
    return next(iter(build.plan.cells)).target


def _default_bound(build: Build, result: CellResult) -> None:
    """A lossy cell whose metric no limit judges may lose 1 % of it, relative, at most."""
    if not result.lossy or isinstance(result.metrics, str):
        return
    limited = set(build.recipe.gate.drop) if build.recipe.gate else set()
    budget = next((o.budget for o in result.outcomes if o.budget is not None), None)
    if budget is not None:
        if not limited:
            _held_to_budget(result, budget)
        return
    for name, metric in result.metrics.items():
        if limited or isinstance(metric.drop, str) or isinstance(metric.source, Skipped):
            return
        allowed = RELATIVE_DROP * abs(metric.source)
        if metric.drop.point > allowed:
            result.fail(
                f"{name} drops by {metric.drop.point:.4g}, the default bound is 1 % of "
                f"{metric.source:.4g} (fix: limit it yourself: gate: {{drop: {{{name}: ...}}}})"
            )
        return  # the first metric is the one that choices and limits use


def _held_to_budget(result: CellResult, budget: Budget) -> None:
    """What `max_drop` promised on the tuning split must not be refuted by the evaluation split.

    Where it was not met there, the gate says so already.
    """
    assert not isinstance(result.metrics, str)
    drop = next(iter(result.metrics.values())).drop
    if budget.met and not isinstance(drop, str) and drop.lower > budget.limit:
        result.fail(
            f"{budget.name} was met on the tuning data, but on the evaluation data it drops by"
            f" {drop.point:.4g}, at least {drop.lower:.4g} (fix: more tuning data)"
        )


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


def finish(build: Build) -> schema.Report:
    """Measures, judges, writes artifacts, report and lock; returns the report."""
    build.observer.on_stage("measuring accuracy")
    source_metrics = evaluate(build)
    build.observer.on_stage("measuring latency")
    timings = time_cells(build)
    chosen = build.locked["choices"]["best"] if build.locked else None
    figures = [figures_of(result) for result in build.results.values()]
    gate = judge(build.recipe.gate, figures, chosen=chosen)
    gate, confirmation = confirmed(
        build.recipe.gate, gate, build.results, lambda result: time_again(build, result)
    )
    build.observer.on_stage("writing")
    lock_state = _lock(build, gate)
    report = _report(build, gate, timings, source_metrics, lock_state).model_copy(
        update={"confirmation": confirmation, "records": _records(build)}
    )
    with alone_in(build.options.out):
        write_artifacts(build, report)
        _write_calibration(build)
        report = with_details(build, gate, report)
        build.files = write_report(report, build.options.out)
    return report


def _records(build: Build) -> schema.RecordsFile | None:
    """Writes what every engine answered, sample by sample; None where there is nothing of it."""
    dataset = build.data.evaluation
    if dataset is None or not build.records:
        (build.options.out / FILE).unlink(missing_ok=True)
        return None
    metrics = loaded_metrics(build.recipe)
    if not write_records(build.options.out, dataset.digest, metrics, build.records):
        return None
    return schema.RecordsFile(path=FILE, data=dataset.digest)


def _write_calibration(build: Build) -> None:
    """Leaves the source's calibration table in ``calibration/``, where there is one."""
    from optimc.calibration.stored import write_calibration

    exported = build.observed.exported() if build.observed is not None else None
    if exported is not None:
        write_calibration(build.options.out / "calibration", *exported)


def write_artifacts(build: Build, report: schema.Report) -> None:
    """Copies every built engine to ``artifacts/<variant>/<target>``; replaces what was there."""
    with atomic_folder(build.options.out / "artifacts") as folder:
        for result in build.cells_alive():
            assert result.engine is not None
            place = folder / result.cell.variant / result.cell.target_name
            shutil.copytree(
                result.engine.folder, place, ignore=shutil.ignore_patterns("entry.json")
            )
            _check_delivered(result.engine, place)
        for result in build.results.values():
            if result.kit is not None:
                shutil.copytree(result.kit, folder / result.cell.variant / result.cell.target_name)
        write_reports(build, report, folder)


def _check_delivered(engine: Engine, place: Path) -> None:
    """Raises InputError where a file is not the one that was built and verified."""
    for name, file in engine.manifest["files"].items():
        if file_sha256(place / name) != file["sha256"]:
            raise InputError(
                "this file of the cache changed after it was built: nothing was delivered",
                where=str(engine.folder / name),
                fix="remove what is damaged with `optimc cache verify`, and build again",
            )


def _lock(build: Build, gate: GateResult) -> str | Skipped:
    """Checks or writes the lock; returns its path, or why there is none."""
    path = lock_path(build.recipe.path)
    cells = lock_cells(build)
    if build.locked is not None:
        locked = {name: c for name, c in build.locked["cells"].items() if name in build.results}
        refuse_differences({"cells": locked}, {"cells": cells}, path)
        return str(path)
    if build.options.partial:
        return skipped("not the whole recipe was built (--variant, --target, --set or --limit)")
    content = {**lock_inputs(build), "cells": cells, "choices": _choices(build, gate, path)}
    if timings := _timing_caches(build):
        content["timing_caches"] = timings  # told, not held to: it grows with every build
    try:
        write_lock(path, content)
    except InputError as error:
        build.warnings.append(f"the lock was not written: {error.what}")
        return skipped(error.what)
    return str(path)


def _timing_caches(build: Build) -> dict[str, str]:
    """By target: the digest of the timings that its engines were built with."""
    targets = {result.cell.target_name: result.cell.target for result in build.cells_alive()}
    found = {name: build.engines.timings_digest(target) for name, target in targets.items()}
    return {name: digest for name, digest in found.items() if digest is not None}


def _choices(build: Build, gate: GateResult, path: Path) -> dict[str, Any]:
    """What was chosen by measuring; without measuring, what the lock says already stays."""
    choices: dict[str, Any] = {"best": gate.best.name if gate.best else None}
    if not build.options.measure and path.is_file():
        kept = read_lock(path).get("choices")
        if isinstance(kept, dict):
            choices = kept
    # Of this build in any case: the digests of the engines depend on it.
    choices.pop("legalized", None)
    return {**choices, "legalized": build.legalized} if build.legalized else choices


def lock_cells(build: Build) -> dict[str, Any]:
    """By cell: the digest of the model after each pass with what the pass chose by measuring, and
    the engine's identity."""
    return {
        result.cell.name: {
            "passes": [
                {"pass": outcome.name, "model": outcome.model.digest}
                | ({} if outcome.choice is None else {"choice": outcome.choice})
                for outcome in result.outcomes
            ],
            "engine": result.engine.digest,
            "engine_of": result.engine.manifest["identity"]["of"],
        }
        for result in build.results.values()
        if result.engine is not None
    }


def lock_inputs(build: Build) -> dict[str, Any]:
    """What is known before any work: digests of the recipe, the model's files, the data; tools."""
    return {
        "optimc": __version__,
        "recipe": build.recipe.digest,
        "inputs": {**build.source.files, **_library_digests(build), **_pass_files(build)},
        "data": build.data.digests(),
        "tools": used_tools(build),
    }


def _library_digests(build: Build) -> dict[str, str]:
    """The native code that targets load, by its place beside the recipe."""
    return {
        os.path.relpath(path, build.recipe.folder): file_sha256(path)
        for target in build.recipe.targets.values()
        for path in target.libraries()
    }


def _pass_files(build: Build) -> dict[str, str]:
    """Files that passes' options name, such as a teacher's weights."""
    folder = build.recipe.folder
    return {
        os.path.relpath(path, folder): file_sha256(path)
        for variant in build.recipe.variants.values()
        for entry in variant.passes
        for path in entry.pass_.files(folder)
    }


def used_tools(build: Build) -> dict[str, str]:
    """Versions of everything that had a part in the artifacts."""
    tools = {*_TOOLS, *build.recipe.model.tools}
    for cell in build.plan.cells:
        if cell.name not in build.plan.unavailable:
            tools.update(type(cell.target).tools)
    for dataset in build.data.splits.values():
        tools.update(dataset.tools)
    for variant in build.recipe.variants.values():
        for entry in variant.passes:
            tools.update(entry.pass_.tools)
    return tool_versions(tools)


def _report(
    build: Build,
    gate: GateResult,
    timings: BuildTimings,
    source_metrics: Mapping[str, Any],
    lock: str | Skipped,
) -> schema.Report:
    source = build.source
    latency: Any = skipped(str(timings.noise_floor))
    if timings.source:
        latency = tuple(
            assemble.latency_report(case, figures, assemble.threads_of(build.plan.cells[0]))
            for case, figures in timings.source.items()
        )
    best = gate.best
    return schema.Report(
        optimc=__version__,
        created=assemble.now(),
        command=build.options.command,
        recipe=schema.RecipeReport(path=str(build.recipe.path), sha256=build.recipe.sha256),
        lock=lock,
        machine=_machine(),
        environment=assemble.environment(used_tools(build)),
        source=schema.Source(
            path=build.recipe.model.shown(build.recipe.folder),
            sha256=source.sha256,
            bytes=source.bytes,
            parameters=source.model.stats.parameters,
            inputs=assemble.inputs_report(source.model.signature, build.recipe.inputs),
            dims=assemble.dims_report(build.data.dims),
            metrics=dict(source_metrics),
            latency=latency,
        ),
        probes=probes_report(build),
        results=tuple(assemble.cell_report(result) for result in build.results.values()),
        noise_floor=assemble.noise_floor(timings.noise_floor),
        best=schema.CellName(variant=best.variant, target=best.target) if best else None,
        gate=gate.gate,
        warnings=assemble.unique(build.warnings),
        notes=assemble.unique(build.notes),
    )


def probes_report(build: Build) -> schema.Probes | Skipped:
    """What the probes are and reach, or why there are none."""
    effort, reach = build.options.verify, build.reach
    if effort == "off":
        return skipped("verification is off (--verify=off)")
    if reach is None:
        return skipped("the source does not run on the probes")
    return schema.Probes(
        effort=effort,
        passes=build.probed["passes"],
        engines=build.probed["engines"],
        nodes=reach.nodes,
        reached=reach.reached,
        unreached=tuple(reach.unreached),
        rounds={loop: tuple(seen) for loop, seen in reach.rounds.items()},
    )


def _machine() -> schema.Machine:
    from optimc.measure.machine import describe_machine

    found = describe_machine()
    return schema.Machine(
        cpu=found.cpu,
        architecture=found.architecture,
        cores=found.cores,
        features=found.features,
        memory_mb=found.memory_mb,
        os=found.os,
    )
