"""What only ONNX Runtime knows: attention as one operator, and residuals in front of norms.

The core of attention (`_onnxruntime_attention`) and integer products with a bias
(`_onnxruntime_products`) are found here. The residual Add in front of a LayerNormalization is
written as Sum, which is the same number by number: the runtime fuses the Add into
SkipLayerNormalization, whose kernel (1.31, on the CPU) takes twice the time of the two operators
that it stands for.

Where neither is there, patterns of today's exports are kept up in onnxscript
(`onnxscript.rewriter.ort_fusions`), which writes operators of the domain com.microsoft
(onnxruntime/docs/ContribOperators.md).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from optimc.core.errors import CellError
from optimc.core.model import OnnxModel

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "com.microsoft"
ATTENTION = "MultiHeadAttention"
PRODUCT = "MatMulIntegerToFloat"
RESIDUAL = "Sum in front of LayerNormalization"

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
    """The model with other operators, and how many of each; None where none applies.

    `model` stays as it is. Raises CellError where the fusions break.
    """
    if not any(node.op_type in _SIGNS for node in model.ir.graph.all_nodes()):
        return None
    own = _rewritten(model)
    softmax = any(node.op_type == "Softmax" for node in model.ir.graph)
    if own is not None and (own[1][ATTENTION] or not softmax):
        return own
    model, counts = own if own is not None else (model, Counter[str]())
    before = _own_operators(model)
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
    counts += added
    return (result, counts) if counts else None


def _rewritten(model: OnnxModel) -> tuple[OnnxModel, Counter[str]] | None:
    """The model with attention as one operator and residuals as Sum; None where it has neither."""
    from optimc.targets._onnxruntime_attention import fuse_attention
    from optimc.targets._onnxruntime_products import fuse_products

    graph = model.clone().ir
    counts = Counter(
        {
            ATTENTION: fuse_attention(graph),
            PRODUCT: fuse_products(graph),
            RESIDUAL: _apart(graph),
        }
    )
    found = +counts
    return (OnnxModel(graph), found) if found else None


def _apart(model: ir.Model) -> int:
    """Writes residual Adds in front of LayerNormalization as Sum; how many."""
    import onnx_ir as ir

    count = 0
    for norm in list(model.graph):
        if norm.op_type != "LayerNormalization" or norm.domain not in ("", "ai.onnx"):
            continue
        add = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if add is None or add.op_type != "Add" or add.graph is not model.graph:
            continue
        if any(value is None or value.const_value is not None for value in add.inputs):
            continue
        old = add.outputs[0]
        total = ir.node("Sum", list(add.inputs), name=add.name)
        new = total.outputs[0]
        new.type, new.shape = old.type, old.shape
        new.meta.update(old.meta)
        name, old.name = old.name, f"{old.name}_apart"
        new.name = name
        model.graph.insert_before(add, [total])
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove(add, safe=True)
        count += 1
    return count


def _own_operators(model: OnnxModel) -> Counter[str]:
    """How often each operator of the runtime's own domain stands in the model."""
    nodes = model.ir.graph.all_nodes()
    return Counter(node.op_type for node in nodes if node.domain == DOMAIN)
