"""Simulated engines and clock: what a measurement says of them can be held to the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Noise = Callable[[float, int, np.random.Generator], NDArray[np.float64]]
    """From the time, the number of runs and a generator: the factors on the runs' times."""


class Clock:
    """Seconds that pass only where an engine works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """Takes `milliseconds` a run, times the session's luck, times what `noise` draws."""

    def __init__(
        self,
        clock: Clock,
        milliseconds: float,
        *,
        seed: int = 0,
        noise: Noise | None = None,
        load_ms: float = 20.0,
        luck: float = 0.01,
    ) -> None:
        self.clock, self.milliseconds, self.load_ms = clock, milliseconds, load_ms
        self.random = np.random.default_rng(seed)
        self.noise = noise
        self.spread = luck
        self.luck = 1.0
        self.cold = 3
        self.calls: list[int] = []
        self.opened = 0

    def reopen(self) -> float:
        """A fresh session, whose first three runs are cold."""
        self.opened += 1
        self.cold = 3
        self.luck = float(np.exp(self.random.normal(0, self.spread)))
        self.clock.now += self.load_ms / 1e3
        return self.load_ms

    def time_block(self, runs: int) -> NDArray[np.int64]:
        """Nanoseconds [runs]."""
        self.calls.append(runs)
        factors = np.full(runs, self.luck)
        if self.noise is not None:
            factors *= self.noise(self.clock.now, runs, self.random)
        factors[: self.cold] *= 3
        self.cold = max(self.cold - runs, 0)
        samples = (self.milliseconds * 1e6 * factors).astype(np.int64)
        self.clock.now += samples.sum() / 1e9
        return samples


def skewed(now: float, runs: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Every run takes a little longer, few much."""
    factors: NDArray[np.float64] = np.exp(random.exponential(0.05, runs))
    return factors


def drifting(now: float, runs: int, random: np.random.Generator) -> NDArray[np.float64]:
    """The machine slows down and recovers by 30 %."""
    return float(1 + 0.3 * np.sin(now / 3)) * skewed(now, runs, random)


def bimodal(now: float, runs: int, random: np.random.Generator) -> NDArray[np.float64]:
    """The whole machine is at times 1.7 times as slow, as where a neighbour shares the core."""
    slow = 1.7 if int(now * 2) * 2654435761 % 5 == 0 else 1.0
    return slow * skewed(now, runs, random)
