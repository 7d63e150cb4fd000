"""The commands and their options; what they do is imported only when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from optimc.cli.culprits import culprits_app
from optimc.cli.options import RecipePath, SetOption, Untrusted

_EPILOG = (
    "Exit codes: 0 built, gate passed; 1 a bug in optimc; 2 the recipe, an input or the command "
    "line is wrong; 3 a cell failed or cannot be built here; 4 the gate failed, or two models "
    "differ; 5 the gate is undecided; 130 interrupted."
)

app = typer.Typer(
    name="optimc",
    help="A compiler for trained models: verified passes, measured engines, a verdict.",
    epilog=_EPILOG,
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


@app.command(epilog=_EPILOG)
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
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither read nor write the cache.")
    ] = False,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Build and verify only: no metrics, no latency.")
    ] = False,
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
    json_output: Annotated[
        bool, typer.Option("--json", help="Print report.json on stdout.")
    ] = False,
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
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
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


@app.command(epilog=_EPILOG)
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
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
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


@app.command("bench")
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
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
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


@app.command()
def bundle(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `optimc build` left: optimc-build/<recipe>.")
    ],
    form: Annotated[
        str, typer.Option("--format", metavar="F", help="plain, triton, kserve or ovms.")
    ] = "plain",
    cell: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="VARIANT/TARGET", help="Which cell [default: the one that ships]."),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What the server calls the model [default: the recipe's name]."),
    ] = None,
    version: Annotated[int, typer.Option(min=1, help="The model's version in the server.")] = 1,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("-o", "--out", metavar="DIR", help="Where to: optimc-bundle/<name>-<format>."),
    ] = None,
) -> int:
    """Hand a built engine to serving: a folder or model repository, with golden data beside it.

    Every format holds golden inputs and outputs, and check.py, which compares with them where the
    model will run and needs nothing of optimc.

    Example: optimc bundle optimc-build/quickstart --format triton
    """
    from optimc.cli.bundle import run_bundle

    return run_bundle(folder, form=form, cell=cell, name=name, version=version, out=out)


@app.command()
def finish(
    kit: Annotated[
        Path,
        typer.Argument(metavar="KIT", help="What a build left for a deferred cell."),
    ],
    untrusted: Annotated[
        bool, typer.Option("--untrusted", help="Refuse kits that would load plugin libraries.")
    ] = False,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Build and verify only: no metrics, no latency.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print report.json on stdout.")
    ] = False,
) -> int:
    """Finish a deferred build where its GPU is: build, compare with the probes, measure, judge.

    Leaves engine/, report.json, report.html, report.md and junit.xml in KIT.

    Example: optimc finish optimc-build/quickstart/artifacts/int8/trt
    """
    from optimc.cli.finish import run_finish

    return run_finish(kit, untrusted=untrusted, no_measure=no_measure, json_output=json_output)


app.add_typer(culprits_app)


cache_app = typer.Typer(
    help="Look after the cache: where it is, how big, verify, prune, clear, export, import.",
    no_args_is_help=True,
)
app.add_typer(cache_app, name="cache")


@cache_app.command("info")
def cache_info() -> int:
    """Show the folder, the bound, and entries by kind."""
    from optimc.cli.cache import run_info

    return run_info()


@cache_app.command("verify")
def cache_verify() -> int:
    """Read every entry and remove damaged ones."""
    from optimc.cli.cache import run_verify

    return run_verify()


@cache_app.command("prune")
def cache_prune(
    size_gb: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--size-gb", min=0.0, help="Prune to this size [default: the bound]."),
    ] = None,
) -> int:
    """Remove the entries that were used longest ago."""
    from optimc.cli.cache import run_prune

    return run_prune(size_gb)


@cache_app.command("clear")
def cache_clear() -> int:
    """Remove every entry."""
    from optimc.cli.cache import run_clear

    return run_clear()


@cache_app.command("export")
def cache_export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tar file to write.")],
) -> int:
    """Write every entry into one tar file, for a machine without a network.

    Example: optimc cache export cache.tar
    """
    from optimc.cli.cache import run_export

    return run_export(file)


@cache_app.command("import")
def cache_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `optimc cache export` wrote.")],
) -> int:
    """Take in the entries of an exported file, each held against its digests.

    Import only from machines whose builds you would ship: an entry is taken for what its key says.

    Example: optimc cache import cache.tar
    """
    from optimc.cli.cache import run_import

    return run_import(file)
