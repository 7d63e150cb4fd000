"""Rich's tables and lines as text of a fixed width, for a terminal or a log."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from optimc.report.escape import log_line

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100


def rendered(parts: Iterable[RenderableType], *, width: int = WIDTH, color: bool = False) -> str:
    """The parts, one below the other; no line is wider than `width` columns, 100 at most.

    With `color` the text holds ANSI escapes of ours; whatever else a line could do to a terminal or
    to a log is made visible.
    """
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=min(width, WIDTH) - 1,  # `log_line` may add a character
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(part, overflow="fold")
    lines = (log_line(line).rstrip() for line in buffer.getvalue().split("\n"))
    return "\n".join(lines).rstrip("\n") + "\n"


def wants_color(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that takes colours, and NO_COLOR is not set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain
