"""What verification costs: CPU seconds a pass and an engine, and its share of a build from scratch.

    MODEL=all-MiniLM-L6-v2 STS=folder python bench/verification.py recipes/minilm.yaml --verify fast

Nothing is measured but the build itself (`--no-measure`); the cache is empty. Verification is all
that judges passes (`PassVerifier.judge`), asks engines (`Asking`, in the process that built them)
and judges them (`EngineBuilder.prove`), and looks what the probes reach; the share is of all
seconds of passes and engines, verification included. CPU seconds are those of this process and of
its workers, each worker's counted where it was called: seconds on the clock also count waiting for
the other core and for one another. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from optimc.core.worker import Worker
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.engine_answers import Asking
from optimc.pipeline.engines import EngineBuilder
from optimc.pipeline.manager import PassManager
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.pipeline.verification import PassVerifier

PHASES = {
    "pass": (PassManager, "run"),
    "judge": (PassVerifier, "judge"),
    "engine": (EngineBuilder, "build"),
    "asking": (Asking, "__call__"),
    "proof": (EngineBuilder, "prove"),
    "reach": (Build, "_steering"),
}
VERIFICATION = ("judge", "asking", "proof", "reach")
INSIDE = ("judge", "asking")
"""These run within others: a pass, and the building of an engine."""
OTHER = "the rest"


@dataclass
class Phase:
    """One call of what `PHASES` names."""

    name: str
    cpu_s: float = 0.0
    """Without the phases inside of it."""


@dataclass
class Ledger:
    """Who spent what."""

    ended: list[Phase] = field(default_factory=list)
    wall_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Phases inside are counted twice here: in themselves and in what is around them."""
    calls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0.0]))
    """Times and CPU seconds of the calls of workers, by phase, service and method."""
    _here: threading.local = field(default_factory=threading.local)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def phase(self, name: str, right: Callable[..., Any]) -> Callable[..., Any]:
        """`right`, whose time is that of the phase `name`."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            stack = self._stack()
            self._settle(stack)
            mine, started = Phase(name), time.perf_counter()
            stack.append(mine)
            try:
                return right(*arguments, **options)
            finally:
                self._settle(stack)
                stack.pop()
                with self._turn:
                    self.ended.append(mine)
                    self.wall_s[name].append(time.perf_counter() - started)

        return wrapped

    def call(self, right: Callable[..., Any]) -> Callable[..., Any]:
        """`Worker.call`, with the worker's own time in the phase that called."""

        def wrapped(worker: Any, method: str, *arguments: Any, **options: Any) -> Any:
            if method == "__init__":
                worker.spent_s, worker.serves = 0.0, options["service"].partition(":")[2]
            try:
                return right(worker, method, *arguments, **options)
            finally:
                spent = _cpu_of(worker.pid, worker.spent_s) - worker.spent_s
                worker.spent_s += spent
                phase = (self._stack() or [Phase(OTHER)])[-1]
                phase.cpu_s += spent
                with self._turn:
                    line = self.calls[f"{phase.name}: {worker.serves}.{method}"]
                    line[0], line[1] = line[0] + 1, line[1] + spent

        return wrapped

    def _stack(self) -> list[Phase]:
        if not hasattr(self._here, "stack"):
            self._here.stack, self._here.since = [], time.thread_time()
        stack: list[Phase] = self._here.stack
        return stack

    def _settle(self, stack: list[Phase]) -> None:
        """Puts what this thread spent since the last time into its innermost phase."""
        now = time.thread_time()
        if stack:
            stack[-1].cpu_s += now - self._here.since
        self._here.since = now

    def of(self, *names: str) -> float:
        """CPU seconds of phases."""
        return sum(phase.cpu_s for phase in self.ended if phase.name in names)

    def each(self, name: str) -> list[float]:
        """CPU seconds of each call of a phase."""
        return [round(phase.cpu_s, 2) for phase in self.ended if phase.name == name]


def _cpu_of(pid: int, known: float) -> float:
    """CPU seconds of a process by its own clock, see clock_getcpuclockid(3)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return known  # it is gone


def figures_of(ledger: Ledger) -> dict[str, Any]:
    """The shares and what they are made of."""
    work = ledger.of(*PHASES)
    verification = ledger.of(*VERIFICATION)
    wall = {name: sum(seconds) for name, seconds in ledger.wall_s.items()}
    wall_verification = sum(wall.get(name, 0.0) for name in VERIFICATION)
    wall_work = sum(seconds for name, seconds in wall.items() if name not in INSIDE)
    calls = sorted(ledger.calls.items(), key=lambda item: -item[1][1])
    return {
        "cpu_s": {name: ledger.each(name) for name in PHASES},
        "cpu_s_in_all": {name: round(ledger.of(name), 2) for name in PHASES},
        "calls": {name: [times, round(cpu, 2)] for name, (times, cpu) in calls if cpu >= 0.05},
        "clock_s": {n: [round(s, 2) for s in seconds] for n, seconds in ledger.wall_s.items()},
        "cpu_share": round(verification / work, 3),
        "cpu_to_the_rest": round(verification / (work - verification), 3),
        "clock_share": round(wall_verification / wall_work, 3),
    }


def main() -> int:
    """Builds once and prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--target", default=None)
    parser.add_argument("--variant", default=None)
    parser.add_argument("--verify", choices=["fast", "full", "off"], default="fast")
    arguments = parser.parse_args()
    ledger = Ledger()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OPTIMC_CACHE_DIR"] = f"{folder}/cache"
        options = BuildOptions(
            out=Path(folder) / "out",
            command="optimc build",
            measure=False,
            verify=arguments.verify,
            target=arguments.target,
            variant=arguments.variant,
        )
        recipe = load_recipe(arguments.recipe, arguments.settings)
        build = Build(recipe, options, Silent())
        before = time.process_time()
        with patch.object(Worker, "call", ledger.call(Worker.call)):
            patches = [
                patch.object(owner, method, ledger.phase(name, getattr(owner, method)))
                for name, (owner, method) in PHASES.items()
            ]
            for one in patches:
                one.start()
            report = build.run()
            for one in patches:
                one.stop()
        spent = time.process_time() - before
    figures = {
        "recipe": str(arguments.recipe),
        "effort": arguments.verify,
        "cells": {cell.name: cell.status for cell in report.results},
        "this_process_cpu_s": round(spent, 2),
        **figures_of(ledger),
    }
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
