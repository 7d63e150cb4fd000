"""Which units `quantize_int8` quantizes, seen together, and why not the others. Imports onnx_ir.

An Add or a Reshape in INT8 only pays between operators that are in INT8 themselves, so units are
taken away until each of those left has the company that its rule asks for.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from optimc.core.passes import RewriteLog
from optimc.passes._quantize_units import Refuse, Unit, node_label

_SILENT = frozenset({"Constant", "Identity"})  # nothing is computed
_HINTS = {"BatchNormalization": "; the pass `fuse` puts it into the convolution before it"}


class Refusals:
    """Notes why nodes stay in float; knows which nodes it was told of."""

    def __init__(self, log: RewriteLog) -> None:
        self._log = log
        self.nodes: set[ir.Node] = set()

    def __call__(self, node: ir.Node, reason: str) -> None:
        """Refuses one node."""
        self.nodes.add(node)
        self._log.refuse(f"quantize {node.op_type}", node_label(node), reason)

    def of_others(self, graph: ir.Graph, units: Iterable[Unit]) -> None:
        """Says of every node that works on floats and has no rule that it stays in float."""
        known = {node for unit in units for node in (unit.node, *unit.absorbed)} | self.nodes
        for node in graph:
            floats = [v for v in node.outputs if v.dtype in (None, ir.DataType.FLOAT) and v.uses()]
            if node not in known and floats and node.op_type not in _SILENT:
                hint = _HINTS.get(node.op_type, "")
                self(node, f"the target has no INT8 rule for {node.op_type}{hint}")


def select(units: Iterable[Unit], refuse: Refuse) -> list[Unit]:
    """The units whose neighbours are quantized where their rule asks for that, in their order.

    Starts from all and takes away until nothing changes, which ends in the largest such set.
    """
    chosen = list(units)
    while True:
        reasons = _reasons(chosen)
        kept = [unit for unit in chosen if unit not in reasons]
        if len(kept) == len(chosen):
            return kept
        for unit, reason in reasons.items():
            refuse(unit.node, reason)
        chosen = kept


def _reasons(units: Iterable[Unit]) -> dict[Unit, str]:
    """The units that stand alone among `units`, each with what it lacks."""
    units = list(units)
    leaders = [unit for unit in units if not _follows(unit)]
    # A value has integers where a unit makes it, or where a unit that needs no company reads it. A
    # product whose kernel gives floats makes none: an Add behind it would need a Q of its own.
    integers = {unit.output for unit in units if not unit.rule.gives_floats}
    integers |= {v for u in leaders for v in u.sources()}
    readers = {value for unit in units for value in unit.sources()}
    found = {}
    for unit in units:
        missing = [value.name for value in unit.sources() if value not in integers]
        if _follows(unit) and missing:
            found[unit] = f"its input `{missing[0]}` does not come from an INT8 operator"
        elif (unit.moves or unit.rule.only_if_read) and unit.output not in readers:
            found[unit] = "no INT8 operator reads its output"
    return found


def _follows(unit: Unit) -> bool:
    return unit.moves or unit.rule.only_with_quantized_input
