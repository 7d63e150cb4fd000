"""What a reader must know beside the figures: failed, rolled back, unverified, skipped, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from optimc.report.values import Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optimc.report.schema import Cell, Refusal, Report

Kind = Literal["failed", "rolled back", "unverified", "deferred", "skipped", "not measured"]
KINDS: tuple[Kind, ...] = (
    "failed",
    "rolled back",
    "unverified",
    "deferred",
    "skipped",
    "not measured",
)

_INDEX = re.compile(r"\[\d+\]")  # the same figure of several cases is one finding


@dataclass(frozen=True)
class SkippedFigure:
    """A figure that was not measured: where it would stand in the report, and why it does not."""

    path: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """Something that did not go as asked, with every cell that it holds for."""

    kind: Kind
    what: str
    reason: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class RefusalGroup:
    """The nodes of one pass that were refused for one reason, in the order of the rewrites."""

    reason: str
    nodes: tuple[str, ...]


def skipped_figures(report: Report) -> tuple[SkippedFigure, ...]:
    """Every `Skipped` of `report`; paths read like ``results[int8/ort].latency[0].p99_ms``."""
    return tuple(SkippedFigure(path, value.skipped) for path, value in _skipped(report, ""))


def findings(report: Report) -> tuple[Finding, ...]:
    """All findings, the gravest kind first; equal ones of several cells are one."""
    grouped: dict[tuple[Kind, str, str], list[str]] = {}
    for cell in report.results:
        for kind, what, reason in _of_cell(cell):
            grouped.setdefault((kind, what, reason), []).append(cell.name)
    for path, value in _skipped(report, ""):
        # The gate's checks say it themselves, and the steps' table does.
        if not path.startswith(("results[", "gate.", "steps[")):
            grouped.setdefault(("not measured", _INDEX.sub("", path), value.skipped), [])
    known = {reason for _, _, reason in grouped}
    for path, value in _skipped(report, ""):
        if path.startswith("steps[") and value.skipped not in known:
            column = f"{path.rpartition('.')[2]} from pass to pass"
            grouped.setdefault(("not measured", column, value.skipped), [])
    found = [Finding(*key, tuple(dict.fromkeys(cells))) for key, cells in grouped.items()]
    return tuple(sorted(found, key=lambda finding: KINDS.index(finding.kind)))


def refusal_groups(refusals: tuple[Refusal, ...]) -> tuple[RefusalGroup, ...]:
    """`refusals` by reason, the commonest reason first."""
    groups: dict[str, list[str]] = {}
    for refusal in refusals:
        groups.setdefault(refusal.reason, []).append(refusal.node)
    by_size = sorted(groups.items(), key=lambda item: -len(item[1]))
    return tuple(RefusalGroup(reason, tuple(nodes)) for reason, nodes in by_size)


def _of_cell(cell: Cell) -> Iterator[tuple[Kind, str, str]]:
    kinds: dict[str, Kind] = {
        "failed": "failed",
        "rolled_back": "rolled back",
        "unverified": "unverified",
        "skipped": "skipped",
        "deferred": "deferred",
    }
    if cell.status != "built":
        yield kinds[cell.status], "cell", cell.reason or ""
    for step in cell.passes:
        if step.verdict in kinds:
            yield kinds[step.verdict], f"pass {step.name}", step.reason or ""
    for reason in cell.unverified:
        yield "unverified", "engine", reason
    # A pass that changed nothing has no error: its verdict says so.
    unchanged = tuple(f"passes[{p.name}]." for p in cell.passes if p.verdict == "unchanged")
    if cell.status == "built":  # of a cell that was not built, the one reason is enough
        for path, value in _skipped(cell, ""):
            if not path.startswith(unchanged):
                yield "not measured", _INDEX.sub("", path), value.skipped


def _skipped(node: Any, path: str) -> Iterator[tuple[str, Skipped]]:
    if isinstance(node, Skipped):
        yield path, node
    elif isinstance(node, BaseModel):
        for name, field in type(node).model_fields.items():
            shown = field.serialization_alias or name
            yield from _skipped(getattr(node, name), f"{path}.{shown}" if path else shown)
    elif isinstance(node, dict):
        for key, item in node.items():
            yield from _skipped(item, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, item in enumerate(node):
            label = getattr(item, "name", index)
            yield from _skipped(item, f"{path}[{label}]")
