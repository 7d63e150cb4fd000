"""`optimc finish`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from optimc.cli.display import Display


def run_finish(kit: Path, *, untrusted: bool, no_measure: bool, json_output: bool) -> int:
    """Finishes the kit; prints the summary on stderr, gives the code of its report."""
    from optimc.pipeline.kit_file import read_kit

    read_kit(kit)  # what takes long to import comes after the kit is known to be one
    from optimc.pipeline.finish_kit import KitRun
    from optimc.report.canonical import to_json
    from optimc.report.terminal import print_summary
    from optimc.report.verdict import exit_code

    command = shlex.join(["optimc", *sys.argv[1:]])
    with Display() as display:
        run = KitRun(kit, display, command, untrusted=untrusted, measure=not no_measure)
        report = run.run()
    print_summary(report, run.files, sys.stderr)
    if json_output:
        print(to_json(report), end="")
    return int(exit_code(report))
