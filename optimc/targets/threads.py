"""How many threads one inference takes, for runtimes on the CPU."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from optimc.core.cpu import physical_cores

Threads: TypeAlias = Annotated[int, Field(ge=0, le=1024)] | Literal["auto"]
"""A target's option; 0 is what the runtime takes for all physical cores."""


def thread_counts() -> tuple[int, ...]:
    """What `auto` tries here: one thread, half of the physical cores, and all of them.

    Hyperthreads are left out: they share the units that kernels of dense arithmetic fill.
    """
    cores = physical_cores()
    return tuple(sorted({1, max(cores // 2, 1), cores}))
