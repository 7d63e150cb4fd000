"""The command line: `main` is the console script `optimc`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_WITHOUT_DESCRIPTIONS = ("build", "check", "gate", "bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every `OptimcError` is one message on stderr."""
    from optimc.cli.run import run

    if arguments is None:
        arguments = sys.argv[1:]
        if arguments[:1] and arguments[0] in _WITHOUT_DESCRIPTIONS:
            from optimc.core import descriptions

            descriptions.leave_out()
    return run(list(arguments))
