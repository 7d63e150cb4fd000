"""Weights alone in 4 or 8 bits, with one scale for each block of inputs.

    q = clip(round(w / s), -2^(b-1), 2^(b-1) - 1)        w' = s q

with one s for `block` neighbours along the axis that the product sums over (Dettmers & Zettlemoyer
2023, "The case for 4-bit precision", arXiv:2212.09720, section 2, on blocks). ONNX has this as
DequantizeLinear with `block_size` from opset 21 on, which runtimes fuse with the product behind it
where they have a kernel for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optimc.core.errors import PreconditionError
from optimc.core.model import Level, Model
from optimc.core.passes import Effect, Pass, PassContext, PassResult, lossy
from optimc.passes._block_size import BlockSize

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimc.core.model import OnnxModel

NAME = "quantize_weights"
_OPSET = 21


class QuantizeWeights(Pass):
    """Stores the weights of products in 4 or 8 bits; the graph computes everything in float.

    For models that are bound by reading their weights, such as language models with one sentence at
    a time. Convolutions and activations stay in float: quantize_int8 is the pass for those. Weights
    that lie on a 4-bit grid already, from `gptq` or a tool that chose them with data, keep their
    values. ONNX Runtime's kernel for 4 bits takes its inputs in 8 bits.

    Rewrites: MatMul and Gemm with a constant float32 matrix as second operand: the matrix becomes
        integers behind a DequantizeLinear with blocks. One numbered rewrite is one weight. The
        model is brought to opset 21 where it is older.
    Refuses: weights whose inputs are no multiple of `block`; those that are not constant, not
        float32 or not finite, or that other operators read too; and what `keep_float` names. A
        quantized model, or one in which nothing can be stored so, is an error.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, else by 1 % of the metric
        or an output SQNR of 10 dB (4 bits leave some 18 dB of each weight).
    Options: bits, block, keep_float.
    """

    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    block: BlockSize = 32
    """How many inputs share a scale, which takes 32 bits: a power of two."""
    keep_float: list[str] = Field(default=[])
    """Operators that stay as they are: patterns (`*`, `?`, `[...]`) of node names, of source names
    of their outputs, or operator types such as `Gemm`."""

    level: ClassVar[Level] = Level.ONNX
    reads_names: ClassVar[bool] = True
    required_by_default: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx-ir", "onnxscript")

    @property
    def effect(self) -> Effect:
        """LOSSY; 4 bits cost more than 8."""
        return lossy(10.0 if self.bits == 4 else 20.0)

    def check(self, model: Model, context: PassContext) -> None:
        """Raises PreconditionError for quantized models and patterns without effect."""
        from optimc.core.analyses import QuantizationNodes
        from optimc.passes._patterns import check_nodes

        graph: Any = model
        quantized = context.analysis(QuantizationNodes, graph)
        if quantized:
            raise PreconditionError(
                f"the model is quantized already: {len(quantized)} nodes such as `{quantized[0]}`",
                fix=f"start from the float model, or take {NAME} out of this variant",
            )
        check_nodes("keep_float", self.keep_float, graph.ir.graph)

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where nothing can be stored so."""
        from optimc.core.onnx_sparsity import layer_weights
        from optimc.passes._quantize_units import node_label

        self.check(model, context)
        log, graph = context.log, model.ir.graph
        readers: dict[ir.Value, list[Any]] = {}
        for weight in layer_weights(graph):
            if weight.index == 1 and weight.node.op_type in ("Gemm", "MatMul"):
                readers.setdefault(weight.value, []).append(weight)
        fitting = []
        for weights in readers.values():
            label, reason = node_label(weights[0].node), self._unfit(weights)
            if reason is None:
                fitting.append((label, weights))
            else:
                log.refuse(NAME, label, reason)
        if not fitting:
            reasons = "".join(f"; {r.where}: {r.reason}" for r in log.refusals[:3])
            raise PreconditionError(
                f"no weight of this model can be stored in blocks{reasons}",
                fix=f"take {NAME} out of this variant, or keep less in float",
            )
        chosen = [weights for label, weights in fitting if log.allow(NAME, label)]
        if chosen:
            _raise_opset(model)
        for weights in chosen:
            _store(graph, weights, self.block, self.bits)
        stats = {"weights": len(chosen)}
        return PassResult(model.sealed(), bool(chosen), stats, log.rewrites, log.refusals)

    def _unfit(self, weights: list[Any]) -> str | None:
        """Why a weight stays as it is, or None."""
        import numpy as np

        from optimc.passes.quantize_int8 import matches

        for weight in weights:
            pattern = next((p for p in self.keep_float if matches(weight.node, p)), None)
            if pattern is not None:
                return f"kept in float by `{pattern}`"
        first, value = weights[0], weights[0].value
        array = first.array
        if any(weight.through for weight in weights):
            return "its weight is transposed or cast in the graph: put `simplify` before"
        if array.dtype != np.float32:
            return f"its weight is {array.dtype}, not float32"
        if array.ndim != 2:
            return f"its weight has {array.ndim} dims, and only matrices are taken"
        if not np.isfinite(array).all():
            return "its weight holds infinities or NaNs"
        if len(value.uses()) > len(weights) or value.is_graph_output():
            return "its weight is read by other operators than products, too"
        if len({weight.axis for weight in weights}) > 1:
            return "its weight is shared by products that sum over different axes of it"
        size = array.shape[first.axis]
        if size % self.block:
            return f"its {size} inputs are no multiple of {self.block}"
        return None


def _raise_opset(model: OnnxModel) -> None:
    """Brings the model to the opset that has blocks. Raises PreconditionError where that fails."""
    imports = model.ir.opset_imports
    before = imports.get("", 1)
    if before >= _OPSET:
        return
    from onnxscript import version_converter

    version_converter.convert_version(model.ir, _OPSET)
    if imports.get("", 1) < _OPSET:
        raise PreconditionError(
            f"the model has opset {before}, and cannot be brought to {_OPSET}",
            fix=f"export the model with opset {_OPSET} or newer",
        )


def _store(graph: ir.Graph, weights: list[Any], block: int, bits: int) -> None:
    """Puts integers in the place of one weight, with a DequantizeLinear for each that reads it.

    They stand as [inputs, outputs]: runtimes fuse no other layout, and no shared DequantizeLinear.
    """
    import ml_dtypes
    import numpy as np

    from optimc.passes._quantize_graph import GraphWriter
    from optimc.passes._weight_blocks import quantize_blocks

    value, writer = weights[0].value, GraphWriter(graph)
    array = weights[0].array if weights[0].axis == 0 else weights[0].array.T
    integers, scales = quantize_blocks(array, 0, block, bits)
    kind = ml_dtypes.int4 if bits == 4 else np.int8
    inputs = [
        writer.initializer(f"{value.name}_quantized", integers.astype(kind)),
        writer.initializer(f"{value.name}_scale", scales),
    ]
    for weight in weights:
        attributes = {"axis": 0, "block_size": block}
        dq = writer.node("DequantizeLinear", inputs, value, "blocks", "float32", attributes)
        dq.outputs[0].shape = inputs[0].shape
        graph.insert_before(weight.node, [dq])
        weight.node.replace_input_with(1, dq.outputs[0])
        weight.node.attributes.pop("transB", None)
    writer.remove_unread(value)
