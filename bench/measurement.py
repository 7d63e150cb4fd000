"""How far the measurement can be trusted: an engine against itself and a slower one against it.

    python bench/measurement.py [--runs 20] [--seconds 3]

Each run is a gate run as a build does it: fresh sessions of ONNX Runtime in processes of their
own, in turns, until the limit (no slower than 2 %) is decided or the time is up. Every second run
has a busy process beside it, one fewer than there are cores. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from optimc.measure.latency import SamplingPlan, Timings
from optimc.measure.machine import describe_machine
from optimc.measure.statistics import Interval
from optimc.pipeline.turns import time_in_turns
from optimc.targets.client import EngineWorker
from optimc.testing.timed import timed_chain

LAYERS = 20
MARGIN = 0.98
BUSY = "while True: sum(range(10_000))"


@dataclass(frozen=True)
class Run:
    """One gate run: the speed-up over the source, and what the sampling cost."""

    speedup: Interval
    rounds: int
    seconds: float
    loaded: bool

    @property
    def verdict(self) -> str:
        """Against the limit, as the gate decides it."""
        if self.speedup.lower >= MARGIN:
            return "passed"
        return "failed" if self.speedup.upper < MARGIN else "undecided"


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keeps `processes` cores busy."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def ratio(timings: Timings) -> Interval:
    """The candidate's speed-up; absurdly wide where there was but one round."""
    found = timings.ratio("candidate", "source")
    if isinstance(found, Interval):
        return found
    return Interval(1.0, (0.0, 1e9), 0.0, 1e9, 1, found)


def gate_run(
    source: EngineWorker, candidate: EngineWorker, seconds: float, seed: int, hogs: int
) -> Run:
    """One run, with `hogs` busy processes beside it."""

    def decided(timings: Timings) -> bool:
        return ratio(timings).lower >= MARGIN or ratio(timings).upper < MARGIN

    with busy(hogs):
        timings = time_in_turns(
            {"source": source, "candidate": candidate},
            SamplingPlan(at_most_s=seconds),
            decided=decided,
            seed=seed,
        )
    return Run(ratio(timings), timings.rounds, timings.seconds, hogs > 0)


def row(title: str, true: float | None, runs: list[Run]) -> str:
    """One line of the table."""
    verdicts = [run.verdict for run in runs]
    points = [run.speedup.point for run in runs]
    width = statistics.median(run.speedup.ci95[1] / run.speedup.ci95[0] - 1 for run in runs) / 2
    cover = "-"
    if true is not None:
        hits = sum(run.speedup.ci95[0] <= true <= run.speedup.ci95[1] for run in runs)
        cover = f"{hits} of {len(runs)}"
    counts = " / ".join(str(verdicts.count(v)) for v in ("passed", "failed", "undecided"))
    seconds = statistics.median(run.seconds for run in runs)
    return (
        f"| {title} | {len(runs)} | {statistics.median(points):.4f} | {100 * width:.2f} % "
        f"| {cover} | {counts} | {seconds:.1f} s |"
    )


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="gate runs for each line")
    parser.add_argument("--seconds", type=float, default=3.0, help="the most for one gate run")
    options = parser.parse_args()
    machine = describe_machine()
    hogs = max(machine.cores - 1, 1)
    print(f"{machine.cpu}, {machine.cores} cores, {machine.os}, load {machine.load_average}\n")
    print(
        "| against the source | runs | speed-up | +- | covers 1 | passed/failed/undecided | time |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with ExitStack() as stack:
        sizes = {"source": LAYERS, "itself": LAYERS, "one layer of 20 more": LAYERS + 1}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = {
            name: stack.enter_context(timed_chain(name, layers, folder / str(layers) / name))
            for name, layers in sizes.items()
        }
        for title, true in (("itself", 1.0), ("one layer of 20 more", None)):
            runs = [
                gate_run(
                    engines["source"], engines[title], options.seconds, seed, hogs * (seed % 2)
                )
                for seed in range(options.runs)
            ]
            for loaded in (False, True):
                named = f"{title}, {'a core busy' if loaded else 'alone'}"
                print(row(named, true, [run for run in runs if run.loaded == loaded]), flush=True)


if __name__ == "__main__":
    main()
