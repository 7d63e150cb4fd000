"""The option that says how many inputs of a weight share a scale."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field


def _power_of_two(block: int) -> int:
    if block & (block - 1):
        raise ValueError(
            f"{block} is no power of two, which kernels need\ntake 16, 32, 64, 128 or 256"
        )
    return block


BlockSize: TypeAlias = Annotated[int, Field(ge=16, le=256), AfterValidator(_power_of_two)]
