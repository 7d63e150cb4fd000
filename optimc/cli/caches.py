"""The commands below `optimc cache`; what they do is imported only when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

cache_app = typer.Typer(
    help="Look after the cache: where it is, how big, verify, prune, clear, export, import.",
    no_args_is_help=True,
)


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
