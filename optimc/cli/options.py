"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

EPILOG = (
    "Exit codes: 0 built, gate passed; 1 a bug in optimc; 2 the recipe, an input or the command "
    "line is wrong; 3 a cell failed or cannot be built here; 4 the gate failed, or two models "
    "differ; 5 the gate is undecided; 130 interrupted."
)

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, such as recipes/quickstart.yaml.")
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads the annotation at run time)
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override by name: gate.speedup=2, variants.int8.quantize_int8.ranges=mse.",
    ),
]
Untrusted = Annotated[
    bool, typer.Option("--untrusted", help="Refuse recipes that would run user code.")
]
TimeLimit = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--time-limit", metavar="SECONDS", min=0.0, help="Stop then with the best so far."
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")]
NoMeasure = Annotated[
    bool, typer.Option("--no-measure", help="Build and verify only: no metrics, no latency.")
]
FeedOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--inputs", metavar="FILE.npz", help="One feed, by input name [default: seeded]."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the seeded inputs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
JsonReportOption = Annotated[bool, typer.Option("--json", help="Print report.json on stdout.")]
