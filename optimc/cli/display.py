"""Progress for people, on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from optimc.cli.estimate import Estimate
from optimc.cli.run import printable
from optimc.pipeline.observer import Silent
from optimc.report.escape import log_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

    from optimc.pipeline.manager import CompiledModel, PassOutcome

_PLAIN_EVERY_S = 10.0
_WIDTH = 100
_HANGING = 4
_MOST_NAMES = 4
"""Cells that the live line names; of more it gives the number."""


class Display(Silent):
    """Says what the build does. Rich is only loaded where stderr is a terminal.

    Elsewhere, in CI and on a terminal that cannot move its cursor, there are plain lines. Engines
    are built side by side: hooks may come from several threads at once.
    """

    def __init__(self, estimate: Estimate | None = None) -> None:
        self._started = time.monotonic()
        self._console: Console | None = None
        self._status: Status | None = None
        self._estimate = estimate or Estimate({})
        self._stage = ""
        self._doing = ""
        self._running: dict[str, None] = {}
        self._done = 0
        self._cells = 0
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if _live():
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False)
            self._stage = "starting"
            self._status = self._console.status(_Line(self.line), refresh_per_second=4)
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()
        self._estimate.end()

    def on_stage(self, text: str) -> None:
        """A line for the stage that begins."""
        self._stage, self._doing, self._done = text, "", 0
        self._estimate.stage(text)
        if self._console is None:
            self._line(text)

    def on_detail(self, text: str) -> None:
        """A line that stays; it is not folded, so that an error's reason can be searched for."""
        self._write([f"  {printable(text)}"])

    def on_share(self, done: float, text: str) -> None:
        """The live line with the share; elsewhere a line now and then."""
        self._doing = f"{done:.0%} {text}"
        if not self._running:  # the share of one cell among several says nothing of the stage
            self._estimate.share(done)
        if self._console is None and time.monotonic() - self._last_line > _PLAIN_EVERY_S:
            left = self._estimate.text()
            self._line(f"  {done:.0%} {text}" + (f", {left}" if left else ""))

    def on_cells(self, count: int) -> None:
        """How many cells the stage works on."""
        self._cells, self._done = count, 0

    def before_cell(self, name: str) -> None:
        """The live line names the cell."""
        self._running[name] = None

    def after_cell(self, name: str) -> None:
        """One cell more is done."""
        self._running.pop(name, None)
        self._done += 1
        self._estimate.share(self._done / max(self._cells, self._done))

    def before_pass(self, name: str, model: CompiledModel) -> None:
        """The live line names the pass."""
        self._doing = name

    def on_progress(self, name: str, share: float, text: str) -> None:
        """The live line shows how far the pass is."""
        self.on_share(share, f"{name}: {text}")

    def line(self) -> str:
        """What the live line says now."""
        running = list(self._running)
        parts = [self._stage]
        if running:
            named = ", ".join(running[:_MOST_NAMES])
            more = f" and {len(running) - _MOST_NAMES} more" if len(running) > _MOST_NAMES else ""
            parts.append(f"{self._done} of {self._cells} done, now {named}{more}")
        elif self._doing:
            parts.append(self._doing)
        left = self._estimate.text()
        return f"{self._elapsed()}{f', {left}' if left else ''}: {': '.join(parts)}"

    def after_pass(self, outcome: PassOutcome) -> None:
        """One line a pass: verdict, nodes, error, seconds."""
        finding = outcome.finding
        before, after = outcome.nodes
        nodes = f"{before} -> {after} nodes" if before != after else f"{after} nodes"
        facts = [nodes, f"{outcome.seconds:.2f} s" + (", cached" if outcome.cached else "")]
        if finding.sqnr_db is not None and finding.verdict == "lossy":
            facts.insert(1, f"SQNR {finding.sqnr_db:.1f} dB")
        elif finding.max_rel_error:
            facts.insert(1, f"error {finding.max_rel_error:.1e} of scale")
        reason = f": {finding.reason}" if finding.reason else ""
        verdict = finding.verdict.replace("_", " ")
        name = f"{outcome.name} for {outcome.runtime}" if outcome.runtime else outcome.name
        self._line(f"  {name:<28} {verdict}{reason} ({', '.join(facts)})")

    def _line(self, text: str) -> None:
        """A line, within 100 columns: what does not fit hangs under it."""
        columns = _WIDTH if self._console is None else min(_WIDTH, self._console.width)
        self._write(_folded(text, columns - (0 if self._console else len(self._stamp()))))

    def _write(self, lines: list[str]) -> None:
        self._last_line = time.monotonic()
        if self._console is not None:
            for line in lines:
                self._console.print(line, markup=False, soft_wrap=True)
            return
        first, *more = lines
        stamp = self._stamp()
        # One write a line: engines are built side by side.
        sys.stderr.write(
            "\n".join([f"{stamp}{first}", *(" " * len(stamp) + m for m in more)]) + "\n"
        )
        sys.stderr.flush()

    def _stamp(self) -> str:
        return f"[{self._elapsed():>7}] "

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._started:.1f} s"


def _folded(text: str, width: int) -> list[str]:
    """`text` within `width` columns; what does not fit hangs four columns deeper than it begins."""
    hanging = len(text) - len(text.lstrip(" ")) + _HANGING
    lines = textwrap.wrap(
        printable(text.replace("\n", " ")),
        max(width - 1, 2 * hanging),  # `log_line` may add a character
        subsequent_indent=" " * hanging,
        break_on_hyphens=False,
    )
    return [log_line(line) for line in lines or [""]]


class _Line:
    """A line that is asked anew whenever the terminal is drawn: its seconds go on."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text(printable(self._text()), no_wrap=True, overflow="ellipsis")


def _live() -> bool:
    """Whether stderr is a terminal that somebody looks at."""
    dumb = os.environ.get("TERM", "") in ("", "dumb")
    return sys.stderr.isatty() and not dumb and not os.environ.get("CI")
