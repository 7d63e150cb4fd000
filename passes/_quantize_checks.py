"""What `quantize_int8` asks of a model before any work. Imports onnx_ir."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from optimc.core.errors import PreconditionError
from optimc.core.onnx_signature import all_graphs
from optimc.core.targets import QuantizationSpec
from optimc.passes._simplify_work import where

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


def check_quantizable(model: ir.Model, spec: QuantizationSpec, keep_float: Sequence[str]) -> None:
    """Raises PreconditionError for a quantized model, an old opset, patterns without effect, and
    BatchNormalization that `fuse` would put into the layer before it.

    Left where it is, such a BatchNormalization runs in float between two INT8 layers. Folding it
    here would hide a float rewrite, which verification holds to 1e-5, in a lossy pass.
    """
    from optimc.passes._fuse_rules import fusible_batchnorms
    from optimc.passes.quantize_int8 import matches

    nodes = [node for graph in all_graphs(model) for node in graph]
    quantized = [n for n in nodes if n.op_type in _QUANTIZED or n.op_type.startswith("QLinear")]
    if quantized:
        raise PreconditionError(
            f"the model is quantized already: {len(quantized)} nodes such as"
            f" {quantized[0].op_type} `{quantized[0].name}`",
            fix="start from the float model, or take quantize_int8 out of this variant",
        )
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset < LEAST_OPSET:
        raise PreconditionError(
            f"the model has opset {opset}, quantization needs {LEAST_OPSET} or newer",
            fix=f"export the model with opset {LEAST_OPSET} or newer",
        )
    for pattern in keep_float:
        if not any(matches(node, pattern) for node in model.graph):
            raise PreconditionError(
                f"keep_float: `{pattern}` names no node of the model",
                fix="`optimc inspect MODEL` lists the nodes; patterns take *, ? and [...]",
            )
    unfused = fusible_batchnorms(model.graph)
    if unfused:
        raise PreconditionError(
            f"{len(unfused)} BatchNormalizations such as `{where(unfused[0])}` would stay in float"
            " between quantized layers",
            fix="put `fuse` before quantize_int8: [simplify, fuse, quantize_int8]",
        )
