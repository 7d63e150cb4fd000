"""The user's own test of a model, run as `git bisect run` runs one: without a shell.

``--command "python check.py {}"``: `{}` is the model's file; it also stands in OPTIMC_MODEL. Exit
code 0 says good, 125 that nothing can be said, and every other one bad. 126 and 127 are what shells
answer where there is no such program: these are errors. A process that dies by a signal is bad.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optimc.core.errors import InputError, WorkerTimeoutError
from optimc.pipeline.minimizing import Verdict

MODEL_VARIABLE = "OPTIMC_MODEL"
INPUTS_VARIABLE = "OPTIMC_INPUTS"
_SKIP = 125
_NOT_RUN = (126, 127)
_TAIL = 2000


@dataclass(frozen=True)
class UserCommand:
    """A command line that judges a model by its exit code."""

    words: tuple[str, ...]
    seconds: float = 600.0
    """How long one run may take."""
    saying: str | None = None
    """What the output of a bad run has to hold: a run that fails in another way says nothing."""

    @classmethod
    def parse(cls, text: str, *, seconds: float = 600.0, saying: str | None = None) -> UserCommand:
        """Reads the text of ``--command``. Raises InputError for one that is no command."""
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise InputError(
                f"cannot be read: {error}", where="--command", fix="look at the quotes"
            ) from error
        if not words:
            raise InputError(
                "the command is empty",
                where="--command",
                fix='such as --command "python check.py {}"',
            )
        return cls(tuple(words), seconds, saying)

    def arguments(self, model: Path, inputs: Path | None = None) -> list[str]:
        """The words with the files in their places."""
        values = {"{}": str(model), "{inputs}": str(inputs or "")}
        made = []
        for word in self.words:
            for place, value in values.items():
                word = word.replace(place, value)
            made.append(word)
        return made

    def judge(self, model: Path, inputs: Path | None = None) -> Verdict:
        """Runs the command on the file `model`.

        Raises InputError where the program cannot be run, WorkerTimeoutError where it takes too
        long. Nothing of the process is left behind, Ctrl-C included.
        """
        code, output = self._run(model, inputs)
        if code in _NOT_RUN:
            raise InputError(
                f"the command could not be run (exit code {code}): {_last_line(output)}",
                where="--command",
                fix="try the command by hand on the model",
            )
        if code == 0:
            return Verdict.GOOD
        if code == _SKIP:
            return Verdict.SKIPPED
        if self.saying is not None and self.saying not in output:
            return Verdict.SKIPPED
        return Verdict.BAD

    def _run(self, model: Path, inputs: Path | None) -> tuple[int, str]:
        variables: Mapping[str, str] = {
            MODEL_VARIABLE: str(model),
            **({INPUTS_VARIABLE: str(inputs)} if inputs else {}),
        }
        with tempfile.TemporaryFile() as log:
            try:
                process = subprocess.Popen(
                    self.arguments(model, inputs),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **variables},
                    start_new_session=True,  # so that all it starts can be ended with it
                )
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise InputError(
                    f"`{self.words[0]}` cannot be run: {reason}",
                    where="--command",
                    fix="name a program that is installed; no shell reads the command",
                ) from error
            try:
                code = process.wait(timeout=self.seconds)
            except subprocess.TimeoutExpired as error:
                raise WorkerTimeoutError(
                    f"the command did not end within {self.seconds:g} s",
                    where="--command",
                    fix="make it faster, or raise --time-limit",
                ) from error
            finally:
                _end(process)
            size = log.seek(0, os.SEEK_END)
            log.seek(0 if self.saying else max(0, size - _TAIL))
            return code, log.read().decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and what it started, where anything of it is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it said nothing"
