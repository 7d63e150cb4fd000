"""What `quantize_dynamic` looks for in a graph, and what it writes there. Imports onnx_ir."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.core.targets import QuantizationSpec
from optimc.passes._quantize_graph import GraphWriter, ir_dtype, number, redirect
from optimc.passes._quantize_units import constant
from optimc.passes._quantize_weights import quantize_weight

LEAST_TABLE = 4096
"""Embeddings with fewer elements are not worth the operators that turn their rows into floats."""

Kind = Literal["matmul", "gather"]


@dataclass(frozen=True, eq=False)
class Site:
    """A node whose constant weight becomes int8."""

    node: ir.Node
    kind: Kind
    weight: ir.Value
    """MatMul and Gemm: [K, N] (Gemm with transB: [N, K]); Gather: [rows, columns]."""


def judge(node: ir.Node, spec: QuantizationSpec) -> Site | str | None:
    """The site of a node, why it stays in float, or None for one that holds no large weight."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("MatMul", "Gemm"):
        return _product(node, spec)
    if node.op_type == "Gather":
        return _embedding(node)
    if node.op_type in ("Conv", "ConvTranspose"):
        return "a convolution pays in INT8 only with calibrated ranges: use quantize_int8"
    if node.op_type in ("GRU", "LSTM", "RNN"):
        return "recurrent layers have no standard operator that quantizes at run time"
    return None


def _product(node: ir.Node, spec: QuantizationSpec) -> Site | str | None:
    activation, weight = node.inputs[0], node.inputs[1]
    if activation is None or weight is None:
        return None
    array = constant(weight)
    if array is None:
        if constant(activation) is not None:
            return "its constant is the first operand, and the kernels take it as the second"
        return "neither operand is a constant: there is no weight to store"
    if constant(activation) is not None:
        return "all of its inputs are constants"
    if array.dtype != np.float32 or activation.dtype not in (None, ir.DataType.FLOAT):
        return "it does not work on float32"
    if array.ndim != 2:
        return f"its weight has {array.ndim} dims, and only matrices are taken"
    if not np.isfinite(array).all():
        return "its weight holds infinities or NaNs"
    rule = spec.rules.get(node.op_type)
    least = rule.least_size if rule is not None else 1
    if min(array.shape) < least:
        return f"its weight has a side of {min(array.shape)}; under {least} INT8 does not pay"
    return (_gemm_reason(node) if node.op_type == "Gemm" else None) or Site(node, "matmul", weight)


def _gemm_reason(node: ir.Node) -> str | None:
    if number(node, "transA", 0):
        return "its first operand is transposed, which MatMulInteger cannot do"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and number(node, "beta", 1.0) != 1.0 and constant(bias) is None:
        return "its bias has a factor and is not a constant"
    return None


def _embedding(node: ir.Node) -> Site | str | None:
    table = node.inputs[0]
    array = constant(table)
    if table is None or array is None or array.dtype != np.float32:
        return None  # Gather mostly picks sizes out of shapes: nothing to say of those
    if array.ndim != 2 or int(number(node, "axis", 0)) != 0:
        return "only the rows of a matrix are taken as an embedding"
    if array.size < LEAST_TABLE:
        return f"its table has {array.size} elements; under {LEAST_TABLE} INT8 does not pay"
    if not np.isfinite(array).all():
        return "its table holds infinities or NaNs"
    return Site(node, "gather", table)


class DynamicPlacer:
    """Rewrites one site after the other."""

    def __init__(self, graph: ir.Graph, spec: QuantizationSpec, *, per_channel: bool) -> None:
        self._writer = GraphWriter(graph)
        self._spec = spec
        self._per_channel = per_channel
        self._activations: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._weights: dict[tuple[ir.Value, str], tuple[ir.Value, ir.Value]] = {}
        self._replaced: list[ir.Value] = []

    def place(self, site: Site) -> None:
        """Writes the INT8 form of a site."""
        if self._spec.dynamic == "weights":
            self._store_weight(site)
        elif site.kind == "gather":
            self._gather_integers(site)
        else:
            self._multiply_integers(site)

    def finish(self) -> None:
        """Removes the float weights that nobody reads any more."""
        for value in self._replaced:
            self._writer.remove_unread(value)

    def _store_weight(self, site: Site) -> None:
        """The weight as integers and a DQ, the node as it was."""
        array = _matrix(site.weight)
        axis = self._axis(site)
        quantized = quantize_weight(array, axis)
        key = (site.weight, f"stored {axis}")
        if key not in self._weights:
            stored = self._writer.stored(
                site.weight, quantized.integers, quantized.scale, axis, site.node
            )
            self._weights[key] = (stored, stored)
            self._replaced.append(site.weight)
        index = 0 if site.kind == "gather" else 1
        site.node.replace_input_with(index, self._weights[key][0])

    def _axis(self, site: Site) -> int | None:
        """The axis of the weight as it stands that has a scale for each entry."""
        if not self._per_channel:
            return None
        if site.kind == "gather" or (site.node.op_type == "Gemm" and _transposed(site.node)):
            return 0
        return 1

    def _gather_integers(self, site: Site) -> None:
        """Rows of integers, times the scale of each row (or of the table)."""
        writer, node, value = self._writer, site.node, site.node.outputs[0]
        integers, scale = self._constants(site, _matrix(site.weight), 0)
        indices = node.inputs[1]
        rows = writer.node("Gather", [integers, indices], value, "rows", "int8", {"axis": 0})
        floats = _cast(writer, rows.outputs[0], value)
        nodes = [rows, floats]
        factor = scale
        if self._per_channel:
            picked = writer.node("Gather", [scale, indices], value, "scale", "float32", {"axis": 0})
            picked.outputs[0].shape = None
            nodes.append(picked)
            factor = picked.outputs[0]
        result = writer.node("Mul", [floats.outputs[0], factor], value, "float", "float32")
        self._replace(site, [*nodes, result])

    def _multiply_integers(self, site: Site) -> None:
        """DynamicQuantizeLinear, MatMulInteger, and the product of both scales."""
        writer, node, value = self._writer, site.node, site.node.outputs[0]
        activation = node.inputs[0]
        assert activation is not None
        quantized, x_scale, x_zero = self._quantized(activation)
        array = _matrix(site.weight)
        gemm = node.op_type == "Gemm"
        if gemm:
            array = array.T if _transposed(node) else array
            array = array * np.float32(number(node, "alpha", 1.0))
        integers, w_scale = self._constants(site, np.ascontiguousarray(array), 1)
        product = writer.node(
            "MatMulInteger", [quantized, integers, x_zero], value, "integers", "int32"
        )
        floats = _cast(writer, product.outputs[0], value)
        # ONNX Runtime fuses exactly this: the product of the scales first, then one Mul with it.
        scales = writer.node("Mul", [x_scale, w_scale], value, "scales", "float32")
        scales.outputs[0].shape = None
        result = writer.node(
            "Mul", [floats.outputs[0], scales.outputs[0]], value, "scaled", "float32"
        )
        nodes = [product, floats, scales, result]
        bias = node.inputs[2] if gemm and len(node.inputs) > 2 else None
        if bias is not None:
            addend = self._bias(bias, number(node, "beta", 1.0))
            inputs = [result.outputs[0], addend]
            nodes.append(writer.node("Add", inputs, value, "biased", "float32"))
        self._replace(site, nodes)

    def _bias(self, bias: ir.Value, beta: float) -> ir.Value:
        if beta == 1.0:
            return bias
        array = constant(bias)
        assert array is not None, "judged before"
        self._replaced.append(bias)
        scaled = array.astype(np.float32) * np.float32(beta)
        return self._writer.initializer(f"{bias.name}_scaled", scaled)

    def _quantized(self, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Integers, scale and zero point of an activation: once for all that read it."""
        if value not in self._activations:
            writer = self._writer
            names = [writer.unique(f"{value.name}_{what}") for what in _QUANTIZED]
            node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=names[0])
            for output, name, dtype in zip(
                node.outputs, names, ("uint8", "float32", "uint8"), strict=True
            ):
                output.name = name
                output.type = ir.TensorType(ir_dtype(dtype))
                output.shape = ir.Shape([])
            node.outputs[0].shape = None if value.shape is None else ir.Shape(value.shape)
            writer.insert_behind(value, [node])
            integers, scale, zero = node.outputs
            self._activations[value] = (integers, scale, zero)
        return self._activations[value]

    def _constants(
        self, site: Site, array: NDArray[np.float32], axis: int
    ) -> tuple[ir.Value, ir.Value]:
        """The int8 integers of a matrix and their scale: [N], [rows, 1] for rows, or one number."""
        key = (site.weight, f"{site.kind} {axis} {site.node.op_type}{_factors(site.node)}")
        if key not in self._weights:
            name = str(site.weight.name)
            quantized = quantize_weight(
                array,
                axis if self._per_channel else None,
                reduce_range=self._spec.reduce_range and site.kind == "matmul",
            )
            scale = quantized.scale
            if site.kind == "gather" and self._per_channel:
                scale = scale.reshape(-1, 1)
            self._weights[key] = (
                self._writer.initializer(f"{name}_quantized", quantized.integers),
                self._writer.initializer(f"{name}_scale", scale),
            )
            self._replaced.append(site.weight)
        return self._weights[key]

    def _replace(self, site: Site, nodes: list[ir.Node]) -> None:
        """Lets the last of `nodes` stand for the site's node, which goes."""
        value, new = site.node.outputs[0], nodes[-1].outputs[0]
        self._writer.graph.insert_after(site.node, nodes)
        redirect(value, new)
        self._writer.take_over(value, new, "float32")
        self._writer.graph.remove(site.node, safe=True)


_QUANTIZED = ("quantized", "scale", "zero_point")


def _cast(writer: GraphWriter, integers: ir.Value, like: ir.Value) -> ir.Node:
    to = {"to": int(ir.DataType.FLOAT)}
    return writer.node("Cast", [integers], like, "cast", "float32", to)


def _matrix(value: ir.Value) -> NDArray[np.float32]:
    array = constant(value)
    assert array is not None, "judged before"
    return array.astype(np.float32, copy=False)


def _transposed(node: ir.Node) -> bool:
    return bool(number(node, "transB", 0))


def _factors(node: ir.Node) -> str:
    """What of a node goes into the integers of its weight, so that only equals share them."""
    return "" if node.op_type != "Gemm" else f" {_transposed(node)} {number(node, 'alpha', 1.0)}"
