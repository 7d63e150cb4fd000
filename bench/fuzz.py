"""Fuzzes passes and the whole pipeline with generated graphs or bad inputs, within a time limit.

    python bench/fuzz.py --graphs 10000 --seconds 600 --runtime onnxruntime --seed 0
    python bench/fuzz.py --inputs 10000 --seconds 600 --seed 0 [--programs]

Each graph is built by `optimc build` in process, in several variants, and what is delivered is held
against the source on inputs of their own. Children do the work, so that a native crash or a hang is
a find like any other, as is a bad input that takes over 10 s. Prints totals as JSON: graphs,
verdicts, operators and opsets met, finds. Seeds of finds are kept with model and recipe in the
folder --keep. Exit code 1 where a wrong result was delivered or something broke.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHUNK = 400
"""Graphs of one child: what runtimes leak goes with it."""
HANG_S = 60.0
START_S = 180.0
"""For the first answer of a child, which imports everything."""
MEMORY_BYTES = 4_000_000_000
"""What one child may use."""
ROOT = Path(__file__).parents[1]


def main() -> int:
    """Runs the command line that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--inputs", type=int, help="so many bad inputs in place of graphs")
    parser.add_argument("--programs", action="store_true", help="bad .pt2 files among the inputs")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino"], default="onnxruntime")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--keep", type=Path, help="a folder for the finds")
    parser.add_argument("--out", type=Path, help="a file for one line of JSON a graph")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.graphs = options.inputs or options.graphs
    return child(options) if options.child else parent(options)


def child(options: argparse.Namespace) -> int:
    """One chunk: a line of JSON on stdout for each graph."""
    import warnings

    from optimc.cli import main as main_of_optimc
    from optimc.testing.fuzzing import fuzz_seed, keep_find
    from optimc.testing.input_fuzzing import KINDS, PROGRAMS, fuzz_input

    warnings.simplefilter("ignore")
    kinds = {**KINDS, **PROGRAMS} if options.programs else KINDS
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    for seed in range(options.seed, options.seed + options.graphs):
        if seed == options.seed + 2:
            gc.freeze()  # what was imported and made stays: no need to look through it again
        if options.inputs:
            print(fuzz_input(seed, ROOT / "recipes", main_of_optimc, kinds).json(), flush=True)
            continue
        outcome = fuzz_seed(seed, options.runtime)
        if outcome.finds and options.keep:
            keep_find(outcome, options.keep, options.runtime)
        print(outcome.json(), flush=True)
    return 0


def parent(options: argparse.Namespace) -> int:
    """Children one after the other until all graphs are done or the time is up."""
    from optimc.testing.fuzzing import totals

    started, done = time.monotonic(), 0
    outcomes: list[dict[str, Any]] = []
    while done < options.graphs and time.monotonic() - started < options.seconds:
        count = min(CHUNK, options.graphs - done)
        left = options.seconds - (time.monotonic() - started)
        found, ended = run_chunk(options, options.seed + done, count, left)
        outcomes += found
        done += len(found)
        if ended is not None:  # the graph after the last answer took the child with it
            seed = options.seed + done
            lost = {"seed": seed, "opset": 0, "operators": [], "verdicts": {}, "finds": [ended]}
            outcomes.append(lost)
            done += 1
    if options.out:
        with open(options.out, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(outcome) + "\n" for outcome in outcomes)
    summary = totals(outcomes)
    summary |= {"first_seed": options.seed, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(summary, indent=1))
    for outcome in outcomes:
        for find in outcome["finds"]:
            print(f"seed {outcome['seed']}: {find}"[:600])
    bad = [o for o in outcomes if any("rolled back" not in find for find in o["finds"])]
    return 1 if bad else 0


def run_chunk(
    options: argparse.Namespace, seed: int, count: int, seconds: float
) -> tuple[list[dict[str, Any]], str | None]:
    """The outcomes of one child, and how it died or hung, or None."""
    what = "--inputs" if options.inputs else "--graphs"
    command = [sys.executable, __file__, "--child", "--seed", str(seed), what, str(count)]
    command += ["--runtime", options.runtime]
    command += ["--keep", str(options.keep)] if options.keep else []
    command += ["--programs"] if options.programs else []
    found: list[dict[str, Any]] = []
    until = time.monotonic() + seconds
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        buffer = b""
        last = time.monotonic()
        try:
            while len(found) < count:
                ready, _, _ = select.select([process.stdout], [], [], 1.0)
                if ready:
                    data = os.read(process.stdout.fileno(), 1 << 16)
                    if not data:
                        return found, f"the process died with {process.wait()}"
                    *lines, buffer = (buffer + data).split(b"\n")
                    found += [json.loads(line) for line in lines]
                    last = time.monotonic()
                elif time.monotonic() > until:
                    return found, None
                elif time.monotonic() - last > (HANG_S if found else START_S):
                    return found, f"no answer within {time.monotonic() - last:.0f} s"
                if time.monotonic() > until:
                    return found, None
        finally:
            process.kill()
    return found, None


if __name__ == "__main__":
    sys.exit(main())
