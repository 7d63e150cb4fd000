"""What this CPU can do, as far as it decides placement and kernels."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

RELEVANT = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "avx512_bf16")


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
