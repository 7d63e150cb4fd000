"""Names of an onnx_ir model: every value and node has one, and no two share it.

ONNX lets sibling subgraphs use the same names. Calibration, reports and patterns such as
`keep_float` go by name, so optimc gives every value and every node a name of its own over the whole
model. Imports onnx_ir at the top.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from optimc.core.onnx_signature import all_graphs


class NameTable:
    """Names in use, and new ones beside them. The same calls give the same names."""

    def __init__(self, used: Iterable[str]) -> None:
        self._used = set(used)
        self._counters: dict[str, int] = {}

    @classmethod
    def of_values(cls, model: ir.Model) -> NameTable:
        """The table of all value names of `model`."""
        return cls(value.name for value in _values_in_order(model) if value.name)

    def unique(self, wanted: str) -> str:
        """`wanted` where it is free, else with the first free number behind it; then taken."""
        name = wanted
        while name in self._used:
            self._counters[wanted] = self._counters.get(wanted, 0) + 1
            name = f"{wanted}_{self._counters[wanted]}"
        self._used.add(name)
        return name


def make_names_unique(model: ir.Model) -> bool:
    """Names unnamed values and nodes and renames repeated ones; True where anything changed.

    The first use of a name keeps it, inputs and outputs of the main graph before all others.
    Outputs that a node leaves out (no name, not used) stay without a name.
    """
    changed = _name_values(model)
    nodes = list(model.graph.all_nodes())
    table = NameTable(node.name for node in nodes if node.name)
    seen: set[str] = set()
    for node in nodes:
        name = node.name
        if not name or name in seen:
            name = table.unique(name or node.op_type)
        seen.add(name)
        changed |= name != node.name
        node.name = name
    return changed


def _name_values(model: ir.Model) -> bool:
    table = NameTable.of_values(model)
    seen: set[str] = set()
    changed = False
    for value in _values_in_order(model):
        if not value.name or value.name in seen:
            value.name = table.unique(value.name or "value")
            changed = True
        seen.add(value.name)
    return changed


def _values_in_order(model: ir.Model) -> list[ir.Value]:
    """Every value that is to have a name, once; the interface first, so that it keeps its names."""
    found: dict[ir.Value, None] = dict.fromkeys([*model.graph.inputs, *model.graph.outputs])
    for graph in all_graphs(model):
        found.update(dict.fromkeys(graph.inputs))
        found.update(dict.fromkeys(graph.initializers.values()))
        for node in graph:
            found.update(dict.fromkeys(value for value in node.outputs if not _left_out(value)))
    return list(found)


def _left_out(value: ir.Value) -> bool:
    """Whether this is an optional output that the node does not compute."""
    return not value.name and not value.uses() and not value.is_graph_output()
