"""The commands that take a build elsewhere: `bundle` to its server, `finish` to its GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from optimc.cli.options import JsonReportOption, NoMeasure

handover_app = typer.Typer()


@handover_app.command()
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


@handover_app.command()
def finish(
    kit: Annotated[
        Path,
        typer.Argument(metavar="KIT", help="What a build left for a deferred cell."),
    ],
    untrusted: Annotated[
        bool, typer.Option("--untrusted", help="Refuse kits that would load plugin libraries.")
    ] = False,
    no_measure: NoMeasure = False,
    json_output: JsonReportOption = False,
) -> int:
    """Finish a deferred build where its GPU is: build, compare with the probes, measure, judge.

    Leaves engine/, report.json, report.html, report.md and junit.xml in KIT.

    Example: optimc finish optimc-build/quickstart/artifacts/int8/trt
    """
    from optimc.cli.finish import run_finish

    return run_finish(kit, untrusted=untrusted, no_measure=no_measure, json_output=json_output)
