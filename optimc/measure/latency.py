"""Paired, interleaved measurement of latencies over freshly opened sessions.

A round opens a fresh session of every subject, warms each up until it is steady, and then times
short blocks of runs in turns, in an order drawn anew for each sweep. What slows the machine for a
while slows all blocks of a sweep alike, and drops out of their ratio: on a shared machine latencies
jump by 1.7 times from one second to the next. What hits a single block is left behind by a median
over the sweeps, and what hits a round by a trimmed mean over the rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from optimc.core.errors import CellError, OptimcError
from optimc.measure.sequential import Look, nominal_level
from optimc.measure.statistics import ALPHA, Interval, Percentile, percentile, ratio_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUANTILE = 0.25
"""What stands for a block's runs in ratios. Other work on the machine only ever adds time: the
lower part of the runs is what repeats (Chen and Revels, arXiv:1608.04295). On a loaded machine the
interval is half as wide as with medians; on a quiet one it is the same."""

_MAX_RUNS = 2000
_SWEEPS = (5, 8)
_WANTED_ROUNDS = 8
_LEAD_MS = 3.0
"""Runs after a switch find cold caches: the first are 20, 8 and 4 % slower, and not counted."""
_STEADY = 0.02
"""Warm-up goes on while batches still get faster by more than this share."""


class Timed(Protocol):
    """An engine in a worker process that can be timed."""

    def reopen(self) -> float:
        """Closes the session, opens a fresh one and returns how long that took, in ms."""

    def time_block(self, runs: int) -> NDArray[np.int64]:
        """Runs the engine `runs` times with the garbage collector off; nanoseconds [runs]."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How long to sample, and when to look whether the question is decided."""

    at_most_s: float = 60.0
    """Seconds for all subjects together; the first round is finished in any case."""
    block_ms: float = 12.0
    """How long one block of one subject takes (one run at least)."""
    warm_up_ms: float = 150.0
    """The most that a session is warmed up (one run at least)."""
    min_rounds: int = 6
    """No look before so many rounds."""
    looks: tuple[float, ...] = (0.15, 0.3, 0.6)
    """Looks before the last one, as shares of `at_most_s`: few, as each costs some precision."""

    def __post_init__(self) -> None:
        if not all(0 < share < 1 for share in self.looks) or sorted(self.looks) != [*self.looks]:
            raise ValueError(f"looks must rise between 0 and 1: {self.looks}")


@dataclass(frozen=True, slots=True)
class Latency:
    """The latencies of one subject; a figure that the sample does not support is the reason."""

    p50: Percentile | str
    p90: Percentile | str
    p99: Percentile | str
    runs: int
    load_ms: tuple[float, ...]
    """How long each fresh session took to open."""
    steady: float
    """The share of the sessions whose warm-up was seen to end before anything was timed."""


@dataclass(frozen=True)
class Timings:
    """What was sampled: nanoseconds [sweeps, runs] for each subject and round."""

    samples: Mapping[str, tuple[NDArray[np.int64], ...]]
    load_ms: Mapping[str, tuple[float, ...]]
    steady: Mapping[str, tuple[bool, ...]]
    """For each session, whether its runs no longer got faster when it was timed."""
    looks: tuple[Look, ...]
    seconds: float
    stopped: Literal["decided", "time is up"]

    @property
    def rounds(self) -> int:
        """How many rounds of fresh sessions there were."""
        return self.looks[-1].rounds

    def latency(self, subject: str) -> Latency:
        """The percentiles of all runs of `subject`."""
        rounds = [samples.ravel() for samples in self.samples[subject]]
        return Latency(
            p50=percentile(rounds, 0.5),
            p90=percentile(rounds, 0.9),
            p99=percentile(rounds, 0.99),
            runs=sum(samples.size for samples in rounds),
            load_ms=self.load_ms[subject],
            steady=sum(self.steady[subject]) / len(self.steady[subject]),
        )

    def ratio(self, subject: str, reference: str, *, error: float = ALPHA) -> Interval | str:
        """How many times as fast as `reference` `subject` is: time of reference / time of subject.

        The interval holds at all looks together, whenever sampling stopped; `error` is the
        one-sided error of each of its ends `lower` and `upper`. Returns the reason where there are
        fewer than 2 rounds.
        """
        import numpy as np

        ours, theirs = self._log_typical(subject), self._log_typical(reference)
        rounds = [float(np.median(b - a)) for a, b in zip(ours, theirs, strict=True)]
        return ratio_interval(
            np.array(rounds),
            two_sided=nominal_level(self.looks, ALPHA),
            one_sided=nominal_level(self.looks, 2 * error),
        )

    def _log_typical(self, subject: str) -> list[NDArray[np.float64]]:
        """For each round, the logarithm of what is typical of each sweep's block, [sweeps]."""
        import numpy as np

        # Faster engines have more runs in a block: numpy's default quantile would favour them.
        return [
            np.log(np.quantile(np.maximum(block, 1), QUANTILE, axis=1, method="median_unbiased"))
            for block in self.samples[subject]
        ]


class SubjectFailed(CellError):
    """A subject's worker failed while it was measured; `subject` says whose."""

    def __init__(self, subject: str, error: OptimcError) -> None:
        self.subject = subject
        super().__init__(f"measuring {subject}: {error.what}", where=error.where, fix=error.fix)


def measure(
    subjects: Mapping[str, Timed],
    plan: SamplingPlan,
    *,
    decided: Callable[[Timings], bool] | None = None,
    progress: Callable[[int, float], None] | None = None,
    before_round: Callable[[np.random.Generator], None] | None = None,
    before_sweep: Callable[[int], None] | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Samples the latencies of all `subjects` in turns until `decided` or the time is up.

    `decided` is asked at the looks of `plan`; without it, sampling goes on until the time is up,
    and the intervals need not pay for looks. `progress` gets the rounds done and the seconds
    spent. `before_round` is where the subjects may exchange their processes, whose luck would else
    stick to them through all rounds. `before_sweep` gets the number of the sweep that follows:
    there the subjects may turn to other inputs, the same for all. `seed` draws the orders; `clock`
    gives seconds. The noise floor is a second worker of the source's engine among the subjects.
    Raises `SubjectFailed` where a worker fails.
    """
    sampler = _Sampler(subjects, plan, before_round, before_sweep, seed, clock)
    due = list(plan.looks) if decided else []
    looks: list[Look] = []
    start = clock()
    while True:
        began = clock()
        sampler.round()
        seconds = clock() - start
        if progress:
            progress(sampler.rounds, seconds)
        # A round that would end after the time is up is not begun.
        last = seconds + (clock() - began) > plan.at_most_s
        share = seconds / plan.at_most_s
        if not last and not (due and share >= due[0] and sampler.rounds >= plan.min_rounds):
            continue
        due = [later for later in due if later > share]
        looks.append(Look(sampler.rounds, 1.0 if last else share))
        timings = sampler.timings(tuple(looks), seconds)
        if decided and decided(timings):
            return timings
        if last:
            return replace(timings, stopped="time is up")


class _Sampler:
    """The sessions of all subjects and what was sampled of them."""

    def __init__(
        self,
        subjects: Mapping[str, Timed],
        plan: SamplingPlan,
        before_round: Callable[[np.random.Generator], None] | None,
        before_sweep: Callable[[int], None] | None,
        seed: int,
        clock: Callable[[], float],
    ) -> None:
        import numpy as np

        self.rounds = 0
        self._subjects = subjects
        self._plan = plan
        self._before_round = before_round
        self._before_sweep = before_sweep
        self._clock = clock
        self._random = np.random.default_rng(seed)
        self._blocks: dict[str, tuple[int, int]] = {}
        self._samples: dict[str, list[NDArray[np.int64]]] = {name: [] for name in subjects}
        self._loads: dict[str, list[float]] = {name: [] for name in subjects}
        self._steady: dict[str, list[bool]] = {name: [] for name in subjects}
        self._sweeps_done = 0

    def timings(self, looks: tuple[Look, ...], seconds: float) -> Timings:
        return Timings(
            {name: tuple(rounds) for name, rounds in self._samples.items()},
            {name: tuple(loads) for name, loads in self._loads.items()},
            {name: tuple(steady) for name, steady in self._steady.items()},
            looks,
            seconds,
            "decided",
        )

    def round(self) -> None:
        """Fresh sessions for all, warmed up, and their blocks in turns."""
        import numpy as np

        began = self._clock()
        if self._before_round:
            self._before_round(self._random)
        typical = {name: self._open(name) for name in self._shuffled()}
        if not self._blocks:
            self._blocks = {name: self._block(ns) for name, ns in typical.items()}
        sweep = sum(sum(self._blocks[name]) * ns for name, ns in typical.items()) / 1e9
        sweeps = _sweeps(self._clock() - began, sweep, self._plan.at_most_s)
        runs: dict[str, list[NDArray[np.int64]]] = {name: [] for name in self._subjects}
        for _ in range(sweeps):
            if self._before_sweep:
                self._before_sweep(self._sweeps_done)
            self._sweeps_done += 1
            for name in self._shuffled():
                lead, counted = self._blocks[name]
                runs[name].append(self._time(name, lead + counted)[lead:])
        for name, blocks in runs.items():
            self._samples[name].append(np.stack(blocks))
        self.rounds += 1

    def _shuffled(self) -> list[str]:
        names = list(self._subjects)
        return [names[index] for index in self._random.permutation(len(names))]

    def _open(self, name: str) -> float:
        """A fresh session, warmed up; the typical time of a run in ns."""
        import numpy as np

        try:
            self._loads[name].append(float(self._subjects[name].reopen()))
        except OptimcError as error:
            raise SubjectFailed(name, error) from error
        batch = max(sum(self._blocks.get(name, (0, 0))) // 4, 1)
        best, calm, spent = math.inf, 0, 0.0
        # The first run after opening allocates memory: it says nothing about steadiness.
        spent += float(self._time(name, 1).sum())
        last = spent
        while calm < 2 and spent < self._plan.warm_up_ms * 1e6:
            samples = self._time(name, batch)
            spent += float(samples.sum())
            last = float(np.median(samples))
            calm = calm + 1 if last >= best * (1 - _STEADY) else 0
            best = min(best, last)
            if name not in self._blocks:
                batch = min(max(int(self._plan.block_ms * 0.25e6 / max(last, 1.0)), 1), _MAX_RUNS)
        self._steady[name].append(calm >= 2)
        return max(last, 1.0)

    def _time(self, name: str, runs: int) -> NDArray[np.int64]:
        try:
            return self._subjects[name].time_block(runs)
        except OptimcError as error:
            raise SubjectFailed(name, error) from error

    def _block(self, typical_ns: float) -> tuple[int, int]:
        """Runs of a block that are not counted, and those that are."""
        counted = min(max(round(self._plan.block_ms * 1e6 / typical_ns), 1), _MAX_RUNS)
        # Where a run takes longer than a few blocks, cold caches do not show in it.
        slow = typical_ns > 5 * self._plan.block_ms * 1e6
        lead = 0 if slow else min(math.ceil(_LEAD_MS * 1e6 / typical_ns), _MAX_RUNS)
        return lead, counted


def _sweeps(opening_s: float, sweep_s: float, at_most_s: float) -> int:
    """How many blocks of each subject make a round.

    About as much time for runs as for opening sessions, within `_SWEEPS`, but fewer where the
    time would not do for enough rounds: rounds count for more than runs.
    """
    wanted = min(max(round(opening_s / sweep_s), _SWEEPS[0]), _SWEEPS[1])
    affordable = int((at_most_s / _WANTED_ROUNDS - opening_s) / sweep_s)
    return max(min(wanted, affordable), 1)
