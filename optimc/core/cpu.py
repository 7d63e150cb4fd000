"""What this CPU can do, as far as it decides placement and kernels."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from pathlib import Path

RELEVANT = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "avx512_bf16")
BF16_FEATURES = frozenset({"amx_bf16", "avx512_bf16"})
"""With either of them bfloat16 is computed with, by OpenVINO and PyTorch; without, emulated."""

_BUSY = 50.0
"""Above so many per cent, a core has something else to do."""


@cache
def cpu_features() -> frozenset[str]:
    """The features of `RELEVANT` that this CPU has (Linux's names); empty where unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    flags: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return frozenset(feature for feature in RELEVANT if feature in flags)


@cache
def cpu_model() -> str:
    """The CPU's name, or the machine's architecture where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """The cores that this process may use, two hyperthreads counted as one."""
    import psutil

    return min(psutil.cpu_count(logical=False) or usable_cores(), usable_cores())


def timing_cores(threads: int) -> tuple[tuple[int, ...], ...]:
    """Up to two sets of `threads` cores for what is timed to take turns on.

    One hyperthread a core, the fastest kind of core only, of one memory node, and where there are
    enough of them those that have nothing else to do now. Empty where that leaves too few, where
    `threads` are all there are, or where the system does not pin threads (Linux does).
    """
    if not hasattr(os, "sched_getaffinity") or threads >= usable_cores():
        return ()
    import psutil

    usable = sorted(os.sched_getaffinity(0))
    speeds = {core: int(_of_core(core, "cpufreq/cpuinfo_max_freq") or 0) for core in usable}
    # The best cores of a chip are a few per cent faster: they are no kind of their own.
    fast = [core for core in usable if speeds[core] >= 0.9 * max(speeds.values())]
    nodes: dict[str, dict[str, int]] = {}
    for core in fast:
        siblings = _of_core(core, "topology/thread_siblings_list") or str(core)
        nodes.setdefault(_memory_node(core), {}).setdefault(siblings, core)
    cores = list(max(nodes.values(), key=len).values())
    busy = dict(enumerate(psutil.cpu_percent(interval=0.1, percpu=True)))
    idle = [core for core in cores if busy.get(core, 0.0) < _BUSY]
    if len(idle) >= threads:
        cores = idle
    sets = [tuple(cores[at : at + threads]) for at in (0, threads)]
    return tuple(one for one in sets if len(one) == threads)


def _of_core(core: int, name: str) -> str:
    """What Linux says of a core; empty where it does not."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/{name}").read_text("ascii").strip()
    except OSError:
        return ""


def _memory_node(core: int) -> str:
    nodes = Path(f"/sys/devices/system/cpu/cpu{core}").glob("node[0-9]*")
    return next((node.name for node in nodes), "")


def pin(pid: int, cores: Collection[int] | None) -> None:
    """Has all threads that a process has now run on `cores` only; None stands for all of ours.

    Threads and processes that end meanwhile are no error. Raises OSError where the system refuses.
    """
    wanted = os.sched_getaffinity(0) if cores is None else cores
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(task), wanted)
