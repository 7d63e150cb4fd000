"""Which nodes of a pruned module's graph are which of the source's: by the modules they are of.

Both graphs were exported from the same module, one of them after layers or channels went. Numbers
in names differ then, but parameters are called by their modules, and what has no parameters stands
behind what has some.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel

_PARAMETER = "module."
"""What the names of parameters begin with: the front end's wrapper calls the module so."""


@dataclass(frozen=True)
class GraphNode:
    """A node of a main graph, by names."""

    name: str
    operator: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]

    @property
    def called(self) -> str:
        """What tables call it."""
        return self.name or next(iter(self.outputs), "")

    @property
    def key(self) -> tuple[str, ...]:
        """Its operator and its parameters; empty where it has none."""
        parameters = tuple(name for name in self.inputs if name.startswith(_PARAMETER))
        return (self.operator, *parameters) if parameters else ()


def nodes_of(model: OnnxModel) -> list[GraphNode]:
    """The nodes of the main graph, in the order of the graph."""
    return [
        GraphNode(
            node.name or "",
            node.op_type,
            tuple(value.name for value in node.outputs if value.name),
            tuple(value.name for value in node.inputs if value is not None and value.name),
        )
        for node in model.ir.graph
    ]


def same_nodes(
    pruned: Sequence[GraphNode], source: Sequence[GraphNode]
) -> dict[GraphNode, GraphNode]:
    """From nodes of the `pruned` graph to those of the `source`; where it is not known, none.

    Nodes with parameters by those; others by the nearest node before them that is known, where one
    of its readers alone has the operator; then by the known node behind them.
    """
    found = _by_parameters(pruned, source)
    makers, readers = _makers(pruned), _readers(source)
    places = {node: place for place, node in enumerate(pruned)}
    taken = set(found.values())
    for node in pruned:
        before = [makers[name] for name in node.inputs if makers.get(name) in found]
        if node in found or not before:
            continue
        nearest = found[max(before, key=lambda maker: places[maker])]
        behind = {r for name in nearest.outputs for r in readers.get(name, ())}
        alike = [other for other in behind if other.operator == node.operator]
        if len(alike) == 1 and alike[0] not in taken:
            found[node] = alike[0]
            taken.add(alike[0])
    origins = _makers(source)
    for node in reversed(pruned):
        other_inputs = found[node].inputs if node in found else ()
        for mine, theirs in zip(node.inputs, other_inputs, strict=False):
            one, other = makers.get(mine), origins.get(theirs)
            if one is None or other is None or one in found or other in taken:
                continue
            if one.operator == other.operator:
                found[one] = other
                taken.add(other)
    return found


def _by_parameters(
    pruned: Iterable[GraphNode], source: Iterable[GraphNode]
) -> dict[GraphNode, GraphNode]:
    """Where several nodes have the same parameters, in their order."""
    waiting: dict[tuple[str, ...], list[GraphNode]] = {}
    for node in source:
        if node.key:
            waiting.setdefault(node.key, []).append(node)
    return {node: waiting[node.key].pop(0) for node in pruned if waiting.get(node.key)}


def _makers(nodes: Iterable[GraphNode]) -> Mapping[str, GraphNode]:
    return {name: node for node in nodes for name in node.outputs}


def _readers(nodes: Iterable[GraphNode]) -> Mapping[str, list[GraphNode]]:
    readers: dict[str, list[GraphNode]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    return readers
