"""onnxscript's rewrite rules for `simplify`, each with a guard. Imports onnxscript at the top.

The rules are onnxscript's default ones. The guards keep them from cases in which they change what
the model computes (each has its test): two clips whose ranges do not meet, a ScatterND that adds,
SAME padding of a dilated convolution, a reshape that regroups what a matrix product sums over, and
so on. Every rewrite is numbered; what a guard stops is a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import basic_constant_propagation
from onnxscript.rewriter import RewriteRule
from onnxscript.rewriter._rewrite_rule import ReplacementSubgraph
from onnxscript.rewriter.rules import common as library

from optimc.core.onnx_signature import all_graphs
from optimc.passes._simplify_check import contradiction
from optimc.passes._simplify_fold import LIBRARY_ERRORS, text_of
from optimc.passes._simplify_work import Work, keep_source, where

Guard = Callable[[ReplacementSubgraph, Work], str | None]


@dataclass(frozen=True)
class _Rule:
    """One of onnxscript's rules under the name that rewrites and refusals show."""

    name: str
    root: str
    """The operator at which the pattern ends."""
    rule: RewriteRule
    arithmetic: bool = False
    """Whether it may change float results by rounding: not done in quantized graphs."""
    guard: Guard | None = None


def apply_rules(work: Work) -> None:
    """One sweep of all rules over all graphs."""
    for graph in list(all_graphs(work.model)):
        for node in graph:
            if work.stopped:
                return
            for rule in RULES.get(node.op_type, ()):
                if node.graph is graph and _try(rule, graph, node, work):
                    break


def _try(rule: _Rule, graph: ir.Graph, node: ir.Node, work: Work) -> bool:
    opsets = dict(work.model.opset_imports)
    try:
        delta = rule.rule.try_rewrite(work.model, graph, node)
    except LIBRARY_ERRORS as error:
        work.log.refuse(rule.name, where(node), f"the rule failed: {text_of(error)}")
        return False
    if delta is None:
        return False
    reason = _why_not(rule, delta, graph, work)
    if reason is None and work.allow(rule.name, where(node)):
        _apply(rule.rule, delta, graph, node)
        return True
    if reason is not None:
        work.log.refuse(rule.name, where(node), reason)
    work.model.opset_imports.clear()
    work.model.opset_imports.update(opsets)
    for new in delta.new_nodes:
        for index in range(len(new.inputs)):
            new.replace_input_with(index, None)
    return False


def _why_not(rule: _Rule, delta: ReplacementSubgraph, graph: ir.Graph, work: Work) -> str | None:
    if any(node.graph is not graph for node in delta.match.nodes):
        return "the nodes are not all in one graph"
    if work.quantized and rule.arithmetic:
        return "float arithmetic stays as it is in a quantized graph"
    reason = rule.guard(delta, work) if rule.guard is not None else None
    if reason is not None:
        return reason
    _name_values(delta, work)
    basic_constant_propagation(delta.new_nodes)
    return contradiction(work.model, delta.new_nodes, delta.match.outputs, delta.new_outputs)


def _name_values(delta: ReplacementSubgraph, work: Work) -> None:
    """Names of their own: rules give equal names to different constants."""
    for value in delta.new_initializers:
        value.name = work.names.unique(value.name or "constant")
        if value.const_value is not None:
            value.shape = ir.Shape(value.const_value.shape.numpy())
            value.dtype = value.const_value.dtype
    for node in delta.new_nodes:
        for output in node.outputs:
            output.name = work.names.unique(f"{node.op_type}_value")


def _apply(rule: RewriteRule, delta: ReplacementSubgraph, graph: ir.Graph, node: ir.Node) -> None:
    for value in delta.new_initializers:
        graph.register_initializer(value)
    for old, new in zip(delta.match.outputs, delta.new_outputs, strict=True):
        keep_source(new, old)
        # A known constant would be handed on to a value that has become another.
        old.const_value = None
    if delta.new_nodes:
        delta.new_nodes[-1].name = node.name
    old_nodes = delta.match.nodes if rule.remove_nodes else [node]
    ir.convenience.replace_nodes_and_values(
        graph, node, old_nodes, delta.new_nodes, delta.match.outputs, delta.new_outputs
    )


# Guards: why a replacement that the library offers would compute something else, or None.


def _array(value: ir.Value | None) -> np.ndarray | None:
    return (
        value.const_value.numpy() if value is not None and value.const_value is not None else None
    )


def _root(delta: ReplacementSubgraph) -> ir.Node:
    node = delta.match.outputs[0].producer()
    assert node is not None
    return node


def _matched(delta: ReplacementSubgraph, op_type: str) -> ir.Node:
    return next(node for node in delta.match.nodes if node.op_type == op_type)


def _operand_is(neutral: float) -> Guard:
    """The library compares constants with a tolerance; here the operand is neutral or it stays."""

    def guard(delta: ReplacementSubgraph, work: Work) -> str | None:
        arrays = [array for value in _root(delta).inputs if (array := _array(value)) is not None]
        exact = any(bool(np.all(array == neutral)) for array in arrays)
        return None if exact else f"the operand is only near {neutral:g}"

    return guard


def _bounds_meet(delta: ReplacementSubgraph, work: Work) -> str | None:
    """Clip(Clip(x, 0, 1), 2, 3) is 2 and Relu(Clip(x, -2, -1)) is 0; one Clip would differ."""
    low, high = (_array(v) for v in [*delta.new_nodes[-1].inputs[1:], None, None][:2])
    if low is not None and high is not None and np.any(low > high):
        return "the ranges do not meet"
    return None


def _scatter_replaces(delta: ReplacementSubgraph, work: Work) -> str | None:
    reduction = _matched(delta, "ScatterND").attributes.get_string("reduction", "none")
    return None if reduction == "none" else f"the ScatterND reduces by `{reduction}`"


def _not_dilated(delta: ReplacementSubgraph, work: Work) -> str | None:
    node = _root(delta)
    dilated = any(step != 1 for step in node.attributes.get_ints("dilations", None) or ())
    same = (node.attributes.get_string("auto_pad", "") or "").startswith("SAME")
    return "SAME padding of a dilated convolution is computed wrongly" if dilated and same else None


def _no_empty_dims(delta: ReplacementSubgraph, work: Work) -> str | None:
    """A zero in a target shape means `as in the input`, and beside it -1 has no meaning."""
    shapes = [v.shape for v in (_root(delta).inputs[0], delta.match.outputs[0]) if v is not None]
    if any(dim == 0 for shape in shapes if shape is not None for dim in shape):
        return "a dim of the tensor is empty"
    return None


def _rows_stay(delta: ReplacementSubgraph, work: Work) -> str | None:
    """Reshapes before a product may regroup batch dims, never what the product sums over."""
    product = _matched(delta, "MatMul")
    for side, value in enumerate(product.inputs):
        node = value.producer() if value is not None else None
        if node is None or node.op_type != "Reshape" or node not in delta.match.nodes:
            continue
        source, target = node.inputs[0], value
        if source is None or target is None or source.shape is None or target.shape is None:
            return "a shape before the product is not known"
        kept = 2 if side == 1 else 1
        if len(source.shape) < 2 or source.shape[-kept:] != target.shape[-kept:]:
            return "a reshape regroups what the product sums over"
    return None


def _all_rules() -> list[_Rule]:
    one, zero = _operand_is(1.0), _operand_is(0.0)
    rules = [
        *(_Rule("drop_times_one", "Mul", r, guard=one) for r in library.mul_by_1_rule.commute()),
        _Rule("drop_times_one", "Div", library.div_by_1_rule, guard=one),
        *(_Rule("drop_plus_zero", "Add", r, guard=zero) for r in library.add_0_rule.commute()),
        _Rule("drop_plus_zero", "Sub", library.sub_0_rule, guard=zero),
        _Rule("drop_whole_slice", "Slice", library.collapse_slice_rule),
        _Rule("drop_whole_slice", "Slice", library.collapse_slice2_rule),
        _Rule(
            "fix_reshape", "Reshape", library.materialize_reshape_shape_rule, guard=_no_empty_dims
        ),
        _Rule("fuse_min_max", "Min", library.min_min_rule),
        _Rule("fuse_min_max", "Max", library.max_max_rule),
        _Rule("min_max_to_clip", "Max", library.min_max_rule),
        _Rule("min_max_to_clip", "Min", library.max_min_rule),
        _Rule("fuse_clips", "Clip", library.successive_clip_relu_rule, guard=_bounds_meet),
        _Rule("fuse_clips", "Relu", library.successive_relu_clip_rule, guard=_bounds_meet),
        _Rule("fuse_clips", "Relu", library.successive_relu_rule),
        _Rule("fuse_clips", "Clip", library.successive_clip_rule, guard=_bounds_meet),
        _Rule("fuse_casts", "Cast", library.cast_cast_rule, arithmetic=True),
        _Rule("drop_cast", "Cast", library.no_op_cast_rule),
        _Rule("cast_fill_value", "Cast", library.cast_constant_of_shape_rule),
        _Rule("cast_fill_value", "Cast", library.cast_constant_of_shape_without_value_rule),
        _Rule("drop_expand", "Expand", library.no_op_expand_rule),
        _Rule(
            "flatten_to_reshape", "Flatten", library.flatten_to_reshape_rule, guard=_no_empty_dims
        ),
        _Rule("fuse_reshapes", "Reshape", library.reshape_reshape_rule, guard=_no_empty_dims),
        _Rule("drop_transpose", "Transpose", library.no_op_transpose_rule),
        _Rule("fuse_transposes", "Transpose", library.transpose_transpose_rule),
        _Rule("fuse_unsqueezes", "Unsqueeze", library.unsqueeze_unsqueeze_rule),
        _Rule("drop_squeeze_reshape", "Reshape", library.squeeze_reshape_1d_rule),
        _Rule("drop_zero_bias", "Conv", library.remove_optional_bias_from_conv_rule),
        _Rule("drop_zero_bias", "Gemm", library.remove_optional_bias_from_gemm_rule),
        _Rule("drop_zero_bias", "QLinearConv", library.remove_optional_bias_from_qlinear_conv_rule),
        _Rule(
            "drop_zero_bias", "ConvTranspose", library.remove_optional_bias_from_conv_transpose_rule
        ),
    ]
    arithmetic = [
        ("drop_reshapes_of_product", "Reshape", library.two_reshapes_matmul_reshape_rule),
        ("drop_reshapes_of_product", "Reshape", library.one_reshape_matmul_reshape_rule),
    ]
    guarded: list[tuple[str, str, RewriteRule, Guard]] = [
        ("explicit_padding", "Conv", library.normalize_pad_format_conv_rule, _not_dilated),
        (
            "explicit_padding",
            "ConvInteger",
            library.normalize_pad_format_conv_integer_rule,
            _not_dilated,
        ),
        (
            "drop_whole_scatter",
            "ScatterND",
            library.no_op_static_scatter_nd_rule,
            _scatter_replaces,
        ),
        (
            "drop_whole_scatter",
            "ScatterND",
            library.no_op_dynamic_scatter_nd_rule,
            _scatter_replaces,
        ),
    ]
    rules += [_Rule(name, root, rule, True, _rows_stay) for name, root, rule in arithmetic]
    return rules + [_Rule(name, root, rule, False, guard) for name, root, rule, guard in guarded]


def _by_root(rules: Sequence[_Rule]) -> dict[str, list[_Rule]]:
    found: dict[str, list[_Rule]] = {}
    for rule in rules:
        found.setdefault(rule.root, []).append(rule)
    return found


RULES = _by_root(_all_rules())
"""onnxscript's default rules but for these: Slice pairs to Split is left out, because it splits odd
sizes wrongly and may put the Split behind its readers; Dropout is done by the folder; what changes
the weights of a layer (BatchNormalization, Pad) is the pass `fuse`, which computes in float64."""
