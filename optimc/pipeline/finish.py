"""The second half of a build: measure what was built, judge it, and write everything down."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.errors import InputError
from optimc.core.files import alone_in, atomic_folder, file_sha256
from optimc.core.targets import Engine
from optimc.pipeline.accuracy import evaluate
from optimc.pipeline.assemble import figures_of
from optimc.pipeline.cell_timing import time_again, time_cells
from optimc.pipeline.confirmation import confirmed
from optimc.pipeline.details import with_details
from optimc.pipeline.evaluation import loaded_metrics
from optimc.pipeline.gate import judge
from optimc.pipeline.kits import write_reports
from optimc.pipeline.locking import locked_state
from optimc.pipeline.records import FILE, write_records
from optimc.pipeline.reporting import build_report
from optimc.report import schema
from optimc.report.write import write_report

if TYPE_CHECKING:
    from optimc.pipeline.build import Build


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
    lock_state = locked_state(build, gate)
    report = build_report(build, gate, timings, source_metrics, lock_state).model_copy(
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
