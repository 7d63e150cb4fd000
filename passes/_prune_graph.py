"""Layers of an ONNX graph whose weights can be cut, for the pruning passes. Imports onnx_ir."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from optimc.core.errors import PreconditionError
from optimc.core.model import SOURCE_KEY, OnnxModel
from optimc.core.onnx_sparsity import LayerWeight, layer_weights
from optimc.core.passes import PassContext, PassResult
from optimc.core.patterns import Bools
from optimc.passes._patterns import check_nodes
from optimc.passes._prune_choice import Unfit, nothing
from optimc.passes._prune_masks import Array
from optimc.passes._quantize_units import node_label
from optimc.passes.quantize_int8 import matches

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, eq=False)
class Prunable:
    """One stored weight, with all layers that read it."""

    value: ir.Value
    readers: tuple[LayerWeight, ...]
    label: str
    """The first reader, as messages call it."""

    @property
    def key(self) -> str:
        """The name of the value."""
        return str(self.value.name)

    @property
    def axis(self) -> int:
        """The axis that the layers sum over."""
        return self.readers[0].axis

    @property
    def array(self) -> Array:
        """What is stored; read-only."""
        return self.readers[0].array


def find_prunable(
    model: OnnxModel,
    rule: str,
    keep: Sequence[str],
    context: PassContext,
    unfit: Unfit,
    *,
    one_axis: bool,
) -> list[Prunable]:
    """The weights of the main graph that can be cut, in its order; says why of the others.

    With `one_axis`, layers that share a weight have to sum over the same axis of it.
    Raises PreconditionError for a quantized model, patterns without effect, and no layer at all.
    """
    from optimc.core.analyses import QuantizationNodes

    quantized = context.analysis(QuantizationNodes, model)
    if quantized:
        raise PreconditionError(
            f"the model is quantized: {len(quantized)} nodes such as `{quantized[0]}`",
            fix=f"put {rule} before the quantization",
        )
    graph = model.ir.graph
    check_nodes("keep", keep, graph)
    readers: dict[ir.Value, list[LayerWeight]] = {}
    for weight in layer_weights(graph):
        readers.setdefault(weight.value, []).append(weight)
    found = []
    for value, weights in readers.items():
        label = node_label(weights[0].node)
        reason = _unfit(value, weights, keep, one_axis=one_axis) or unfit(
            tuple(weights[0].array.shape), weights[0].axis, weights[0].node.op_type
        )
        if reason is None:
            found.append(Prunable(value, tuple(weights), label))
        else:
            context.log.refuse(rule, label, reason)
    if not found:
        raise nothing(rule, context.log)
    return found


def _unfit(
    value: ir.Value, weights: Sequence[LayerWeight], keep: Sequence[str], *, one_axis: bool
) -> str | None:
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    for weight in weights:
        pattern = next((p for p in keep if matches(weight.node, p)), None)
        if pattern is not None:
            return f"kept as it is by `{pattern}`"
    if tensor.dtype not in _FLOATS:
        return f"its weight is {tensor.dtype.name}, not floating-point"
    if not np.isfinite(weights[0].array.astype(np.float64)).all():
        return "its weight holds infinities or NaNs"
    if value.is_graph_output() or _other_readers(value, weights):
        return "its weight is read by other operators than layers, too"
    if one_axis and len({weight.axis for weight in weights}) > 1:
        return "its weight is shared by layers that sum over different axes of it"
    return None


def _other_readers(value: ir.Value, weights: Sequence[LayerWeight]) -> bool:
    """Whether something reads the value, or what stands between, that is none of these layers."""
    known = {(weight.node, weight.index) for weight in weights}
    known |= {(node, 0) for weight in weights for node in weight.through}
    values = [value, *(node.outputs[0] for weight in weights for node in weight.through)]
    return any(v.is_graph_output() or not set(v.uses()) <= known for v in values)


def cut(
    model: OnnxModel,
    rule: str,
    layers: Iterable[Prunable],
    masks: Mapping[str, Bools],
    context: PassContext,
) -> PassResult:
    """Sets to zero what `masks` (by key) do not keep; one numbered rewrite for each weight."""
    log, done, zeros, elements = context.log, [], 0, 0
    for layer in layers:
        array, mask = layer.array, masks[layer.key]
        if np.any((array != 0) & ~mask) and log.allow(rule, layer.label):
            array = np.where(mask, array, array.dtype.type(0))
            _store(layer.value, array)
            done += [weight.node for weight in layer.readers]
        zeros += int(np.count_nonzero(array == 0))
        elements += int(array.size)
    forget_sources(model.ir.graph, done)
    stats = {"zeros": zeros, "weights": elements}
    return PassResult(model.sealed(), bool(done), stats, log.rewrites, log.refusals)


def _store(value: ir.Value, array: Array) -> None:
    """Puts a new tensor in the place of a constant; the old one is shared and stays."""
    tensor = ir.Tensor(np.ascontiguousarray(array), name=value.name)
    maker = value.producer()
    if maker is not None:
        maker.attributes.clear()
        maker.attributes.add(ir.AttrTensor("value", tensor))
    if maker is None or value.const_value is not None:
        value.const_value = tensor


def forget_sources(graph: ir.Graph, changed: Iterable[ir.Node]) -> None:
    """Drops the source names of all that is computed from other numbers now, outputs excepted.

    Calibration goes by source name, and would take the ranges of the source's values for theirs.
    """
    first, moved = set(changed), set[ir.Value]()
    for node in graph:
        inner = [n for sub in _subgraphs(node) for n in sub.all_nodes()]
        reads = [value for n in (node, *inner) for value in n.inputs]
        if node in first or any(value in moved for value in reads if value is not None):
            values = [value for n in (node, *inner) for value in n.outputs]
            moved.update(values)
            for value in values:
                if not value.is_graph_output():
                    value.meta.pop(SOURCE_KEY, None)


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    from optimc.passes._simplify_work import subgraphs

    return list(subgraphs(node))
