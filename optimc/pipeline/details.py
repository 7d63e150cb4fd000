"""What a report says beyond its figures: layers' times, ranges, the inputs of the worst samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.pipeline.assemble import unique
from optimc.pipeline.cases import benchmark_cases
from optimc.pipeline.profiling import profile
from optimc.pipeline.quantized_ranges import cell_ranges
from optimc.pipeline.shown import shown_samples
from optimc.pipeline.slower import slower_in_int8
from optimc.pipeline.steps import cell_steps
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from optimc.pipeline.build import Build
    from optimc.pipeline.gate import GateResult
    from optimc.report.schema import Report


def with_details(build: Build, gate: GateResult, report: Report) -> Report:
    """`report` with the details of what ships; layers are timed on the first benchmark case."""
    from optimc.pipeline.references import NOT_ASKED

    profiles: object = Skipped(skipped=NOT_ASKED)
    if build.options.measure:
        build.observer.on_stage("profiling layers")
        profiles = profile(build, gate, benchmark_cases(build)[0])
    steps = cell_steps(build, gate)
    build.warnings += slower_in_int8(build.recipe, report, steps)
    return report.model_copy(
        update={
            "warnings": unique(build.warnings),  # following the passes may have added some
            "profiles": profiles,
            "ranges": cell_ranges(build, gate),
            "steps": steps,
            "shown": shown_samples(report, build.data.evaluation),
        }
    )
