"""The commands that measure what is there and hold it against a baseline: `gate`, `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from optimc.cli.options import EPILOG, JsonOption

gates_app = typer.Typer()


@gates_app.command(epilog=EPILOG)
def gate(
    candidate: Annotated[
        Path,
        typer.Argument(
            metavar="CANDIDATE", help="A report.json, a build's folder, or an engine's folder."
        ),
    ],
    baseline: Annotated[
        Path, typer.Option(metavar="BASELINE", help="What it is held against: any of the three.")
    ],
    policy: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="The limits, in YAML; wins over the recipe's gate."),
    ] = None,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Time both here, side by side, until decided.")
    ] = False,
    inputs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="NPZ", help="Inputs to time on, by name [default: seeded]."),
    ] = None,
    junit: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Write the checks as JUnit XML."),
    ] = None,
    json_output: JsonOption = False,
) -> int:
    """Hold a candidate against a baseline before it is deployed.

    Exit code 0: every limit is met; 4: one is not; 5: undecided, and what would decide it. Times of
    different machines are never compared: --remeasure runs both here. Writes a step summary where
    GITHUB_STEP_SUMMARY is set.

    Example: optimc gate build-new --baseline build-old --policy policy.yaml --remeasure
    """
    from optimc.cli.gate import run_gate

    return run_gate(
        candidate,
        baseline,
        policy=policy,
        remeasure=remeasure,
        inputs=inputs,
        junit=junit,
        json_output=json_output,
    )


@gates_app.command("bench")
def bench_command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="ENGINE|MODEL...",
            help="Engines' folders or ONNX files; the first is what others are held against.",
        ),
    ],
    case: Annotated[
        str, typer.Option(metavar="DIM=SIZE,...", help="Sizes of dynamic dims [default: 1].")
    ] = "",
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, max=1024, help="Threads of one inference; 0: all cores."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=86400.0, help="For the latencies of all together.")
    ] = 10.0,
    runtime: Annotated[
        str, typer.Option(help="What runs an ONNX file: onnxruntime, openvino.")
    ] = "onnxruntime",
    inputs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="NPZ", help="Inputs by name [default: seeded]."),
    ] = None,
    json_output: JsonOption = False,
) -> int:
    """Measure engines or models alone, several in turns: latency, throughput, memory.

    Figures that the sample does not support are skipped with the number of runs that they need.

    Example: optimc bench model.onnx out/artifacts/int8/ort --case batch=8 --threads 1
    """
    from optimc.cli.bench import run_bench

    return run_bench(
        paths,
        case=case,
        threads=threads,
        seconds=seconds,
        runtime=runtime,
        inputs=inputs,
        json_output=json_output,
    )
