"""Durations and sizes as people write them: ``60 s``, ``1.5 min``, ``512 MB``, ``2 GiB``."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
