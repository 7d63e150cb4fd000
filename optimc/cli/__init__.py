"""The command line: `main` is the console script `optimc`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every `OptimcError` is one message on stderr."""
    from optimc.cli.run import run

    return run(sys.argv[1:] if arguments is None else list(arguments))
