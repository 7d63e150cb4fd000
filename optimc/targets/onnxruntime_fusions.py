"""What only ONNX Runtime knows: attention, skip-LayerNorm and bias-GELU as operators of its own.

Its own optimizer finds these in older exports only. The patterns of today's are kept up in
onnxscript (`onnxscript.rewriter.ort_fusions`), which writes operators of the domain com.microsoft
(onnxruntime/docs/ContribOperators.md).
"""

from __future__ import annotations

from collections import Counter

from optimc.core.errors import CellError
from optimc.core.model import OnnxModel

DOMAIN = "com.microsoft"

_SIGNS = frozenset(
    {
        "Attention",
        "Erf",
        "Gelu",
        "InstanceNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "Softmax",
        "Tanh",
    }
)
"""Without any of these there is nothing to fuse, and nothing is imported to find that out."""


def fused(model: OnnxModel) -> tuple[OnnxModel, Counter[str]] | None:
    """The model with the fused operators, and how many of each; None where none applies.

    `model` stays as it is. Raises CellError where the fusions break.
    """
    before = _own_operators(model)
    if not any(node.op_type in _SIGNS for node in model.ir.graph.all_nodes()):
        return None
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    try:
        graph, _ = optimize_for_ort(model.clone().ir)
    except Exception as error:  # a library of rewrites: it may break in any way
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise CellError(f"the fusions broke: {type(cause).__name__}: {cause}") from error
    result = OnnxModel(graph)
    added = _own_operators(result) - before
    return (result, added) if added else None


def _own_operators(model: OnnxModel) -> Counter[str]:
    """How often each operator of the runtime's own domain stands in the model."""
    nodes = model.ir.graph.all_nodes()
    return Counter(node.op_type for node in nodes if node.domain == DOMAIN)
