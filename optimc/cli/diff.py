"""`optimc diff`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.cli.display import Display
from optimc.core.errors import ExitCode, InputError
from optimc.core.files import atomic_write

if TYPE_CHECKING:
    from optimc.pipeline.values import RuntimeName

_TOLERANCE = 1e-4


def run_diff(
    a: Path,
    b: Path,
    *,
    runtime: RuntimeName | None,
    optimized: bool | None,
    inputs: Path | None,
    recipe: Path | None,
    tolerance: float | None,
    min_sqnr: float | None,
    outputs_only: bool,
    every: bool,
    seed: int,
    html: Path | None,
    untrusted: bool,
    json_output: bool,
) -> int:
    """Compares, prints the table, and answers whether the outputs are the same."""
    if inputs is not None and recipe is not None:
        raise InputError("--inputs and --recipe are two kinds of inputs", fix="give one of them")
    if runtime == "openvino" and optimized is not None:
        raise InputError(
            "OpenVINO always optimizes",
            where="--optimized",
            fix="leave it out, or take onnxruntime",
        )
    if tolerance is None and min_sqnr is None:
        tolerance = _TOLERANCE
    from optimc.pipeline.diff.comparing import Limit
    from optimc.pipeline.diff.job import DiffOptions, compare_models
    from optimc.pipeline.reduce.job import worker_limits
    from optimc.report.diff_page import to_page
    from optimc.report.diff_table import print_diff

    options = DiffOptions(
        a=a,
        b=b,
        limit=Limit(tolerance, min_sqnr),
        runtime=runtime,
        optimized=optimized,
        inputs=inputs,
        recipe=recipe,
        seed=seed,
        outputs_only=outputs_only,
        untrusted=untrusted,
    )
    with Display() as display, tempfile.TemporaryDirectory(prefix="optimc-diff-") as folder:
        report = compare_models(options, Path(folder), worker_limits(), display)
    if html is not None:
        with atomic_write(html) as file:
            file.write(to_page(report))
    if json_output:
        print(report.to_json(), end="")
    else:
        print_diff(report, sys.stdout, every=every)
    return int(ExitCode.OK if report.same else ExitCode.GATE_FAILED)
