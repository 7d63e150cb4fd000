"""Progress for people, on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from optimc.cli.run import printable
from optimc.pipeline.observer import Silent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from optimc.core.model import OnnxModel
    from optimc.pipeline.manager import PassOutcome

_PLAIN_EVERY_S = 10.0


class Display(Silent):
    """Says what the build does. Rich is only loaded where stderr is a terminal."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._console: Console | None = None
        self._status: Status | None = None
        self._stage = ""
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False)
            self._status = self._console.status("starting")
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

    def on_stage(self, text: str) -> None:
        """A line for the stage that begins."""
        self._stage = text
        self._live(text)
        if self._console is None:
            self._line(text)

    def on_detail(self, text: str) -> None:
        """A line that stays."""
        self._line(f"  {text}")

    def on_share(self, done: float, text: str) -> None:
        """The live line with the share; elsewhere a line now and then."""
        line = f"{self._stage}: {done:.0%} {text}"
        self._live(line)
        if self._console is None and time.monotonic() - self._last_line > _PLAIN_EVERY_S:
            self._line(f"  {done:.0%} {text}")

    def before_pass(self, name: str, model: OnnxModel) -> None:
        """The live line names the pass."""
        self._live(f"{self._stage}: {name}")

    def on_progress(self, name: str, share: float, text: str) -> None:
        """The live line shows how far the pass is."""
        self.on_share(share, f"{name}: {text}")

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

    def _live(self, text: str) -> None:
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(f"{printable(text)}  {self._elapsed()}"))

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        line = printable(text)
        if self._console is not None:
            self._console.print(line, markup=False, soft_wrap=True)
        else:
            # One write a line: engines are built side by side.
            sys.stderr.write(f"[{self._elapsed():>7}] {line}\n")
            sys.stderr.flush()

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._started:.1f} s"
