"""What the steps of `simplify` share: the graph in work, the numbering, and kept outputs.

Imports onnx_ir at the top.

Outputs are held by *anchors* while the graph is rewritten: each output of each graph is the output
of an Identity in a domain of its own, which no rule knows. So no rewrite meets a value with a name
that must stay, and values may be replaced freely. At the end an anchor is dissolved where its input
can take the output's name; where it cannot (an input of the model, a constant, a value that is an
output already), it becomes an ordinary Identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from optimc.core.analyses import QuantizationNodes
from optimc.core.model import SOURCE_KEY, OnnxModel
from optimc.core.onnx_names import NameTable
from optimc.core.onnx_signature import all_graphs
from optimc.core.passes import PassContext, RewriteLog
from optimc.passes._simplify_shapes import filled

ANCHOR_DOMAIN = "optimc.anchor"


@dataclass
class Work:
    """The model in work and the rewrites done on it."""

    model: ir.Model
    log: RewriteLog
    fold_limit: int
    names: NameTable
    quantized: bool
    """Float arithmetic must stay as it is: one ulp more or less flips a rounding."""
    count: int = 0
    stopped: bool = False
    _ours: set[ir.Node] = field(default_factory=set)

    @classmethod
    def of(cls, model: OnnxModel, context: PassContext, fold_limit: int) -> Work:
        """What is known of `model` before the first rewrite; `anchor` comes next."""
        quantized = bool(context.analysis(QuantizationNodes, model))
        return cls(model.ir, context.log, fold_limit, NameTable.of_values(model.ir), quantized)

    def allow(self, rule: str, where: str) -> bool:
        """Numbers a rewrite; False from the limit on."""
        if not self.stopped and self.log.allow(rule, where):
            self.count += 1
            return True
        self.stopped = self.stopped or self.log.stopped
        return False

    def anchor(self) -> None:
        """Puts an anchor before every output."""
        for graph in list(all_graphs(self.model)):
            for index, value in enumerate(graph.outputs):
                producer = value.producer()
                # Inputs and constants that are listed as outputs are never replaced.
                if producer is None or producer.graph is not graph:
                    continue
                if is_identity(producer):
                    producer.domain = ANCHOR_DOMAIN
                    _tell_source(producer)
                else:
                    graph.outputs[index] = self._anchored(graph, value)

    def _anchored(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        output = ir.Value(name=value.name, type=value.type, shape=value.shape)
        output.meta.update(value.meta)
        node = ir.Node(ANCHOR_DOMAIN, "Identity", [value], outputs=[output])
        graph.append(node)
        self._ours.add(node)
        value.name = self.names.unique(f"{value.name}_value")
        return output

    def release(self) -> None:
        """Dissolves the anchors; those that were nodes of the model before are rewrites."""
        for graph in list(all_graphs(self.model)):
            nodes = [value.producer() for value in graph.outputs]
            anchors = [(i, n) for i, n in enumerate(nodes) if n and n.domain == ANCHOR_DOMAIN]
            for index, node in sorted(anchors, key=lambda entry: entry[1] not in self._ours):
                if _dissolvable(node, graph) and self._may_dissolve(node):
                    _dissolve(node, graph, index)
                else:
                    node.domain = ""

    def _may_dissolve(self, node: ir.Node) -> bool:
        return node in self._ours or self.allow("remove_identity", where(node))


def _tell_source(node: ir.Node) -> None:
    """What is declared of an Identity's output holds for its input, as it will when it is gone."""
    source, output = node.inputs[0], node.outputs[0]
    if source is not None and source.producer() is not None and output.shape is not None:
        source.shape = filled(source.shape, output.shape)


def is_identity(node: ir.Node) -> bool:
    """Whether this is ONNX's Identity."""
    return node.op_type == "Identity" and node.domain == ""


def _dissolvable(node: ir.Node, graph: ir.Graph) -> bool:
    value = node.inputs[0]
    if value is None or node.outputs[0].uses():
        return False
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()


def _dissolve(node: ir.Node, graph: ir.Graph, index: int) -> None:
    """Lets the anchor's input take the output's name, declared dtype and dims, and place."""
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    name = output.name
    keep_source(value, output)
    value.type = output.type if output.type is not None else value.type
    value.shape = output.shape if output.shape is not None else value.shape
    graph.outputs[index] = value
    graph.remove(node, safe=True)
    output.name = None
    value.name = name


def where(node: ir.Node) -> str:
    """A node as rewrites and refusals name it."""
    return node.name or next((v.name for v in node.outputs if v.name), "") or node.op_type


def keep_source(value: ir.Value, replaced: ir.Value) -> None:
    """Hands the source name of `replaced` to the value that has the same numbers."""
    if SOURCE_KEY in replaced.meta and SOURCE_KEY not in value.meta:
        value.meta[SOURCE_KEY] = replaced.meta[SOURCE_KEY]


BREAKS_RANGE = "its reader Range wants scalars, and would get a constant of another shape"


def breaks_range(value: ir.Value, constant: ir.Value) -> bool:
    """Whether a Range reads `value` and must not see that it is `constant`.

    ONNX wants scalars there. ONNX Runtime takes tensors of one element too, but no such constants.
    """
    reads = any(reader.op_type == "Range" for reader in value.consumers())
    return reads and constant.shape is not None and len(constant.shape) > 0


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs in a node's attributes."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def detach_subgraphs(node: ir.Node) -> None:
    """Lets go of what the subgraphs of a node that goes away read: it would count as used."""
    for graph in subgraphs(node):
        for inner in graph:
            detach_subgraphs(inner)
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
