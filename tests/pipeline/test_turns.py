from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import psutil
import pytest

from optimc.core.cpu import timing_cores
from optimc.measure.latency import SamplingPlan, SubjectFailed
from optimc.pipeline.turns import time_in_turns
from optimc.targets.client import EngineWorker
from optimc.testing.timed import WIDTH, timed_chain

PLAN = SamplingPlan(at_most_s=0.5, block_ms=2.0, warm_up_ms=5.0, min_rounds=2, looks=(0.1,))
PINS = pytest.mark.skipif(not timing_cores(1), reason="needs Linux and two cores")


@pytest.fixture
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EngineWorker]]:
    folder = tmp_path_factory.mktemp("chains")
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(timed_chain(name, layers, folder / name))
            for name, layers in (("source", 2), ("cell", 3))
        }


def cores_of(worker: EngineWorker) -> set[frozenset[int]]:
    """The cores that each thread of the process may run on."""
    threads = psutil.Process(worker.pid).threads()
    return {frozenset(os.sched_getaffinity(thread.id)) for thread in threads}


@PINS
def test_engines_are_timed_on_the_same_core_and_have_all_of_them_before_and_after(
    workers: dict[str, EngineWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = {frozenset(os.sched_getaffinity(0))}
    opened, timed = [], []
    reopen, time_block = EngineWorker.reopen, EngineWorker.time_block

    def seen_open(worker: EngineWorker) -> float:
        opened.append(cores_of(worker) == everywhere)
        return reopen(worker)

    def seen_block(worker: EngineWorker, runs: int) -> Any:
        timed.append(tuple(cores_of(one) for one in workers.values()))
        return time_block(worker, runs)

    monkeypatch.setattr(EngineWorker, "reopen", seen_open)
    monkeypatch.setattr(EngineWorker, "time_block", seen_block)
    time_in_turns(workers, PLAN)
    assert opened
    assert all(opened)
    pinned = [(source, cell) for source, cell in timed if source != everywhere]
    assert len(pinned) >= 10  # those that warm up are not
    assert all(source == cell for source, cell in pinned)
    assert {len(cores) for source, _ in pinned for cores in source} == {1}
    for worker in workers.values():
        assert cores_of(worker) == everywhere


@PINS
def test_a_system_that_refuses_to_pin_is_no_error(
    workers: dict[str, EngineWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert time_in_turns(workers, PLAN).rounds >= 1


@PINS
def test_a_worker_that_dies_leaves_the_others_all_cores(workers: dict[str, EngineWorker]) -> None:
    def kill(rounds: int, seconds: float) -> None:
        psutil.Process(workers["cell"].pid).kill()

    with pytest.raises(SubjectFailed):
        time_in_turns(workers, PLAN, progress=kill)
    alive = [worker for worker in workers.values() if psutil.pid_exists(worker.pid)]
    assert alive
    for worker in alive:
        assert cores_of(worker) == {frozenset(os.sched_getaffinity(0))}


def test_all_turn_to_the_same_inputs_before_each_sweep(
    workers: dict[str, EngineWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, list[int]] = {name: [] for name in workers}
    choose = EngineWorker.choose

    def seen(worker: EngineWorker, index: int) -> None:
        chosen[worker.name].append(index)
        choose(worker, index)

    monkeypatch.setattr(EngineWorker, "choose", seen)
    feeds = [{"x": np.full((16, WIDTH), value, np.float32)} for value in (0, 1, 2)]
    for worker in workers.values():
        worker.bind_all(feeds)
    time_in_turns(workers, PLAN, feeds=len(feeds))
    assert chosen["source"] == chosen["cell"] == list(range(len(chosen["cell"])))
    assert len(chosen["cell"]) >= 3
