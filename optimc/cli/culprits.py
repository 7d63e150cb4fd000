"""The commands that find a culprit: `diff`, `bisect`, `reduce`; what they do is imported later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from optimc.cli.options import (
    FeedOption,
    JsonOption,
    NoCache,
    RecipePath,
    SeedOption,
    SetOption,
    TimeLimit,
    Untrusted,
)

culprits_app = typer.Typer()


@culprits_app.command()
def diff(
    a: Annotated[
        Path,
        typer.Argument(
            metavar="A", help="The reference: an ONNX or .pt2 file, an engine's folder, a recipe."
        ),
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="What is held against it: the same.")],
    runtime: Annotated[
        Optional[Literal["onnxruntime", "openvino"]],  # noqa: UP045
        typer.Option(help="What runs B [default: an engine's own, else onnxruntime]."),
    ] = None,
    optimized: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--optimized/--not-optimized",
            help="Whether ONNX Runtime may rewrite B [default: as its engine; not for a file].",
        ),
    ] = None,
    inputs: FeedOption = None,
    recipe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="RECIPE", help="Take this recipe's calibration data and dims."),
    ] = None,
    tolerance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="E",
            min=0.0,
            help="Outputs may differ by E of their scale [default: 1e-4, without --min-sqnr].",
        ),
    ] = None,
    min_sqnr: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(metavar="DB", help="Outputs keep a signal to noise of DB: for INT8, 20."),
    ] = None,
    outputs_only: Annotated[
        bool, typer.Option("--outputs-only", help="Do not look at inner values.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="List every value, not the turns.")] = False,
    seed: SeedOption = 0,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Write a page with a chart, in one file."),
    ] = None,
    untrusted: Untrusted = False,
    json_output: JsonOption = False,
) -> int:
    """Compare two models value by value: where the error starts, grows and heals.

    Values are matched by provenance, name, structure, then position; the table says how. A runs on
    ONNX Runtime without graph optimizations, or as the engine that it is. A value starts an error
    where it is the first beyond the limit; the error grows or heals by 6 dB at least. Exit code 0:
    the outputs are the same within the limit; 4: they differ.

    Examples: optimc diff model.onnx out/artifacts/int8/ort --min-sqnr 20 --html diff.html;
    optimc diff model.onnx model.onnx --runtime openvino
    """
    from optimc.cli.diff import run_diff

    return run_diff(
        a,
        b,
        runtime=runtime,
        optimized=optimized,
        inputs=inputs,
        recipe=recipe,
        tolerance=tolerance,
        min_sqnr=min_sqnr,
        outputs_only=outputs_only,
        every=every,
        seed=seed,
        html=html,
        untrusted=untrusted,
        json_output=json_output,
    )


@culprits_app.command()
def bisect(
    recipe: RecipePath,
    cell: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="VARIANT/TARGET", help="Which cell [default: the only one with passes]."
        ),
    ] = None,
    drop: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="X",
            help="Bad is: the first metric drops by more, on tuning data, else on evaluation data.",
        ),
    ] = None,
    max_error: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="E", min=0.0, help="Bad is: outputs differ by more, relative to their scale."
        ),
    ] = None,
    test_command: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--command",
            metavar="COMMAND",
            help="Bad is: COMMAND on the ONNX file ({}) fails. 0 good, 125 cannot say. No shell.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Whether passes are rolled back as a build does it."
        ),
    ] = True,
    settings: SetOption = None,
    untrusted: Untrusted = False,
    no_cache: NoCache = False,
    time_limit: TimeLimit = None,
    json_output: JsonOption = False,
) -> int:
    """Find the pass that is to blame, and the smallest set of its rewrites.

    Searches the passes of one cell by bisection, then the pass's numbered rewrites (the layers,
    for quantization) by delta debugging. Passes that verification rolls back are named at once;
    without a criterion, the first of them is taken apart. What was run is in the cache: the same
    command again is fast.

    Examples: optimc bisect recipe.yaml --cell int8/ort --drop 0.01;
    optimc bisect recipe.yaml --max-error 1e-3 --no-verify;
    optimc bisect recipe.yaml --command "python check.py {}"
    """
    from optimc.cli.bisect import run_bisect

    return run_bisect(
        recipe,
        cell=cell,
        drop=drop,
        max_error=max_error,
        command=test_command,
        verify=verify,
        settings=settings or [],
        untrusted=untrusted,
        no_cache=no_cache,
        time_limit=time_limit,
        json_output=json_output,
    )


@culprits_app.command()
def reduce(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    test_command: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--command",
            metavar="COMMAND",
            help="The fault is: COMMAND fails. {} is the model, {inputs} the npz. No shell.",
        ),
    ] = None,
    saying: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="TEXT", help="... and prints TEXT: other failures do not count."),
    ] = None,
    runtime: Annotated[
        Optional[Literal["onnxruntime", "openvino"]],  # noqa: UP045
        typer.Option(help="The fault is: it differs from ONNX Runtime without optimizations."),
    ] = None,
    pass_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--pass", metavar="NAME", help="The fault is: the pass changes the outputs."),
    ] = None,
    max_error: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="E",
            min=0.0,
            help="By more than E of their scale [default: 1e-4; for a pass, what it promises].",
        ),
    ] = None,
    inputs: FeedOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-o", "--out", metavar="DIR", help="Where to: optimc-reduced/<model>."),
    ] = None,
    time_limit: TimeLimit = None,
    json_output: JsonOption = False,
) -> int:
    """Cut a model down to the smallest one that still shows a fault.

    Leaves out nodes and outputs, feeds inner values with what the whole model computes there, makes
    sizes smaller and numbers plain. Every step is checked by running; DIR always holds the best so
    far: model.onnx, inputs.npz and reproduce.py. The command answers as for `git bisect run`: exit
    code 0 says no fault, 125 cannot say, any other one is the fault. To go on after an
    interruption, reduce DIR/model.onnx with --inputs DIR/inputs.npz.

    Examples: optimc reduce model.onnx --command "python check.py {}";
    optimc reduce model.onnx --runtime openvino --max-error 1e-3;
    optimc reduce model.onnx --pass fuse
    """
    from optimc.cli.reduce import run_reduce

    return run_reduce(
        model,
        command=test_command,
        saying=saying,
        runtime=runtime,
        pass_name=pass_name,
        max_error=max_error,
        inputs=inputs,
        seed=seed,
        out=out,
        time_limit=time_limit,
        json_output=json_output,
    )
