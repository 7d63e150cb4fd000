"""Whether a quantized graph obeys a target's QuantizationSpec, layer by layer. Imports onnx_ir.

A breach costs speed (the runtime leaves the layer in float between a DQ and a Q), accuracy, or the
build. What this lint lets pass has the types, the symmetry, the granularity and the Q and DQ that
the target's INT8 kernels ask for; what the runtime really took is read back from its own graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from optimc.core.targets import OperatorRule, QuantizationSpec, TargetSpec
from optimc.pipeline.quantized.onnx_layers import (
    Quantized,
    QuantizedLayer,
    array_of,
    behind,
    quantized_layers,
)

REDUCED = 64
"""The greatest integer of a weight where 16-bit sums saturate, see `QuantizationSpec`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One breach of a rule."""

    rule: str
    """A short name, such as `activation-dtype`."""
    where: str
    """The node."""
    message: str


def lint(model: ir.Model, target: TargetSpec) -> list[Finding]:
    """The breaches of `target`'s rules in a quantized model, in the graph's order."""
    spec = target.quantization
    found = [] if spec is not None else [Finding("no-int8", "the model", "the target runs no INT8")]
    for layer in quantized_layers(model):
        for rule, message in _of_layer(layer, target):
            found.append(Finding(rule, layer.name, message))
    return found


def _of_layer(layer: QuantizedLayer, target: TargetSpec) -> Iterator[tuple[str, str]]:
    spec, node = target.quantization, layer.node
    for tensor in layer.tensors:
        yield from _numbers(tensor)
    if spec is None:
        return
    if node.domain not in target.domains | {"ai.onnx"}:
        yield "operator", f"{node.domain}.{node.op_type} is unknown to {target.runtime}"
    if layer.form == "dynamic":
        if spec.dynamic != "matmul_integer":
            yield "dynamic", f"{node.op_type} has no fast kernel on {target.runtime}"
        yield from _weights(layer, spec, None)
        return
    if layer.form == "QOperator":
        yield from _activations(layer, spec, None)
        yield from _weights(layer, spec, None)
        return
    if layer.tensors and all(tensor.role in ("weight", "output") for tensor in layer.tensors):
        return  # weights that are merely stored as integers
    rule = spec.rules.get(node.op_type)
    if rule is None:
        if layer.of("output") and len(layer.of("input")) == len(node.inputs):
            yield (
                "no-kernel",
                f"{node.op_type} has no INT8 kernel there, but stands between DQ and Q",
            )
        return
    yield from _activations(layer, spec, rule)
    if rule.weight is not None and not rule.dynamic_weight and not layer.of("weight"):
        return  # reads floats of a DQ that stands there for others
    yield from _weights(layer, spec, rule)
    yield from _bias(layer, spec, rule)
    yield from _placement(layer, rule)


def _numbers(tensor: Quantized) -> Iterator[tuple[str, str]]:
    """What no target can compute with."""
    if tensor.scale is None:
        return
    bad = ~np.isfinite(tensor.scale) | (tensor.scale < np.finfo(np.float32).tiny)
    if bad.any():
        worst = tensor.scale.reshape(-1)[bad.reshape(-1)][0]
        yield "scale", f"`{tensor.name}` has a scale of {worst:g}"
    sizes = {tensor.scale.size, tensor.zero_point.size}
    if len(sizes) > 1 and tensor.zero_point.ndim:
        yield (
            "scale",
            f"`{tensor.name}` has {tensor.scale.size} scales, {tensor.zero_point.size} zero points",
        )


def _activations(
    layer: QuantizedLayer, spec: QuantizationSpec, rule: OperatorRule | None
) -> Iterator[tuple[str, str]]:
    product = rule is not None and rule.symmetric_product and not layer.of("weight")
    symmetric = product or (rule is not None and rule.symmetric_input)
    for tensor in (*layer.of("input"), *layer.of("output")):
        wanted = {spec.activation_dtype}
        # Shared with an operator that wants a zero point of 0, a tensor may be of either type.
        if (
            any(r.symmetric_input or r.symmetric_product for r in spec.rules.values())
            and not tensor.zero_point.any()
        ):
            wanted = {"uint8", "int8"}
        if tensor.dtype not in wanted:
            yield (
                "activation-dtype",
                f"`{tensor.name}` is {tensor.dtype}; the kernels take {spec.activation_dtype}",
            )
        if tensor.granularity == "channel":
            yield (
                "activation-per-channel",
                f"`{tensor.name}` has a scale for each channel; the kernels take one",
            )
        zero = tensor.zero_point.any()
        if zero and (spec.activation_symmetric or (symmetric and tensor.role == "input")):
            yield (
                "zero-point",
                f"`{tensor.name}` has the zero point {tensor.zero_point.max()}; the kernels take 0",
            )


def _weights(
    layer: QuantizedLayer, spec: QuantizationSpec, rule: OperatorRule | None
) -> Iterator[tuple[str, str]]:
    for tensor in layer.of("weight"):
        if rule is not None and rule.weight is None:
            continue  # a constant where an activation may stand
        if tensor.dtype != "int8":
            yield "weight-dtype", f"`{tensor.name}` is {tensor.dtype}; the kernels take int8"
        if tensor.zero_point.any():
            yield "weight-zero-point", f"`{tensor.name}` has a zero point other than 0"
        array = array_of(tensor.integers)
        if spec.reduce_range and array is not None and array.size:
            greatest = int(np.abs(array.astype(np.int64)).max())
            if greatest > REDUCED:
                yield (
                    "weight-range",
                    f"`{tensor.name}` goes up to {greatest}: sums of products saturate on this CPU",
                )
        if rule is not None and tensor.axis is not None and array is not None:
            yield from _weight_axis(layer.node, tensor, rule, array.ndim)


def _weight_axis(
    node: ir.Node, tensor: Quantized, rule: OperatorRule, rank: int
) -> Iterator[tuple[str, str]]:
    wanted = rule.weight_axis
    turned = node.attributes.get("transB")
    if wanted is not None and turned is not None and turned.as_int():
        wanted = 1 - wanted
    assert tensor.axis is not None
    if wanted is None or tensor.axis % rank != wanted:
        which = "one scale" if wanted is None else f"them along axis {wanted}"
        yield (
            "weight-axis",
            f"`{tensor.name}` has its scales along axis {tensor.axis}; the kernel wants {which}",
        )


def _bias(
    layer: QuantizedLayer, spec: QuantizationSpec, rule: OperatorRule
) -> Iterator[tuple[str, str]]:
    biases = layer.of("bias")
    if rule.bias is None:
        return
    if spec.bias == "float" and biases:
        yield "bias", f"`{biases[0].name}` is {biases[0].dtype}; the target takes a float bias"
    inputs, weights = layer.of("input"), layer.of("weight")
    given = layer.node.inputs[rule.bias] if len(layer.node.inputs) > rule.bias else None
    if spec.bias == "int32" and not biases and given is not None:
        yield "bias", "its bias is float; the kernel takes int32 with the accumulator's scale"
    for bias in biases:
        if spec.bias == "float" or not inputs or not weights:
            continue
        if inputs[0].scale is None or weights[0].scale is None or bias.scale is None:
            continue
        wanted = inputs[0].scale * weights[0].scale
        if bias.dtype != "int32" or not np.allclose(bias.scale, wanted, rtol=1e-4, atol=0.0):
            yield "bias", f"`{bias.name}` has not the scale of its input times that of its weight"


def _placement(layer: QuantizedLayer, rule: OperatorRule) -> Iterator[tuple[str, str]]:
    """The Q behind, the pair around what moves data, sizes that do not pay."""
    node = layer.node
    if rule.on_integers:
        yield (
            "on-integers",
            f"{node.op_type} stands between DQ and Q; it has to work on the integers",
        )
        return
    if rule.output and not layer.of("output"):
        yield from _without_q(layer, rule)
    inputs, outputs = layer.of("input"), layer.of("output")
    if rule.same_scale and inputs and outputs and not _same(inputs[0], outputs[0]):
        yield "same-scale", f"{node.op_type} only moves data, but scale or zero point change"
    for tensor in layer.of("weight"):
        array = array_of(tensor.integers)
        if rule.weight is not None and array is not None and array.ndim >= 2:
            least = min(array.shape[-2:])
            if node.op_type in ("Gemm", "MatMul") and least < rule.least_size:
                yield (
                    "size",
                    f"`{tensor.name}` has a side of {least}; from {rule.least_size} on INT8 pays",
                )
    if rule.explicit_padding and inputs and inputs[0].zero_point.any():
        pads, counted = node.attributes.get("pads"), node.attributes.get("count_include_pad")
        if pads is not None and any(pads.as_ints()) and counted is not None and counted.as_int():
            yield "padding", "the kernel pads with the integer 0, which is not the zero point"


def _without_q(layer: QuantizedLayer, rule: OperatorRule) -> Iterator[tuple[str, str]]:
    node = layer.node
    if rule.weight is None and not rule.same_scale and len(layer.of("input")) < len(node.inputs):
        return  # some of its inputs are floats: it was left in float, and a DQ feeds it too
    output = behind(node, rule.absorbs)
    readers = sorted({use.node.op_type for use in output.uses()})
    if rule.weight is None and not any(kind == "QuantizeLinear" for kind in readers):
        return  # a float operator that reads what others have quantized
    if output.is_graph_output():
        readers.append("an output of the model")
    listed = ", ".join(readers) or "nothing"
    yield "output", f"its result goes to {listed}; the kernel needs one QuantizeLinear alone"


def _same(one: Quantized, two: Quantized) -> bool:
    if one.scale is None or two.scale is None:
        return True
    return np.array_equal(one.scale, two.scale) and np.array_equal(one.zero_point, two.zero_point)
