"""Durations and sizes as people write them: ``60 s``, ``1.5 min``, ``512 MB``, ``2 GiB``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

SECONDS: Mapping[str, float] = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
"""Seconds in each unit of time."""

BYTES: Mapping[str, int] = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
"""Bytes in each unit of size."""

_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,12})?"
_QUANTITY = re.compile(rf"({_NUMBER})\s*([A-Za-z]+)")

DURATION_PATTERN = rf"^{_NUMBER}\s*(?:{'|'.join(SECONDS)})$"
"""What `parse_duration` takes, as an ECMA regular expression for JSON Schema."""


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError("not a duration: write a number and a unit, such as `60 s`")


Seconds: TypeAlias = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
    PlainSerializer(
        lambda seconds: f"{seconds:.12f}".rstrip("0").rstrip(".") + " s", when_used="json"
    ),
]
"""A duration in an option: text such as `60 s` in JSON, seconds once it is read."""


def parse_duration(text: str) -> float:
    """Seconds, from a number and a unit of `SECONDS`. Raises ValueError that says what is wrong."""
    return _parse(text, SECONDS, "duration", "60 s")


def parse_size(text: str) -> int:
    """Bytes, from a number and a unit of `BYTES`. Raises ValueError that says what is wrong."""
    return round(_parse(text, BYTES, "size", "512 MB"))


def _parse(text: str, units: Mapping[str, float], kind: str, example: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in units:
        known = ", ".join(units)
        raise ValueError(f"not a {kind}: write a number and a unit ({known}), such as `{example}`")
    return float(match[1]) * units[match[2]]
