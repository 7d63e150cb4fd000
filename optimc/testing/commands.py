"""Running the command line as a user does: a process of its own, and what it left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def traceback(self) -> bool:
        """Whether a user was shown a traceback, or a bug was admitted."""
        text = self.out + self.err
        return "Traceback (most recent call last)" in text or "bug in optimc" in text


def run_optimc(
    *arguments: str | Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 240.0,
) -> Finished:
    """Runs ``optimc ARGUMENTS`` in the folder `cwd` and waits for its end."""
    done = subprocess.run(
        [sys.executable, "-m", "optimc", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def temporary_leftovers(folder: Path) -> list[Path]:
    """Files and folders under `folder` that were meant to be temporary."""
    return [path for path in folder.rglob("*") if ".optimc-tmp-" in path.name]


def workers_with(variable: str, value: str) -> list[int]:
    """Worker processes, of any build, whose environment holds this: what a build left running."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            ours = "optimc.core.worker_main" in process.cmdline()
            if ours and process.environ().get(variable) == value:
                found.append(process.pid)
        except psutil.Error:
            continue  # it ended meanwhile
    return found
