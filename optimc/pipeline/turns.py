"""Engines timed in turns, under the same conditions for all: processes, cores and inputs.

On a machine that others share, one core may be half as fast as the next for as long as a session
lives. Engines that each stay on a core of their own take that for themselves: on two cores of a
rented machine, the interval of a ratio over 12 seconds was 0.02 to 0.10 wide; it is 0.002 to 0.005
wide where all engines run on the same core in each sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from optimc.core.cpu import pin, timing_cores, usable_cores
from optimc.measure.latency import SamplingPlan, Timings, measure
from optimc.targets.client import exchange_processes

if TYPE_CHECKING:
    import numpy as np

    from optimc.targets.client import EngineWorker


def time_in_turns(
    workers: Mapping[str, EngineWorker],
    plan: SamplingPlan,
    *,
    feeds: int = 1,
    decided: Callable[[Timings], bool] | None = None,
    progress: Callable[[int, float], None] | None = None,
    seed: int = 0,
) -> Timings:
    """Times what is bound in `workers`, `feeds` inputs each, see `optimc.measure.latency.measure`.

    Engines of one runtime exchange their processes before every round. Before every sweep all turn
    to the next inputs and, where the system lets them and they take fewer threads than there are
    cores, to the same cores. Raises SubjectFailed where a worker fails.
    """
    turns = _Turns(workers, feeds)
    try:
        return measure(
            workers,
            plan,
            decided=decided,
            progress=progress,
            before_round=turns.before_round,
            before_sweep=turns.before_sweep,
            seed=seed,
        )
    finally:
        turns.release()


class _Turns:
    """What all workers turn to together."""

    def __init__(self, workers: Mapping[str, EngineWorker], feeds: int) -> None:
        self._workers = tuple(workers.values())
        self._feeds = feeds
        most = max(worker.threads or usable_cores() for worker in self._workers)
        self._cores = timing_cores(most)

    def before_round(self, rng: np.random.Generator) -> None:
        self.release()  # runtimes look for the cores they have when a session is opened
        exchange_processes(self._workers, rng)

    def before_sweep(self, sweep: int) -> None:
        if self._cores:
            cores = self._cores[sweep % len(self._cores)]
            self._pin({worker.pid: cores[: worker.threads] for worker in self._workers})
        if self._feeds > 1:
            for worker in self._workers:
                worker.choose(sweep)

    def release(self) -> None:
        """All cores for all workers."""
        if self._cores:
            self._pin({worker.pid: None for worker in self._workers})

    def _pin(self, cores: Mapping[int, Collection[int] | None]) -> None:
        try:
            for pid, own in cores.items():
                pin(pid, own)
        except OSError:  # some containers do not let us: engines then run where the system has them
            self._cores = ()
