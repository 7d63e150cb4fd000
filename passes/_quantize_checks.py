"""What the quantizing passes ask of a model before any work. Imports onnx_ir."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from optimc.core.errors import PreconditionError
from optimc.core.onnx_signature import all_graphs
from optimc.core.passes import Pass, PassContext
from optimc.core.targets import QuantizationSpec

LEAST_OPSET = 13  # per-channel scales: QuantizeLinear and DequantizeLinear with an axis

_QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)


def placement(pass_: Pass, context: PassContext) -> QuantizationSpec:
    """Where Q and DQ go for the target. Raises PreconditionError where it does not suit `pass_`."""
    pass_.check_target(context.spec)
    spec = context.spec.quantization
    assert spec is not None, "the pass's check_target let it through"
    return spec


def check_quantizable(model: ir.Model, keep_float: Sequence[str], name: str) -> None:
    """Raises PreconditionError for a quantized model, an old opset, and patterns without effect.

    `name` is the pass that asks.
    """
    from optimc.passes._patterns import check_nodes

    nodes = [node for graph in all_graphs(model) for node in graph]
    quantized = [n for n in nodes if n.op_type in _QUANTIZED or n.op_type.startswith("QLinear")]
    if quantized:
        raise PreconditionError(
            f"the model is quantized already: {len(quantized)} nodes such as"
            f" {quantized[0].op_type} `{quantized[0].name}`",
            fix=f"start from the float model, or take {name} out of this variant",
        )
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset < LEAST_OPSET:
        raise PreconditionError(
            f"the model has opset {opset}, quantization needs {LEAST_OPSET} or newer",
            fix=f"export the model with opset {LEAST_OPSET} or newer",
        )
    check_nodes("keep_float", keep_float, model.graph)
