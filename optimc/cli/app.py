"""The commands and their options; what they do is imported only when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from optimc.cli.caches import cache_app
from optimc.cli.culprits import culprits_app
from optimc.cli.gates import gates_app
from optimc.cli.handover import handover_app
from optimc.cli.options import (
    EPILOG,
    JsonOption,
    JsonReportOption,
    NoCache,
    NoMeasure,
    RecipePath,
    SetOption,
    Untrusted,
)

app = typer.Typer(
    name="optimc",
    help="A compiler for trained models: verified passes, measured engines, a verdict.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command() -> Any:
    """The click command behind the app."""
    return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        from optimc import __version__

        typer.echo(f"optimc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A compiler for trained models: verified passes, measured engines, a verdict.

    Start with `optimc init model.onnx`, then `optimc build recipe.yaml`.
    """


@app.command(epilog=EPILOG)
def build(
    recipe: RecipePath,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-o", "--out", metavar="DIR", help="Where to: optimc-build/<recipe>."),
    ] = None,
    variant: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="V", help="Only variants of this name or glob."),
    ] = None,
    target: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="T", help="Only targets of this name or glob."),
    ] = None,
    settings: SetOption = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Replay the lock; refuse any difference by name.")
    ] = False,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", help="Refuse connections of user code, too; optimc itself makes none."
        ),
    ] = False,
    untrusted: Untrusted = False,
    no_cache: NoCache = False,
    no_measure: NoMeasure = False,
    fail_on_rollback: Annotated[
        bool, typer.Option("--fail-on-rollback", help="A rolled-back pass fails its cells.")
    ] = False,
    verify: Annotated[
        Literal["fast", "full", "off"],
        typer.Option(
            help="What passes and engines have to prove themselves on: some inputs, all corners of "
            "the dims and more samples, or nothing: then every verdict is `unverified`."
        ),
    ] = "fast",
    limit: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="PASS=N", help="Stop a pass after its Nth rewrite (for bisection)."),
    ] = None,
    dump: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="DIR", help="Write the model after every pass to DIR."),
    ] = None,
    json_output: JsonReportOption = False,
) -> int:
    """Build every cell of a recipe, measure it, and judge it by the gate.

    Leaves artifacts/, report.json, report.html, report.md and junit.xml in DIR, and the lock
    beside the recipe.

    Example: optimc build recipes/quickstart.yaml -o out --target ort
    """
    from optimc.cli.build import run_build

    if offline:
        from optimc.core.offline import refuse_network

        refuse_network()
    return run_build(
        recipe,
        out=out,
        variant=variant,
        target=target,
        settings=settings or [],
        locked=locked,
        untrusted=untrusted,
        no_cache=no_cache,
        no_measure=no_measure,
        fail_on_rollback=fail_on_rollback,
        verify=verify,
        limits=limit or [],
        dump=dump,
        json_output=json_output,
    )


@app.command()
def init(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="An ONNX or .pt2 file, or a Hugging Face folder."),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="RECIPE", help="Where to write the recipe.")
    ] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> int:
    """Look at a model and write a commented recipe that builds as it is.

    Example: optimc init model.onnx -o recipe.yaml
    """
    from optimc.cli.look import run_init

    return run_init(model, out, force=force)


@app.command()
def check(
    recipe: RecipePath,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the plan: passes, what they share, cells.")
    ] = False,
    settings: SetOption = None,
    untrusted: Untrusted = False,
) -> int:
    """Check everything that a build checks before work, and nothing else.

    Example: optimc check recipe.yaml --explain
    """
    from optimc.cli.check import run_check

    return run_check(recipe, explain=explain, settings=settings or [], untrusted=untrusted)


@app.command()
def inspect(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="An ONNX or .pt2 file, a Hugging Face folder, or the folder of an engine.",
        ),
    ],
    json_output: JsonOption = False,
    quantization: Annotated[
        bool,
        typer.Option(
            "--quantization", help="Show each quantized layer: types, ranges, granularity, SQNR."
        ),
    ] = False,
    target: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="With --quantization: check the rules of this runtime. Repeatable."),
    ] = None,
    feeds: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="NPZ", help="With --quantization: samples to observe activations on."),
    ] = None,
) -> int:
    """Show a model's signature, operators, parameters, FLOPs, sizes and quantization.

    Example: optimc inspect model.onnx --quantization --target onnxruntime
    """
    if quantization:
        from optimc.cli.quantization import run_quantization

        return run_quantization(model, target or [], feeds, json_output=json_output)
    if target or feeds:
        from optimc.core.errors import InputError

        raise InputError(
            "--target and --feeds say how to look at a quantized model",
            fix="add --quantization",
        )
    from optimc.cli.look import run_inspect

    return run_inspect(model, json_output=json_output)


@app.command()
def passes(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="NAME", help="A pass, for its manual page."),
    ] = None,
) -> int:
    """List all passes, or print the manual page of one.

    Example: optimc passes quantize_int8
    """
    from optimc.cli.manual import run_passes

    return run_passes(name)


@app.command()
def metrics(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="NAME", help="A metric, for its manual page; `call`: your own."),
    ] = None,
) -> int:
    """List all metrics, or print the manual page of one.

    Example: optimc metrics map
    """
    from optimc.cli.manual import run_metrics

    return run_metrics(name)


@app.command()
def targets() -> int:
    """List the targets: what builds here, and what would make the others build."""
    from optimc.cli.manual import run_targets

    return run_targets()


@app.command()
def schema(
    of: Annotated[
        Literal["recipe", "report", "policy"],
        typer.Argument(metavar="recipe|report|policy", help="Which one."),
    ] = "recipe",
) -> int:
    """Print the JSON Schema of recipes (for editors), of report.json, or of the gate's policy.

    Example: optimc schema recipe > recipe.schema.json
    """
    from optimc.cli.manual import run_schema

    return run_schema(of)


@app.command()
def doctor() -> int:
    """Show what is installed and usable here, and the command that would fix what is not."""
    from optimc.cli.doctor import run_doctor

    return run_doctor()


for commands in (gates_app, handover_app, culprits_app):
    app.add_typer(commands)
app.add_typer(cache_app, name="cache")
