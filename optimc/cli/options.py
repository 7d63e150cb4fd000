"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

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
