"""Running a command on a terminal, as a user sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_on_terminal(
    command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], columns: int = 100
) -> tuple[int, str]:
    """The exit code of `command` and what it wrote to a terminal of this width, as it came."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command, cwd=cwd, env=dict(environment), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end was closed
            break
        if not piece:
            break
        written += piece
    os.close(ours)
    return process.wait(), written.decode("utf-8", "replace")


def lines_on_terminal(written: str) -> list[str]:
    """The lines that were shown, those that were drawn over included, without escapes."""
    return [_ESCAPES.sub("", line) for line in re.split(r"[\r\n]+", written)]
