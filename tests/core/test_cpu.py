from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest

from optimc.core import cpu

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="pins threads on Linux only"
)
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Has this machine look as if it had other cores."""

    def made(
        cores: int,
        *,
        siblings: Callable[[int], str] = str,
        frequency: Callable[[int], int] = lambda core: 3_000_000,
        node: Callable[[int], str] = lambda core: "node0",
        busy: frozenset[int] = frozenset(),
    ) -> None:
        def told(core: int, name: str) -> str:
            return siblings(core) if name.startswith("topology") else str(frequency(core))

        def percent(interval: float, percpu: bool) -> list[float]:
            return [99.0 if core in busy else 1.0 for core in range(cores)]

        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr(cpu, "_of_core", told)
        monkeypatch.setattr(cpu, "_memory_node", node)
        monkeypatch.setattr(psutil, "cpu_percent", percent)

    return made


def test_what_takes_all_cores_takes_no_turns(machine: Machine) -> None:
    machine(2)
    assert cpu.timing_cores(2) == ()
    assert cpu.timing_cores(1) == ((0,), (1,))
    machine(1)
    assert cpu.timing_cores(1) == ()


def test_hyperthreads_of_a_core_stand_for_one(machine: Machine) -> None:
    machine(8, siblings=lambda core: f"{core % 4},{core % 4 + 4}")
    assert cpu.timing_cores(2) == ((0, 1), (2, 3))
    assert cpu.timing_cores(3) == ((0, 1, 2),)
    assert cpu.timing_cores(5) == ()


def test_slow_cores_and_other_memory_are_left_out(machine: Machine) -> None:
    machine(6, frequency=lambda core: 5_000_000 if core > 3 else 2_000_000)
    assert cpu.timing_cores(1) == ((4,), (5,))
    machine(4, frequency=lambda core: 5_000_000 + 100_000 * core)
    assert cpu.timing_cores(1) == ((0,), (1,))
    machine(6, node=lambda core: "node0" if core < 2 else "node1")
    assert cpu.timing_cores(2) == ((2, 3), (4, 5))


def test_busy_cores_are_left_alone_where_there_are_others(machine: Machine) -> None:
    machine(4, busy=frozenset({0, 2}))
    assert cpu.timing_cores(1) == ((1,), (3,))
    assert cpu.timing_cores(3) == ((0, 1, 2),)


def test_pinning_a_process_that_is_gone_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    cpu.pin(process.pid, [0])
    cpu.pin(process.pid, None)
