"""How far the gate can be trusted, and whether peers' tools see the same.

    python bench/gate.py [aa ab coverage accuracy peers time] [--runs 200] [--changed 100]
                         [--seconds 12] [--keep FILE] [--for SECONDS]

- aa: an engine against itself, the second core loaded in every second run;
- ab: the same engine with one layer of 19 more (5.2 % slower, measured) at a margin of 2 %;
- coverage: of the 95 % interval in simulation, over skewed, drifting and bimodal noise;
- accuracy: a drop of 1 point and one of 0.02 points on 5,000 samples, at a margin of 0.5 points;
- peers: a speed-up by optimc, by OpenVINO's benchmark_app and by a plain ONNX Runtime loop;
- time: the whole process of a gate on ready reports.

aa, ab, peers and time want a machine with nothing else on it. With `--keep` the runs of aa and ab
go into a file, from which the next call goes on; `--for` ends a call after so many seconds.
Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from optimc.measure.latency import SamplingPlan, measure
from optimc.measure.machine import describe_machine
from optimc.measure.statistics import Interval, ratio_interval
from optimc.pipeline.regression.remeasure import (
    BASELINE,
    CANDIDATE,
    speed_verdict,
    time_side_by_side,
)
from optimc.pipeline.turns import time_in_turns
from optimc.targets.client import EngineWorker
from optimc.testing.gate_builds import build_folder
from optimc.testing.simulated import Clock, Engine, bimodal, drifting, skewed
from optimc.testing.timed import timed_chain

LAYERS = 19
MARGIN = 0.02
FALSE_ALARMS = 0.002
BUSY = "while True: sum(range(10_000))"
PARTS = ("aa", "ab", "coverage", "accuracy", "peers", "time")


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


def gate_runs(options: argparse.Namespace, parts: list[str]) -> None:
    """A/A and A/B, in turns, until there are enough or the time is up."""
    kept: list[dict[str, Any]] = []
    if options.keep and options.keep.exists():
        kept = [json.loads(line) for line in options.keep.read_text().splitlines()]
    wanted = {"aa": options.runs, "ab": options.changed}
    started = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        layers = {"source": LAYERS, "aa": LAYERS, "ab": LAYERS + 1}
        engines = {
            name: stack.enter_context(timed_chain(name, count, folder / name))
            for name, count in layers.items()
        }
        while True:
            counts = Counter(run["part"] for run in kept)
            left = [part for part in parts if counts[part] < wanted[part]]
            if not left or time.monotonic() - started > options.time - options.seconds:
                break
            part = max(left, key=lambda name: 1 - counts[name] / wanted[name])
            number = counts[part]
            loaded = part == "aa" and number % 2 == 1
            run = one_run(engines["source"], engines[part], number, options.seconds, loaded)
            kept.append({"part": part, **run})
            if options.keep:
                with options.keep.open("a") as file:
                    file.write(json.dumps(kept[-1]) + "\n")
    print("| gate runs | runs | passed | failed | undecided | decided | slowdown | seconds |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: |")
    for part, loaded in (("aa", False), ("aa", True), ("ab", False)):
        row(part, loaded, [r for r in kept if r["part"] == part and r["loaded"] == loaded])
    print(flush=True)


def one_run(
    source: EngineWorker, candidate: EngineWorker, seed: int, seconds: float, loaded: bool
) -> dict[str, Any]:
    """One gate run as `optimc gate --remeasure` does it."""
    hogs = max(describe_machine().cores - 1, 1) if loaded else 0
    with busy(hogs):
        timings = time_side_by_side(
            {BASELINE: source, CANDIDATE: candidate},
            margin=MARGIN,
            false_alarms=FALSE_ALARMS,
            seconds=seconds,
            seed=seed,
        )
    ratio = timings.ratio(CANDIDATE, BASELINE)
    point = 1 / ratio.point - 1 if isinstance(ratio, Interval) else float("nan")
    verdict = speed_verdict(timings, MARGIN, FALSE_ALARMS)
    return {
        "verdict": verdict,
        "slowdown": point,
        "seconds": timings.seconds,
        "rounds": timings.rounds,
        "loaded": loaded,
    }


def row(part: str, loaded: bool, runs: list[dict[str, Any]]) -> None:
    """One line of the table."""
    if not runs:
        return
    count = Counter(run["verdict"] for run in runs)
    title = {"aa": "itself", "ab": f"one layer of {LAYERS} more"}[part]
    slow = statistics.median(run["slowdown"] for run in runs)
    seconds = statistics.median(run["seconds"] for run in runs)
    decided = 1 - count["undecided"] / len(runs)
    print(
        f"| {title}{', a core busy' if loaded else ''} | {len(runs)} | {count['passed']} "
        f"| {count['failed']} | {count['undecided']} | {decided:.0%} | {100 * slow:.2f} % "
        f"| {seconds:.1f} |"
    )


def coverage(trials: int) -> None:
    """How often the 95 % interval holds the truth, with and without looks in between."""
    print("| noise | trials | fixed time | stopped when decided |")
    print("| --- | --: | --: | --: |")
    for noise in (skewed, drifting, bimodal):
        hits = [0, 0]
        for seed in range(trials):
            for way in (0, 1):
                clock = Clock()
                subjects = {
                    "cell": Engine(clock, 1.0, seed=2 * seed, noise=noise),
                    "source": Engine(clock, 1.3, seed=2 * seed + 1, noise=noise),
                }
                timings = measure(
                    subjects,
                    SamplingPlan(at_most_s=4),
                    decided=_beside if way else None,
                    seed=seed,
                    clock=clock,
                )
                found = timings.ratio("cell", "source")
                assert isinstance(found, Interval)
                hits[way] += found.ci95[0] <= 1.3 <= found.ci95[1]
        shares = " | ".join(f"{hit / trials:.1%}" for hit in hits)
        print(f"| {noise.__name__} | {trials} | {shares} |", flush=True)
    print()


def _beside(timings: Any) -> bool:
    """Decided about a limit next to the truth."""
    found = timings.ratio("cell", "source")
    return isinstance(found, Interval) and (found.lower > 1.29 or found.upper < 1.29)


def gate_command(candidate: Path, baseline: Path, *more: str) -> tuple[int, float]:
    """The exit code of `optimc gate`, and the seconds of the whole process."""
    start = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "optimc",
            "gate",
            str(candidate),
            "--baseline",
            str(baseline),
            *more,
        ],
        capture_output=True,
        check=False,
    )
    return done.returncode, time.perf_counter() - start


def accuracy() -> None:
    """Drops on 5,000 samples of which the engines disagree on 1.3 %, at a margin of 0.5 points."""
    print("| drop | margin | exit code |\n| --: | --: | --: |")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        policy = folder / "policy.yaml"
        policy.write_text("drop: {top1: 0.005}\n")
        baseline = build_folder(folder / "baseline", lost=0, won=0)
        for lost, won in ((58, 8), (33, 32)):
            candidate = build_folder(folder / f"lost{lost}", lost=lost, won=won)
            code, _ = gate_command(candidate, baseline, "--policy", str(policy))
            print(f"| {(lost - won) / 50:.2f} points | 0.5 points | {code} |", flush=True)
    print()


def ready_reports(runs: int = 7) -> None:
    """The gate on ready reports with records of 5,000 samples."""
    with tempfile.TemporaryDirectory() as text:
        baseline = build_folder(Path(text) / "baseline", lost=0, won=0)
        candidate = build_folder(Path(text) / "candidate", lost=10, won=10)
        seconds = [gate_command(candidate, baseline)[1] for _ in range(runs)]
    shown = f"{statistics.median(seconds):.2f} s (of {runs}; {min(seconds):.2f} to"
    print(f"gate on ready reports, whole process: {shown} {max(seconds):.2f})\n", flush=True)


PLAIN_LOOP = """
import sys, time, numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1; options.log_severity_level = 3
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = {i.name: np.random.default_rng(0).standard_normal(
    [d if isinstance(d, int) else 1 for d in i.shape]).astype(np.float32)
    for i in session.get_inputs()}
bound = session.io_binding()  # benchmark_app has its tensors in place, too
for name, array in feeds.items(): bound.bind_cpu_input(name, array)
for output in session.get_outputs(): bound.bind_output(output.name)
end, times = time.perf_counter() + float(sys.argv[2]), []
for _ in range(50): session.run_with_iobinding(bound)
while time.perf_counter() < end:
    start = time.perf_counter()
    session.run_with_iobinding(bound)
    times.append(time.perf_counter() - start)
print(1e3 * float(np.median(times)))
"""


def on_core(core: int, command: list[str]) -> str:
    """What a process prints that has but this core."""
    done = subprocess.run(
        ["taskset", "--cpu-list", str(core), *command], capture_output=True, text=True, check=True
    )
    return done.stdout


def plain_loop(model: Path, seconds: float, core: int) -> float:
    """The median latency in ms by a loop of ONNX Runtime, in its own process."""
    command = [sys.executable, "-c", PLAIN_LOOP, str(model), str(seconds)]
    return float(on_core(core, command).strip().splitlines()[-1])


def benchmark_app(model: Path, shape: str, seconds: float, core: int) -> float:
    """The median latency in ms by OpenVINO's own tool, in its own process."""
    tool = "from openvino.tools.benchmark.main import main; main()"
    command = [sys.executable, "-c", tool, "-m", str(model), "-d", "CPU"]
    command += ["-data_shape", shape]  # dims that are dynamic stay so, as they do elsewhere here
    command += ["-hint", "none", "-nstreams", "1", "-nthreads", "1", "-nireq", "1", "-api", "sync"]
    command += ["-infer_precision", "f32", "-t", str(max(round(seconds), 1))]
    printed = on_core(core, command)
    found = re.search(r"Median:\s+([\d.]+) (ms|us)", printed)
    if found is None:
        raise SystemExit(f"benchmark_app gave no median:\n{printed[-2000:]}")
    return float(found[1]) / (1.0 if found[2] == "ms" else 1e3)


def peers(model: Path, shape: str, rounds: int, seconds: float) -> None:
    """OpenVINO over ONNX Runtime, by optimc and by each runtime's own means, in turns."""
    ratios = []
    cores = sorted(os.sched_getaffinity(0))
    for index in range(rounds):
        core = cores[index % len(cores)]  # one may be slower than the next: see pipeline/turns.py
        theirs = plain_loop(model, seconds, core)
        ratios.append(theirs / benchmark_app(model, shape, seconds, core))
    by_peers = ratio_interval(np.log(ratios))
    ours = _ours(model, 6 * rounds * seconds / 5)
    print("| OpenVINO over ONNX Runtime, 1 thread, FP32 | speed-up | 95 % interval |")
    print("| --- | --: | --- |")
    for name, found in (("optimc", ours), ("benchmark_app and a plain loop", by_peers)):
        assert isinstance(found, Interval)
        print(f"| {name} | {found.point:.3f} | {found.ci95[0]:.3f} to {found.ci95[1]:.3f} |")
    print(flush=True)


def _ours(model: Path, seconds: float) -> Interval | str:
    """The same pair by optimc: fresh sessions in turns."""
    from optimc.core.registry import target_class
    from optimc.frontends.onnx import load_onnx
    from optimc.pipeline.bench_inputs import seeded_feeds
    from optimc.targets.client import build_engine

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {}
        for runtime in ("onnxruntime", "openvino"):
            own = folder / runtime
            for part in ("ingest", "model", "engine"):
                (own / part).mkdir(parents=True)
            loaded = load_onnx(model, workspace=own / "ingest").model
            loaded.save(own / "model" / "stored")
            target = target_class(runtime).model_validate({"runtime": runtime, "threads": 1})
            engine = build_engine(target, own / "model" / "stored", own / "engine", name=runtime)
            workers[runtime] = stack.enter_context(EngineWorker(engine, name=runtime))
            workers[runtime].bind(seeded_feeds(engine.signature, {}))
        timings = time_in_turns(workers, SamplingPlan(at_most_s=seconds))
        return timings.ratio("openvino", "onnxruntime")


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="all by default")
    parser.add_argument("--runs", type=int, default=200, help="A/A runs")
    parser.add_argument("--changed", type=int, default=100, help="A/B runs")
    parser.add_argument("--seconds", type=float, default=12.0, help="the most for one gate run")
    parser.add_argument("--trials", type=int, default=1000, help="simulations for each noise")
    parser.add_argument("--keep", type=Path, help="file of the runs so far")
    parser.add_argument("--for", dest="time", type=float, default=1e9, help="seconds for aa and ab")
    parser.add_argument("--model", type=Path, help="ONNX file for peers")
    parser.add_argument("--shape", default="[1,3,32,32]", help="its input's shape for peers")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    machine = describe_machine()
    print(f"{machine.cpu}, {machine.cores} cores, {machine.os}, load {machine.load_average}\n")
    if "coverage" in parts:
        coverage(options.trials)
    if "accuracy" in parts:
        accuracy()
    if "time" in parts:
        ready_reports()
    if "peers" in parts and options.model is None:
        print("peers: skipped, no --model\n")
    elif "peers" in parts:
        peers(options.model, options.shape, 16, 1.0)
    if {"aa", "ab"} & set(parts):
        gate_runs(options, [part for part in ("aa", "ab") if part in parts])


if __name__ == "__main__":
    main()
