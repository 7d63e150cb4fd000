from __future__ import annotations

import pytest

from optimc.core import progress
from optimc.core.errors import WorkerTimeoutError
from optimc.core.worker import Worker

SERVICE = "optimc.testing.slow_service:Steps"


def test_progress_comes_before_the_answer() -> None:
    told: list[tuple[float, str]] = []
    with Worker(SERVICE, name="a worker") as worker:
        worker.on_progress = lambda share, text: told.append((share, text))
        assert worker.call("count", steps=2, seconds=0.3).data == 2
        assert told == [(0.0, "step 0"), (0.5, "step 1")]
        worker.on_progress = None
        assert worker.call("count", steps=1, seconds=0.0).data == 1, "nobody has to listen"


def test_progress_does_not_prolong_the_time_limit() -> None:
    with Worker(SERVICE, name="a worker") as worker, pytest.raises(WorkerTimeoutError):
        worker.call("count", timeout=0.5, steps=100, seconds=0.25)


def test_progress_is_told_to_nobody_outside_a_worker() -> None:
    progress.tell(0.5, "half")
