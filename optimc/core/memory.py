"""How much memory this process takes, as Linux counts it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Resident memory in MB (10^6 bytes); None where the system does not say."""

    current_mb: float | None
    peak_mb: float | None
    """The most since the process began."""


def memory_use() -> MemoryUse:
    """The resident memory of this process: VmRSS and VmHWM of ``/proc/self/status``."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return MemoryUse(None, None)
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return MemoryUse(_megabytes(fields.get("VmRSS")), _megabytes(fields.get("VmHWM")))


def give_back() -> None:
    """Returns freed memory to the system, where the C library can: glibc keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _megabytes(field: str | None) -> float | None:
    """From ``<n> kB``, which are units of 1,024 bytes."""
    return None if field is None else round(int(field.split()[0]) * 1024 / 1e6, 3)
