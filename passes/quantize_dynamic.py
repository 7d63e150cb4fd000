"""INT8 weights without calibration; activations are quantized while the model runs.

DynamicQuantizeLinear (ONNX operators, opset 11) takes the range of the tensor at hand, 0 included:

    s_x = (max(x, 0) - min(x, 0)) / 255        q_x = saturate(round(x / s_x) + z_x)

and MatMulInteger (opset 10) multiplies the integers exactly in int32:

    y = (q_x - z_x) @ q_w * (s_x * s_w)        + b

with one s_w for each column of the weight. No range is stored, so outliers of one input cannot harm
another: that is why transformers, which static quantization with one range for each tensor breaks,
keep their quality (Zafrir et al. 2019, "Q8BERT", arXiv:1910.06188, section 3, has both).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from optimc.core.errors import PreconditionError
from optimc.core.model import Level, Model
from optimc.core.passes import Effect, Input, Pass, PassContext, PassResult, lossy

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel
    from optimc.core.passes import RewriteLog
    from optimc.core.targets import QuantizationSpec, TargetSpec
    from optimc.passes._dynamic_place import Site

NAME = "quantize_dynamic"


class QuantizeDynamic(Pass):
    """Quantizes weights to int8 without calibration data; activations at run time.

    The range of an activation is that of the tensor at hand, so a sample's result depends in its
    last digits on what else is in the batch.

    Rewrites: MatMul and Gemm with a constant matrix, and Gather of the rows of a constant table. On
        targets with kernels for it, products become DynamicQuantizeLinear and MatMulInteger with
        uint8 activations; on others, weights alone are stored as int8 behind a DequantizeLinear.
        One numbered rewrite is one operator.
    Refuses: convolutions, for which quantize_int8 is the pass; recurrent layers; products of two
        activations; weights that are no float32 matrix, are not finite, or are too small to pay;
        Gemm with transA; and what `keep_float` names. A model that is quantized already, or in
        which nothing can be quantized, is an error.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, else by 1 % of the metric
        or an output SQNR of 20 dB.
    Options: per_channel, embeddings, keep_float.
    """

    per_channel: bool = True
    """One scale for each output channel of a weight, and for each row of an embedding; else one for
    the whole weight."""
    embeddings: bool = True
    """Whether the tables of Gather are stored as int8 too: a quarter of the size."""
    keep_float: list[str] = Field(default=[])
    """Operators that stay in float: patterns (`*`, `?`, `[...]`) of node names, of source names of
    their outputs, or operator types such as `Gemm`."""

    level: ClassVar[Level] = Level.ONNX
    reads: ClassVar[frozenset[Input]] = frozenset({Input.SPEC})
    reads_names: ClassVar[bool] = True
    required_by_default: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx-ir")

    @property
    def effect(self) -> Effect:
        """LOSSY with the default bound."""
        return lossy(20.0)

    def check_target(self, spec: TargetSpec) -> None:
        """Raises PreconditionError for a target that has neither form."""
        if spec.quantization is None or spec.quantization.dynamic is None:
            raise PreconditionError(
                f"the target `{spec.runtime}` has no INT8 weights without calibration",
                fix=f"take {NAME} out of the variants of this target, or use quantize_int8 there",
            )

    def check(self, model: Model, context: PassContext) -> None:
        """Raises PreconditionError for a target that has neither form, and for a model that is
        quantized or has too old an opset."""
        from optimc.passes._quantize_checks import check_quantizable

        self.check_target(context.spec)
        graph: Any = model
        check_quantizable(graph.ir, self.keep_float, NAME)

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where nothing can be quantized."""
        from optimc.passes._dynamic_place import DynamicPlacer
        from optimc.passes._quantize_checks import placement
        from optimc.passes._quantize_units import node_label

        self.check(model, context)
        spec, log, graph = placement(self, context), context.log, model.ir.graph
        sites = self._sites(model, spec, log)
        if not sites:
            raise _nothing(log)
        placer = DynamicPlacer(graph, spec, per_channel=self.per_channel)
        for site in sites:
            if log.allow(f"quantize {site.node.op_type}", node_label(site.node)):
                placer.place(site)
        placer.finish()
        return PassResult(model.sealed(), bool(log.rewrites), {}, log.rewrites, log.refusals)

    def _sites(self, model: OnnxModel, spec: QuantizationSpec, log: RewriteLog) -> list[Site]:
        """What will be rewritten, in the graph's order; says why of the rest."""
        from optimc.passes._dynamic_place import judge
        from optimc.passes._quantize_units import node_label
        from optimc.passes.quantize_int8 import matches

        sites = []
        for node in model.ir.graph:
            found = judge(node, spec)
            if found is None:
                continue
            if not isinstance(found, str):
                pattern = next((p for p in self.keep_float if matches(node, p)), None)
                if pattern is not None:
                    found = f"kept in float by `{pattern}`"
                elif found.kind == "gather" and not self.embeddings:
                    found = "kept in float by `embeddings: false`"
                else:
                    sites.append(found)
                    continue
            log.refuse(f"quantize {node.op_type}", node_label(node), found)
        return sites


def _nothing(log: RewriteLog) -> PreconditionError:
    reasons = "".join(f"; {refusal.where}: {refusal.reason}" for refusal in log.refusals[:3])
    return PreconditionError(
        f"nothing in this model can be quantized{reasons}",
        fix=f"take {NAME} out of this variant, or keep less in float",
    )
