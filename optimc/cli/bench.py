"""`optimc bench`."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimc.cli.display import Display
from optimc.core.errors import InputError
from optimc.pipeline.benching import BenchOptions, bench, parse_case
from optimc.report import figures
from optimc.report.escape import log_line, log_text


def run_bench(
    paths: list[Path],
    *,
    case: str,
    threads: int | None,
    seconds: float,
    runtime: str,
    inputs: Path | None,
    json_output: bool,
) -> int:
    """Measures, and prints a table (or JSON) on stdout."""
    sizes = parse_case(case)
    if sizes and inputs is not None:
        raise InputError(
            "the archive's arrays have their own sizes",
            where="--case",
            fix="leave out --case or --inputs",
        )
    with Display() as display:
        display.on_stage("measuring")
        found = bench(
            BenchOptions(paths, sizes, threads, seconds, runtime, inputs, display.on_share)
        )
    if json_output:
        print(json.dumps(found, indent=2))
    else:
        sys.stdout.write("\n".join(piece for line in _lines(found) for piece in _folded(line)))
        sys.stdout.write("\n")
    return 0


def _folded(line: str) -> list[str]:
    """Within 100 columns but for paths, which stay whole; safe for a terminal and a log."""
    pieces = textwrap.wrap(
        log_text(line),
        99,  # `log_line` may add a character
        subsequent_indent=" " * 15,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [log_line(piece) for piece in pieces or [""]]


def _lines(found: dict[str, Any]) -> Iterator[str]:
    machine = found["machine"]
    yield f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}"
    yield f"noise floor  {_ratio(found['noise_floor'])}, the first against itself"
    for one in found["subjects"]:
        yield ""
        yield one["name"]
        shapes = ", ".join(f"{n} {dtype}{shape}" for n, (dtype, shape) in one["inputs"].items())
        threads = figures.count(one["threads"], "thread") if one["threads"] else "all threads"
        yield f"  runtime      {one['runtime']}, {threads}; {shapes}"
        for name in ("p50", "p90", "p99"):
            yield f"  {name}          {_bracketed(one[f'{name}_ms'], ' ms')}"
        yield f"  runs         {one['runs']} in {found['sessions']} fresh sessions"
        throughput = one["throughput_per_s"]
        streams = f", {throughput['streams']} streams" if "streams" in throughput else ""
        yield f"  throughput   {_bracketed(throughput, ' per s')}{streams}"
        yield f"  first result {_plain(one['first_result_ms'], ' ms')}, cold"
        memory = _plain(one["peak_memory_mb"], " MB"), _plain(one["steady_memory_mb"], " MB")
        yield f"  memory       {memory[0]} at its peak, {memory[1]} steady"
        if one["speedup"] is not None:
            yield f"  speed-up     {_ratio(one['speedup'])} over the first"


def _ratio(value: dict[str, Any]) -> str:
    return _bracketed(value, "x")


def _bracketed(value: dict[str, Any], unit: str) -> str:
    if "skipped" in value:
        return f"skipped: {value['skipped']}"
    low, high = value["ci95"]
    return figures.bracketed(value["value"], (low, high), unit)


def _plain(value: Any, unit: str) -> str:
    if isinstance(value, dict):
        return f"skipped: {value['skipped']}"
    return f"{figures.number(value)}{unit}"
