"""The profiles of a report as one table: the layers of every engine by the source's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optimc.report.values import Skipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optimc.report.profile import EngineProfile, ProfiledLayer
    from optimc.report.schema import Report


_TELLING = 1 / 6


@dataclass(frozen=True)
class LayerFigure:
    """What one engine runs for a row; `share` is that of the engine's whole time.

    `dtypes` leaves out layers that take less than a sixth of the row's time.
    """

    ms: float
    share: float
    dtypes: tuple[str, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True)
class LayerRow:
    """One row: a layer of the source, or what an engine added, in every engine that runs it."""

    name: str
    added: bool
    """Whether nothing of the source is known to stand behind it (quantization, reordering)."""
    figures: tuple[LayerFigure | None, ...]


@dataclass(frozen=True)
class LayerTable:
    """The slowest row first, by the time in what ships."""

    engines: tuple[str, ...]
    profiles: tuple[EngineProfile, ...]
    rows: tuple[LayerRow, ...]


@dataclass(eq=False)
class _Group:
    nodes: set[str]
    layers: dict[int, list[ProfiledLayer]] = field(default_factory=dict)


def layer_table(report: Report) -> LayerTable | None:
    """None where nothing was profiled."""
    if isinstance(report.profiles, Skipped) or not report.profiles:
        return None
    # What ships stands first: its layers are the coarsest, and the others join them.
    profiles = tuple(sorted(report.profiles, key=lambda profile: profile.cell is None))
    groups = _grouped(profiles)
    totals = [sum(layer.ms for layer in profile.layers) for profile in profiles]
    rows = [_row(group, totals) for group in groups]
    rows.sort(key=lambda row: [-(figure.ms if figure else 0.0) for figure in row.figures])
    return LayerTable(tuple(profile.engine for profile in profiles), profiles, tuple(rows))


def _grouped(profiles: Sequence[EngineProfile]) -> list[_Group]:
    """Layers that do the work of the same nodes of the source; others stand alone, by name."""
    groups: list[_Group] = []
    by_node: dict[str, _Group] = {}
    by_name: dict[tuple[str, str], _Group] = {}
    for index, profile in enumerate(profiles):
        for layer in profile.layers:
            votes = [by_node[node] for node in layer.nodes if node in by_node]
            if votes:
                group = max(votes, key=votes.count)
            elif not layer.nodes and (layer.name, layer.operator) in by_name:
                group = by_name[layer.name, layer.operator]
            else:
                group = _Group(set())
                groups.append(group)
            group.nodes.update(layer.nodes)
            group.layers.setdefault(index, []).append(layer)
            for node in layer.nodes:
                by_node.setdefault(node, group)
            if not layer.nodes:
                by_name.setdefault((layer.name, layer.operator), group)
    return groups


def _row(group: _Group, totals: Sequence[float]) -> LayerRow:
    everything = [layer for layers in group.layers.values() for layer in layers]
    # A source's own layer is named as the source names it: its slowest gives the row its name.
    named = [layer for layer in everything if layer.name in group.nodes]
    slowest = max(named or everything, key=lambda layer: layer.ms)
    return LayerRow(
        name=slowest.name,
        added=not group.nodes,
        figures=tuple(
            _figure(group.layers[index], total) if index in group.layers else None
            for index, total in enumerate(totals)
        ),
    )


def _figure(layers: Sequence[ProfiledLayer], total: float) -> LayerFigure:
    ms = sum(layer.ms for layer in layers)
    by_time = sorted(layers, key=lambda layer: -layer.ms)
    telling = [layer for layer in by_time if layer.ms >= _TELLING * ms]
    return LayerFigure(
        ms=ms,
        share=ms / total if total else 0.0,
        dtypes=tuple(dict.fromkeys(layer.dtype for layer in telling)),
        operators=tuple(dict.fromkeys(layer.operator for layer in by_time)),
    )
