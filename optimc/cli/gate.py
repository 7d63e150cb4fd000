"""`optimc gate`."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.cli.run import printable
from optimc.core.errors import InputError

if TYPE_CHECKING:
    from optimc.report.regression import RegressionReport


def run_gate(
    candidate: Path,
    baseline: Path,
    *,
    policy: Path | None,
    remeasure: bool,
    inputs: Path | None,
    junit: Path | None,
    json_output: bool,
) -> int:
    """Judges, prints the verdict on stderr (the tree on stdout with `--json`), gives the code."""
    if inputs is not None and not remeasure:
        raise InputError("inputs are for measuring again", where="--inputs", fix="add --remeasure")
    from optimc.core.files import atomic_write
    from optimc.pipeline.regression.run import GateOptions
    from optimc.pipeline.regression.run import run_gate as judged
    from optimc.report.regression import regression_json
    from optimc.report.regression_views import to_annotations, to_junit, to_terminal

    command = shlex.join(["optimc", *sys.argv[1:]])
    options = GateOptions(candidate, baseline, command, policy, remeasure, inputs)
    if remeasure:
        from optimc.cli.display import Display  # which takes long to import

        with Display() as display:
            display.on_stage("measuring both side by side")
            report = judged(replace(options, progress=display.on_share))
    else:
        report = judged(options)
    if junit is not None:
        with atomic_write(junit) as file:
            file.write(to_junit(report))
    _step_summary(report)
    sys.stderr.write(to_terminal(report))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        sys.stderr.write(to_annotations(report))
    if json_output:
        print(regression_json(report), end="")
    return int(report.exit_code)


def _step_summary(report: RegressionReport) -> None:
    """Appends the Markdown to the file that GitHub Actions shows under the job."""
    from optimc.report.regression_views import to_step_summary

    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(to_step_summary(report))
    except OSError as error:
        # The verdict stands whether or not the page can be written.
        print(
            printable(f"warning: GITHUB_STEP_SUMMARY cannot be written: {error.strerror}"),
            file=sys.stderr,
        )
