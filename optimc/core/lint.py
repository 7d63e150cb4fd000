"""What a target's lint says of a model: plain data, so that every layer may hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing at one node."""

    node: str
    operator: str
    rule: str
    severity: Severity
    """An `error` is refused or computes something else; a `warning` costs speed or may surprise; a
    `note` only tells."""
    reason: str
    fix: str

    def __str__(self) -> str:
        fix = f"\n  fix: {self.fix}" if self.fix else ""
        return f"{self.node} ({self.operator}): {self.reason}{fix}"
