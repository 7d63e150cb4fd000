"""The errors that a user may see: one root, one message each, one exit code each.

An error says *what* is wrong, *where* it stands and how to *fix* it. The command line prints
the message and leaves with `exit_code`; only an error that is not an `OptimcError` is a bug
(exit 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process answers to a pipeline."""

    OK = 0
    BUG = 1
    INPUT = 2
    CELL = 3
    GATE_FAILED = 4
    GATE_UNDECIDED = 5
    INTERRUPTED = 130


class OptimcError(Exception):
    """The root of all errors that are not bugs of optimc."""

    exit_code: ClassVar[ExitCode] = ExitCode.INPUT

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  fix: {self.fix}" if self.fix else text


class InputError(OptimcError):
    """The recipe, a model, data or the command line is wrong (exit 2)."""


class CellError(OptimcError):
    """A cell (variant x target) that was asked for failed (exit 3)."""

    exit_code = ExitCode.CELL


class PreconditionError(CellError):
    """A pass cannot run on this model; says what is wrong and what to do."""


class VerificationError(CellError):
    """A required pass or an engine did not prove itself on data."""


class UnavailableError(CellError):
    """A target or an extra is not installed or cannot run on this machine."""


class WorkerError(CellError):
    """A worker process ended in a way that leaves no result."""


class WorkerCrashedError(WorkerError):
    """A worker died by a signal or left with an exit code."""


class WorkerMemoryError(WorkerError):
    """A worker met its memory limit."""


class WorkerTimeoutError(WorkerError):
    """A worker met its time limit and was killed."""


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint such as ``did you mean `simplify`?``, or None where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else None


def unknown_name(
    kind: str, word: str, known: Iterable[str], *, where: str | None = None
) -> InputError:
    """The error for a name that does not exist, with the near one or the whole list."""
    names = sorted(known)
    hint = did_you_mean(word, names)
    listed = ", ".join(names) if names else "none"
    return InputError(
        f"unknown {kind} `{word}`",
        where=where,
        fix=f"{hint} known: {listed}" if hint else f"known: {listed}",
    )


def missing_extra(extra: str, for_what: str) -> UnavailableError:
    """The error for an optional dependency that is not installed."""
    return UnavailableError(
        f"{for_what} needs the extra `{extra}`, which is not installed",
        fix=f"pip install 'optimc[{extra}]'",
    )
