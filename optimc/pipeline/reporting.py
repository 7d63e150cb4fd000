"""The report's tree of a whole build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimc import __version__
from optimc.pipeline import assemble
from optimc.pipeline.assemble import skipped
from optimc.pipeline.gate import GateResult
from optimc.pipeline.locking import used_tools
from optimc.pipeline.timing import BuildTimings
from optimc.report import schema
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from optimc.pipeline.build import Build


def build_report(
    build: Build,
    gate: GateResult,
    timings: BuildTimings,
    source_metrics: Mapping[str, Any],
    lock: str | Skipped,
) -> schema.Report:
    """The whole of it but what is measured again and written beside it."""
    source = build.source
    latency: Any = skipped(str(timings.noise_floor))
    if timings.source:
        latency = tuple(
            assemble.latency_report(case, figures, timings.source_threads)
            for case, figures in timings.source.items()
        )
    best = gate.best
    return schema.Report(
        optimc=__version__,
        created=assemble.now(),
        command=build.options.command,
        recipe=schema.RecipeReport(path=str(build.recipe.path), sha256=build.recipe.sha256),
        lock=lock,
        machine=machine_report(),
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


def machine_report() -> schema.Machine:
    """This machine."""
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
