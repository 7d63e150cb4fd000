"""Throughput with concurrent requests: how much the whole machine gets done, not 1 / latency.

As many streams run at once as the cores have room for, each with a session and a thread of its
own. A round opens fresh sessions, as for latencies; the interval is over the rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from optimc.measure.statistics import Interval, ratio_interval

ROUNDS = 5
ROUND_S = 0.4
"""Seconds of running in each round; opening comes on top."""


class Streaming(Protocol):
    """An engine in a worker process that can run several sessions at once."""

    def throughput(self, streams: int, seconds: float) -> tuple[int, float]:
        """Runs, and the seconds that they took together."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Samples per second."""

    per_s: Interval
    streams: int
    threads: int
    """Of each stream."""
    batch: int
    """Samples in one run."""


def streams_for(threads: int, cores: int) -> int:
    """How many streams of `threads` threads have room on `cores`; 0 threads take all cores."""
    return max(cores // threads, 1) if threads else 1


def measure_throughput(
    engine: Streaming, *, threads: int, cores: int, batch: int, rounds: int = ROUNDS
) -> Throughput:
    """The throughput of `engine`, whose runs hold `batch` samples.

    Raises what the engine's worker raises.
    """
    import numpy as np

    streams = streams_for(threads, cores)
    rates = []
    for _ in range(rounds):
        runs, seconds = engine.throughput(streams, ROUND_S)
        rates.append(runs * batch / max(seconds, 1e-9))
    found = ratio_interval(np.log(rates))
    assert isinstance(found, Interval)
    found = replace(found, method="t interval of the trimmed mean of the rounds' log rates")
    return Throughput(found, streams, threads or cores, batch)
