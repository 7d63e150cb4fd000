"""Which weights of an ONNX graph are zero: the weights of layers, and the patterns in them.

A weight is found through what exporters and passes put between it and its layer: Transpose,
Identity, Cast, DequantizeLinear. An integer is a zero where it is its zero point. In an N:M pattern
at most N of M neighbours along the axis that the layer sums over are not zero (Mishra et al. 2021,
"Accelerating Sparse Deep Neural Networks", arXiv:2104.08378, section 3; 2:4 is what sparse tensor
cores take). Imports onnx_ir at the top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.core.onnx_signature import all_graphs
from optimc.core.patterns import Bools, holds_pattern

_THROUGH = frozenset({"Cast", "DequantizeLinear", "Identity", "Transpose"})
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger"})


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """A constant weight as one layer reads it."""

    node: ir.Node
    index: int
    """The input of `node` that it is."""
    value: ir.Value
    """The initializer, or the output of a Constant."""
    axis: int
    """The axis of the stored array that the layer sums over."""
    through: tuple[ir.Node, ...]
    """The nodes between the two, the last one first."""

    @property
    def array(self) -> NDArray[np.generic]:
        """What is stored; read-only."""
        tensor = ir.convenience.get_const_tensor(self.value)
        assert tensor is not None
        return tensor.numpy()


@dataclass(frozen=True, slots=True)
class Sparsity:
    """What is zero in the weight of one layer."""

    layer: str
    op_type: str
    zeros: int
    elements: int
    two_of_four: bool
    """Whether it has the 2:4 pattern along the axis that the layer sums over."""

    @property
    def share(self) -> float:
        """The share of zeros."""
        return self.zeros / self.elements if self.elements else 0.0


def sparsity_of(model: ir.Model) -> tuple[Sparsity, ...]:
    """By layer of all graphs, in their order, what is zero in its weight."""
    found = []
    for graph in all_graphs(model):
        for weight in layer_weights(graph):
            nonzero = nonzeros(weight)
            found.append(
                Sparsity(
                    weight.node.name or str(weight.node.outputs[0].name),
                    weight.node.op_type,
                    int(nonzero.size - np.count_nonzero(nonzero)),
                    int(nonzero.size),
                    holds_pattern(nonzero, weight.axis, 2, 4),
                )
            )
    return tuple(found)


def layer_weights(graph: ir.Graph) -> list[LayerWeight]:
    """The constant weights of the layers of `graph` (not of its subgraphs), in its order."""
    found = (_weight(node, index) for node in graph for index in _operands(node))
    return [weight for weight in found if weight is not None]


def nonzeros(weight: LayerWeight) -> Bools:
    """Where the stored array stands for something other than zero; in its layout."""
    array = weight.array
    for node in weight.through:
        if node.op_type == "DequantizeLinear" and len(node.inputs) > 2:
            zero = ir.convenience.get_const_tensor(node.inputs[2]) if node.inputs[2] else None
            if zero is not None:
                return np.asarray(array != _spread(zero.numpy(), array, node))
    return np.asarray(array != array.dtype.type(0))


def _operands(node: ir.Node) -> tuple[int, ...]:
    if node.domain not in ("", "ai.onnx") or node.op_type not in LAYERS:
        return ()
    return (1, 0) if node.op_type == "MatMul" else (1,)


def _weight(node: ir.Node, index: int) -> LayerWeight | None:
    value, through, order = node.inputs[index], [], None
    while value is not None and ir.convenience.get_const_tensor(value) is None:
        maker = value.producer()
        if maker is None or maker.domain != "" or maker.op_type not in _THROUGH:
            return None
        if maker.op_type == "Transpose":
            order = _composed(maker, order)
            if order is None:
                return None
        through.append(maker)
        value = maker.inputs[0]
    if value is None or (value.is_graph_input() and value.const_value is None):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    rank = len(tensor.shape)
    if rank < 2:
        return None
    axis = _summed(node, index, rank)
    return LayerWeight(node, index, value, order[axis] if order else axis, tuple(through))


def _composed(node: ir.Node, later: list[int] | None) -> list[int] | None:
    """The axes of what `node` reads that those behind all Transposes are; None if not known."""
    given = node.attributes.get("perm")
    source = node.inputs[0]
    if given is not None:
        order = list(given.as_ints())
    elif source is not None and source.shape is not None:
        order = list(reversed(range(len(source.shape))))
    else:
        return None
    return order if later is None else [order[axis] for axis in later]


def _summed(node: ir.Node, index: int, rank: int) -> int:
    """The axis of an operand, as the node sees it, that the layer sums over."""
    if node.op_type in ("MatMul", "MatMulInteger"):
        return rank - 2 if index == 1 else rank - 1
    if node.op_type == "Gemm":
        return 1 if node.attributes.get_int("transB", 0) else 0
    return 0 if node.op_type == "ConvTranspose" else 1


def _spread(zero: NDArray[np.generic], array: NDArray[np.generic], node: ir.Node) -> object:
    """Zero points in a shape that broadcasts against `array`."""
    if zero.ndim == 0 or zero.size == 1:
        return zero.reshape(())
    axis = (node.attributes.get_int("axis", 1) or 0) % array.ndim
    if zero.ndim == 1:
        return zero.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    block = node.attributes.get_int("block_size", 0) or 1
    return np.repeat(zero, block, axis=axis).take(range(array.shape[axis]), axis=axis)
