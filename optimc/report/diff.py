"""What `optimc diff` found: one frozen tree, whose views are JSON, a table and a page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Trend(StrEnum):
    """What happens to the error at a value, against the values that it is computed from."""

    SAME = "same"
    STARTS = "starts"
    GROWS = "grows"
    HEALS = "heals"
    CARRIED = "carried"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True)
class ValueRow:
    """One value of A with its counterpart in B, over all inputs together.

    `noise` is the relative error in root mean square, ``||a - b|| / ||a||``; `max_rel` is
    ``max |a - b| / max |a|``; `sqnr_db` is ``-20 log10(noise)``.
    """

    number: int
    """Its place in A's order of computation, from 1."""
    name: str
    other: str
    """Its name in B."""
    matched: str
    """How the two were matched: provenance, name, structure, position."""
    operator: str
    other_operator: str
    output: bool
    trend: Trend
    max_abs: float | None = None
    max_rel: float | None = None
    noise: float | None = None
    reason: str | None = None
    """Why it was not compared, or what no tolerance excuses."""

    @property
    def sqnr_db(self) -> float | None:
        """The signal-to-quantization-noise ratio; infinite where nothing differs."""
        if self.noise is None:
            return None
        return math.inf if self.noise == 0 else -20 * math.log10(self.noise)


@dataclass(frozen=True)
class DiffReport:
    """A comparison. `same` says whether all outputs are within the limit."""

    a: str
    b: str
    a_run: str
    """How A was run, in words."""
    b_run: str
    inputs: tuple[str, ...]
    limit: str
    """The limit in words."""
    same: bool
    rows: tuple[ValueRow, ...]
    unmatched_a: tuple[str, ...]
    unmatched_b: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def outputs(self) -> tuple[ValueRow, ...]:
        """The rows of the models' outputs."""
        return tuple(row for row in self.rows if row.output)

    def with_trend(self, *trends: Trend) -> tuple[ValueRow, ...]:
        """The rows of these trends, in order."""
        return tuple(row for row in self.rows if row.trend in trends)

    def to_json(self) -> str:
        """The tree as JSON; an infinite figure is a string."""
        return (
            json.dumps({"schema": 1, **_plain(asdict(self))}, indent=2, ensure_ascii=False) + "\n"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def interesting(report: DiffReport, most: int) -> Sequence[ValueRow]:
    """Rows that say something, in order: outputs, and where the error starts, grows and heals.

    Of more than `most`, those with the greatest error, outputs always.
    """
    turns = report.with_trend(Trend.STARTS, Trend.GROWS, Trend.HEALS)
    rows = {row.number: row for row in (*report.outputs, *turns)}
    room = max(0, most - len(report.outputs))
    # The first place where the error starts is what everybody looks for.
    starts = report.with_trend(Trend.STARTS)[:1]
    ranked = sorted(turns, key=lambda row: -(row.noise if row.noise is not None else math.inf))
    kept = {row.number for row in (*starts, *ranked)[:room]}
    kept |= {row.number for row in report.outputs}
    return [rows[number] for number in sorted(rows) if number in kept]
