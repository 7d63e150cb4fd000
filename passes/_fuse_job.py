"""What the rules of `fuse` share: numbering, names, and putting one node in the place of several.

Imports onnx_ir at the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from optimc.core.model import SOURCE_KEY
from optimc.core.onnx_names import NameTable
from optimc.core.passes import RewriteLog
from optimc.passes._fuse_layer import (
    Array,
    Layer,
    absorb,
    constant,
    drop_unused,
    fits,
    put_constants,
)
from optimc.passes._simplify_work import where


@dataclass
class Job:
    """The numbering, the names in use, and the model's opset."""

    log: RewriteLog
    names: NameTable
    opset: int
    stopped: bool = False

    def allow(self, rule: str, node: ir.Node) -> bool:
        """Numbers a rewrite; False from the limit on."""
        if not self.stopped and self.log.allow(rule, where(node)):
            return True
        self.stopped = self.stopped or self.log.stopped
        return False

    def new_constant(self, graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
        """An initializer of `graph` with a name of its own, `name` if it is free."""
        name = self.names.unique(name)
        tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape),
            const_value=tensor,
        )
        graph.register_initializer(value)
        return value


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes `value` where it is one of these operators of ONNX, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def scalar(value: ir.Value | None) -> float | None:
    """The one number of a constant with one element, or None."""
    tensor = constant(value)
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def near(number: float | None, wanted: float) -> bool:
    """Whether a constant is this number, but for how float32 and exporters round it."""
    return number is not None and abs(number - wanted) <= 1e-6 * abs(wanted)


def read_outside(last: ir.Node, others: Sequence[ir.Node]) -> str | None:
    """Why `others`, whose results end in `last`, cannot go away with it, or None."""
    inside = {last, *others}
    for node in others:
        if node.graph is not last.graph:
            return f"{where(node)} is in another graph"
        for value in node.outputs:
            if value.is_graph_output():
                return f"the result of {where(node)} is an output of its own"
            if any(reader not in inside for reader, _ in value.uses()):
                return f"the result of {where(node)} is also read elsewhere"
    return None


def replace(last: ir.Node, others: Sequence[ir.Node], new: ir.Node) -> None:
    """Puts `new` in the place of `last` and removes `others`, which nothing else reads.

    The output of `new` becomes the output of `last`: name, type, shape and source name.
    """
    graph, old, value = last.graph, last.outputs[0], new.outputs[0]
    assert isinstance(graph, ir.Graph)
    name, new.name = old.name, last.name
    value.type, value.shape = old.type, old.shape
    if SOURCE_KEY in old.meta:
        value.meta[SOURCE_KEY] = old.meta[SOURCE_KEY]
    graph.insert_before(last, new)
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    gone = tuple(dict.fromkeys((last, *others)))
    constants = [v for node in gone for v in node.inputs if constant(v) is not None]
    graph.remove(gone, safe=True)
    old.name, value.name = None, name
    for read in dict.fromkeys(constants):
        if read is not None and read.producer() not in gone:
            drop_unused(read)


def rewrite_layer(
    rule: str,
    node: ir.Node,
    layer: Layer,
    weight: Array | None,
    bias: Array,
    job: Job,
    between: ir.Node | None = None,
) -> None:
    """Puts the new constants in and lets the layer take over the output of `node`.

    Where a node is `between` the two, that one takes it over, and the layer's result loses its
    source name with its numbers.
    """
    reason = fits(layer, layer.weight if weight is None else weight, bias)
    if reason is not None:
        job.log.refuse(rule, where(node), reason)
    elif job.allow(rule, node):
        put_constants(layer, weight, bias, job.names)
        layer.node.outputs[0].meta.pop(SOURCE_KEY, None)
        absorb(between or layer.node, node)


def only_reader(before: ir.Node, node: ir.Node) -> str | None:
    """Why `before` cannot change its result for the sake of `node`, or None."""
    value = before.outputs[0]
    if before.graph is not node.graph:
        return f"{where(before)} is in another graph"
    if value.is_graph_output():
        return f"the result of {where(before)} is an output of its own"
    if len(value.uses()) > 1:
        return f"the result of {where(before)} is also read elsewhere"
    return None
