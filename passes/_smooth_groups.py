"""Products that read one normalized value, for `smooth_quant`. Imports onnx_ir."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.core.model import SOURCE_KEY
from optimc.passes._equalize_pairs import Layer, unfit
from optimc.passes._quantize_graph import GraphWriter, number
from optimc.passes._quantize_units import constant, node_label

Floats = NDArray[np.float64]
Refuse = Callable[[str, str], None]

_PRODUCTS = ("MatMul", "Gemm")


@dataclass(eq=False)
class Group:
    """The products that read `value`, which a LayerNormalization or a Mul makes."""

    value: ir.Value
    maker: ir.Node
    layers: tuple[Layer, ...]
    alone: bool
    """Whether nobody else reads the value."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return node_label(self.maker)

    def weights(self) -> Floats:
        """All weights side by side, [inputs, outputs]."""
        return np.concatenate([layer.magnitudes()[0].T for layer in self.layers], axis=1)

    def smooth(self, scale: Floats) -> None:
        """Divides the value by `scale` [inputs] and multiplies the weights by it."""
        if self.alone:
            for index in _parameters(self.maker):
                self._divide(index, scale)
            self.value.meta.pop(SOURCE_KEY, None)
        else:
            self._put_in(scale)
        for layer in self.layers:
            layer.multiply_inputs(scale)

    def _divide(self, index: int, scale: Floats) -> None:
        old = self.maker.inputs[index]
        array = constant(old)
        assert old is not None
        assert array is not None
        assert isinstance(self.maker.graph, ir.Graph)
        writer = GraphWriter(self.maker.graph)
        new = writer.initializer(
            f"{old.name}_smooth", (array.astype(np.float64) / scale).astype(np.float32)
        )
        self.maker.replace_input_with(index, new)
        writer.remove_unread(old)

    def _put_in(self, scale: Floats) -> None:
        """A Mul between the value and the products."""
        graph = self.maker.graph
        assert isinstance(graph, ir.Graph)
        writer = GraphWriter(graph)
        factor = writer.initializer(f"{self.value.name}_factor", (1 / scale).astype(np.float32))
        mul = writer.node("Mul", [self.value, factor], self.value, "smooth", "float32")
        graph.insert_after(self.maker, [mul])
        for layer in self.layers:
            layer.node.replace_input_with(0, mul.outputs[0])


def find_groups(graph: ir.Graph, multiply: bool, refuse: Refuse) -> list[Group]:
    """The groups in the graph's order; `multiply` allows those whose value others read too."""
    groups = []
    for node in graph:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("LayerNormalization", "Mul"):
            continue
        value = node.outputs[0]
        uses = tuple(value.uses())
        products = [r for r, index in uses if index == 0 and _reads(r, graph)]
        if not products or not _parameters(node):
            continue
        reasons = [f"{node_label(p)}: {why}" for p in products if (why := _unfit(p)) is not None]
        alone = len(products) == len(uses) and not value.is_graph_output()
        if reasons:
            refuse(node_label(node), reasons[0])
        elif not alone and not multiply:
            refuse(node_label(node), f"`{value.name}` is read by other nodes than products")
        elif not alone and node.op_type == "Mul":
            refuse(node_label(node), "the result of a Mul that others read too is left alone")
        else:
            groups.append(Group(value, node, tuple(Layer(p) for p in products), alone))
    return groups


def smoothing(most: Floats, weight: Floats, alpha: float) -> Floats:
    """s of each input channel [K]; 1 where a channel's activations or weights are all zero.

    `most` is max|X| [K], `weight` [K, outputs].
    """
    greatest = np.abs(weight).max(axis=1, initial=0.0)
    least = 1e-6
    alive = (most > least * most.max(initial=0.0)) & (greatest > least * greatest.max(initial=0.0))
    logs = np.zeros_like(most)
    np.log(most, out=logs, where=alive)
    others = np.zeros_like(most)
    np.log(greatest, out=others, where=alive)
    scale: Floats = np.where(alive, np.exp(alpha * logs - (1 - alpha) * others), 1.0)
    return scale


def _reads(node: ir.Node, graph: ir.Graph) -> bool:
    return (
        node.graph is graph
        and node.op_type in _PRODUCTS
        and node.domain in ("", "ai.onnx")
        and constant(node.inputs[1]) is not None
    )


def _unfit(node: ir.Node) -> str | None:
    weight = constant(node.inputs[1])
    if weight is not None and weight.ndim != 2:
        return f"its weight has {weight.ndim} dims"
    if node.op_type == "Gemm" and number(node, "transA", 0):
        return "its input is transposed"
    return unfit(node)


def _parameters(node: ir.Node) -> list[int]:
    """The inputs of a normalization or a Mul that scale each channel; none where it does not."""
    if node.op_type == "LayerNormalization":
        shape = None if node.inputs[0] is None else node.inputs[0].shape
        if int(number(node, "axis", -1)) not in (-1, -1 if shape is None else len(shape) - 1):
            return []
        indices = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
        return indices if all(_is_vector(node.inputs[i]) for i in indices) else []
    found = [i for i in (0, 1) if _is_vector(node.inputs[i])]
    return found if len(found) == 1 else []


def _is_vector(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.dtype == np.float32 and array.ndim == 1 and array.size > 1
