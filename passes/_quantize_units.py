"""What `quantize_int8` may quantize: operators with what belongs to them, by a target's rules.

A unit is one node with the activations that its kernel takes in. Each is judged by itself here, and
together with its neighbours in `_quantize_select`. Imports onnx_ir.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.core.targets import OperatorRule, QuantizationSpec

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

Refuse = Callable[[ir.Node, str], None]


@dataclass(eq=False)
class Unit:
    """A node that may be quantized."""

    node: ir.Node
    rule: OperatorRule
    output: ir.Value
    """The result behind the activations that the kernel takes in."""
    activations: tuple[int, ...]
    """The inputs that get Q and DQ."""
    constants: tuple[int, ...] = ()
    """Constant inputs that stand where an activation may stand (the bias of an Add)."""
    weight: int | None = None
    """The input with the constant weight."""
    bias: int | None = None
    """The input with the constant bias."""
    absorbed: tuple[ir.Node, ...] = ()
    pools: bool = False
    """A ReduceMean over all space, to be written as GlobalAveragePool."""

    @property
    def moves(self) -> bool:
        """Whether the unit only moves data, so that its output has the scale of its inputs."""
        return self.rule.same_scale

    def sources(self) -> list[ir.Value]:
        """The activations that get Q and DQ."""
        values = (self.node.inputs[index] for index in self.activations)
        return [value for value in values if value is not None]


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array of an initializer or a Constant node, read-only; None for anything else."""
    if value is None or (value.is_graph_input() and value.const_value is None):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def float_constant(value: ir.Value | None) -> NDArray[np.float32]:
    """The array of a constant that is known to be float32."""
    array = constant(value)
    assert array is not None, "checked when the unit was found"
    return array.astype(np.float32, copy=False)


def node_label(node: ir.Node) -> str:
    """What messages call a node: its name, or its first output's."""
    return node.name or next(
        (str(value.name) for value in node.outputs if value.name), node.op_type
    )


def layer_name(unit: Unit) -> str:
    """What a layer is known by: its node's first output, whose name stands nowhere else."""
    return str(unit.node.outputs[0].name)


def find_units(graph: ir.Graph, spec: QuantizationSpec, refuse: Refuse) -> list[Unit]:
    """The nodes of the main graph that have a rule and fit it, in the graph's order."""
    units: list[Unit] = []
    for node in graph:
        rule = _rule(node, spec)
        if rule is None or not _works_on_floats(node):
            continue
        found = _unit(node, rule, spec)
        if isinstance(found, str):
            refuse(node, found)
        else:
            units.append(found)
    return units


def _works_on_floats(node: ir.Node) -> bool:
    """Whether the result is, or may be, floating-point: arithmetic on shapes is none of ours."""
    dtype = node.outputs[0].dtype
    return dtype is None or dtype.is_floating_point()


def _rule(node: ir.Node, spec: QuantizationSpec) -> OperatorRule | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if spec.global_average_pool and is_global_average(node):
        rule = spec.rules.get("GlobalAveragePool")
        return None if rule is None else rule.model_copy(update={"inputs": "first"})
    return spec.rules.get(node.op_type)


def is_global_average(node: ir.Node) -> bool:
    """Whether a node is a ReduceMean over all axes behind samples and channels."""
    shape = node.inputs[0].shape if node.op_type == "ReduceMean" and node.inputs[0] else None
    if shape is None or len(shape) < 3:
        return False
    given = node.attributes.get("axes")
    if given is not None:
        axes: list[int] = list(given.as_ints())
    else:
        array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = [] if array is None else [int(axis) for axis in array.reshape(-1)]
    rank = len(shape)
    return sorted(axis % rank for axis in axes) == list(range(2, rank))


def _unit(node: ir.Node, rule: OperatorRule, spec: QuantizationSpec) -> Unit | str:
    """The unit of a node, or why it cannot be one."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "its further outputs are used"
    output, absorbed = _absorb(node, rule)
    if any(not _is_float32(value) for value in (output, node.inputs[0])):
        return "it does not work on float32"
    unit = Unit(
        node,
        rule,
        output,
        (),
        absorbed=absorbed,
        pools=spec.global_average_pool and is_global_average(node),
    )
    reason = _too_few_rows(unit) or _take_weight(unit, spec) or _take_activations(unit)
    return reason or _special(unit) or unit


def _absorb(node: ir.Node, rule: OperatorRule) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """The value behind the activation that the kernel takes in, if there is one."""
    output = node.outputs[0]
    uses = tuple(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return output, ()
    consumer, index = uses[0]
    absorbed = consumer.op_type in rule.absorbs and index == 0 and consumer.graph is node.graph
    if absorbed and all(constant(value) is not None for value in consumer.inputs[1:] if value):
        return consumer.outputs[0], (consumer,)
    return output, ()


def _is_float32(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (None, ir.DataType.FLOAT)


def _take_weight(unit: Unit, spec: QuantizationSpec) -> str | None:
    rule, inputs = unit.rule, unit.node.inputs
    if rule.weight is None:
        return None
    array = constant(inputs[rule.weight])
    if array is None:
        if rule.dynamic_weight:
            if rule.symmetric_product:
                unit.rule = rule.model_copy(update={"symmetric_input": True})
            return _too_small(_known_sides(inputs[rule.weight]), rule)
        if unit.node.op_type == "MatMul":
            return "the target runs products of two activations faster in float"
        return "its weight is not a constant"
    if array.dtype != np.float32:
        return f"its weight is {array.dtype}, not float32"
    if not np.isfinite(array).all():
        return "its weight holds infinities or NaNs"
    if unit.node.op_type in ("Gemm", "MatMul"):
        reason = _too_small(array.shape[-2:] if array.ndim >= 2 else [1], rule)
        if reason is not None:
            return reason
    unit.weight = rule.weight
    return _take_bias(unit, spec)


def _known_sides(value: ir.Value | None) -> list[int]:
    """K and N of a matrix, as far as they are fixed."""
    shape = value.shape if value is not None else None
    return [] if shape is None else [dim for dim in shape[-2:] if isinstance(dim, int)]


def _too_few_rows(unit: Unit) -> str | None:
    """Whether a product has fewer rows than its rule asks for, as far as they are fixed."""
    if unit.rule.least_rows == 1:
        return None
    value, transposed = unit.node.inputs[0], unit.node.attributes.get("transA")
    shape = value.shape if value is not None else None
    if shape is None or len(shape) == 0:
        return None
    rows = 1 if len(shape) == 1 else shape[-1 if transposed and transposed.as_int() else -2]
    if isinstance(rows, int) and rows < unit.rule.least_rows:
        return f"it has {rows} row; under {unit.rule.least_rows} INT8 does not pay"
    return None


def _too_small(sides: Sequence[int], rule: OperatorRule) -> str | None:
    least = min(sides, default=rule.least_size)
    if least < rule.least_size:
        return f"its weight has a side of {least}; under {rule.least_size} INT8 does not pay"
    return None


def _take_bias(unit: Unit, spec: QuantizationSpec) -> str | None:
    rule, inputs = unit.rule, unit.node.inputs
    value = inputs[rule.bias] if rule.bias is not None and rule.bias < len(inputs) else None
    if value is None:
        return None
    array = constant(value)
    if array is None:
        return "its bias is not a constant" if spec.bias == "int32" else None
    if not np.isfinite(array).all():
        return "its bias holds infinities or NaNs"
    if array.ndim > 1 and array.size != array.shape[-1]:
        return "its bias differs from row to row"
    unit.bias = rule.bias
    return None


def _take_activations(unit: Unit) -> str | None:
    rule, inputs = unit.rule, unit.node.inputs
    indices = [0] if rule.inputs == "first" else list(range(len(inputs)))
    indices = [i for i in indices if i not in (unit.weight, rule.bias) and inputs[i] is not None]
    constants = [i for i in indices if constant(inputs[i]) is not None]
    activations = [i for i in indices if i not in constants]
    if not activations:
        return "all of its inputs are constants"
    if not all(_is_float32(inputs[i]) for i in indices):
        return "it does not work on float32"
    for index in constants:
        array = constant(inputs[index])
        assert array is not None
        if not np.isfinite(array).all():
            return "one of its constants holds infinities or NaNs"
    if rule.inputs == "skip":
        activations = _without_last_branch(unit.node, activations)
        if not activations:
            return "the kernel before it takes it in as it is"
    unit.activations, unit.constants = tuple(activations), tuple(constants)
    return None


def _without_last_branch(node: ir.Node, activations: list[int]) -> list[int]:
    """Leaves out the input whose weighted operator comes last and feeds nothing but this Add."""
    branches = []
    for index in activations:
        value = node.inputs[index]
        producer = value.producer() if value is not None else None
        alone = value is not None and len(value.uses()) == 1 and not value.is_graph_output()
        if producer is not None and producer.op_type in WEIGHTED and alone:
            branches.append((_position(producer), index))
    if not branches:
        return activations
    last = max(branches)[1]
    return [index for index in activations if index != last]


def _position(node: ir.Node) -> int:
    assert node.graph is not None
    return next(i for i, other in enumerate(node.graph) if other is node)


def _special(unit: Unit) -> str | None:
    """What single operators ask for beyond their rule."""
    node = unit.node
    if node.op_type == "Pad":
        return _pad_reason(node)
    mode = node.attributes.get("mode")
    if node.op_type == "Resize" and mode is not None and mode.as_string() != "nearest":
        return f"{mode.as_string()} interpolation mixes values: that has no INT8 kernel"
    return None


def pad_value(node: ir.Node) -> float | None:
    """What a Pad in constant mode writes; None where it writes no constant, or an unknown one."""
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return None
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return 0.0
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else math.nan


def _pad_reason(node: ir.Node) -> str | None:
    value = pad_value(node)
    if value is not None and not math.isfinite(value):
        return "it pads with a value that is not finite or not a constant"
    return None
