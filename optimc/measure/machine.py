"""The machine that measures, as far as its figures depend on it; no names of hosts or users."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass

from optimc.core.cpu import cpu_features, cpu_model, usable_cores


@dataclass(frozen=True, slots=True)
class Machine:
    """What a report says of the machine. A MB is 10^6 bytes."""

    cpu: str
    architecture: str
    cores: int
    """Cores that this process may use."""
    features: tuple[str, ...]
    """The CPU features that decide which kernels run, sorted; empty where unknown."""
    memory_mb: int
    available_memory_mb: int
    """Memory that can be had without swapping, now."""
    os: str
    python: str
    load_average: tuple[float, float, float] | None
    """Of the last 1, 5 and 15 minutes; None where the system does not count it."""


def describe_machine() -> Machine:
    """The machine as it is now."""
    import psutil

    memory = psutil.virtual_memory()
    return Machine(
        cpu=cpu_model(),
        architecture=platform.machine(),
        cores=usable_cores(),
        features=tuple(sorted(cpu_features())),
        memory_mb=round(memory.total / 1e6),
        available_memory_mb=round(memory.available / 1e6),
        os=_system(),
        python=platform.python_version(),
        load_average=load_average(),
    )


def load_average() -> tuple[float, float, float] | None:
    """How many processes wanted a core over the last 1, 5 and 15 minutes."""
    try:
        one, five, fifteen = os.getloadavg()
    except (AttributeError, OSError):
        return None
    return (round(one, 2), round(five, 2), round(fifteen, 2))


def _system() -> str:
    """``Debian GNU/Linux 12 (bookworm), Linux 6.1.0``.

    Of the kernel's release only the numbers: what follows is free text, and may be a host's name.
    """
    version = re.match(r"[\d.]*\d", platform.release())
    kernel = f"{platform.system()} {version.group()}" if version else platform.system()
    try:
        release = platform.freedesktop_os_release()
    except (AttributeError, OSError):
        return kernel
    return f"{release.get('PRETTY_NAME', release['NAME'])}, {kernel}"
