"""Puts what follows or precedes a linear layer into its constants, in standard ONNX.

BatchNormalization at inference is an affine function of each channel (Ioffe & Szegedy 2015, "Batch
Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", section
3.1). Behind a layer with the weight W and the bias b, along the output channels, it folds into

    s  = gamma / sqrt(variance + epsilon)
    W' = W * s
    b' = (b - mean) * s + beta

(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 3.2). Padding with zeros is what a convolution does
itself: the pads add up.

The algebra of the other rewrites is where they are: constants behind a layer in `_fuse_affine`,
products in `_fuse_product`, shortcuts in `_fuse_shortcut`, GELU in `_fuse_gelu`, and
LayerNormalization in `_fuse_norm`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from optimc.core.model import Level, OnnxModel
from optimc.core.passes import Effect, Pass, PassContext, PassResult, tolerance

if TYPE_CHECKING:
    import onnx_ir as ir

_LEAST_OPSET = 13
"""Older operators say the same in other ways; the ONNX front end raises models to this one."""


class Fuse(Pass):
    """Fuses layers with the BatchNormalization, bias, padding and transposes beside them.

    Float engines get fewer nodes. INT8 gains most: a BatchNormalization behind a convolution has no
    INT8 kernel, and keeps the activation and the residual behind it in float as well.

    Rewrites: BatchNormalization goes into the Conv, ConvTranspose or Gemm before it, and a Pad with
        zeros into the Conv after it. Add, Sub, Mul and Div by a constant for each channel go into
        the weight and bias of the layer before them, also through a Transpose or Reshape, or into
        the scale and bias of a BatchNormalization that follows no layer; Mul and Div into the
        weight of a MatMul, too. A product of two matrices and an added
        constant become Gemm, transposed matrices Gemm's flags. Slices with strides and a Pad with
        channels of zeros (a shortcut of CIFAR's ResNets) become a 1x1 Conv. GELU and
        LayerNormalization in small operators become Gelu (opset 20) and LayerNormalization
        (opset 17); below opset 20 standard ONNX has nothing shorter for GELU, which stays as it is.
        A weight that other nodes read too is copied first.
    Refuses: where what is between the two is read elsewhere or is an output; constants that are not
        known at build time; training mode; parameters that are not finite and variances that are
        not positive; float16 and bfloat16 weights (fuse first, then convert); SAME padding;
        products with more than two dims; shortcuts of so many channels that copying is cheaper;
        operators that the model's opset does not have yet. A graph with Q/DQ nodes or with an opset
        older than 13 stays as it is.
    Accuracy: within 1e-5 of each output's scale; constants are computed in float64, then rounded
        once. A shortcut is exact for finite values; an infinity would make NaN.
    Options: none. Run `simplify` before it, so that weights and biases are constants and shapes are
        known.
    """

    level: ClassVar[Level] = Level.ONNX
    tools: ClassVar[tuple[str, ...]] = ("onnx-ir",)

    @property
    def effect(self) -> Effect:
        """Fused weights round differently."""
        return tolerance()

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class."""
        before = model.digest
        reason = _why_not(model, context)
        if reason is None:
            _fuse_all(model.ir, context)
        else:
            context.log.refuse("fuse", "the whole graph", reason)
        result = model.sealed()
        modified = result.digest != before
        return PassResult(result, modified, {}, context.log.rewrites, context.log.refusals)


def _why_not(model: OnnxModel, context: PassContext) -> str | None:
    from optimc.core.analyses import QuantizationNodes

    if context.analysis(QuantizationNodes, model):
        return "float arithmetic stays as it is in a quantized graph"
    opset = model.ir.opset_imports.get("", _LEAST_OPSET)
    if opset < _LEAST_OPSET:
        return f"the model has opset {opset}, fusing needs {_LEAST_OPSET} or newer"
    return None


def _fuse_all(model: ir.Model, context: PassContext) -> None:
    """Sweeps until one finds nothing more: a rewrite may be what another waited for."""
    from optimc.core.onnx_names import NameTable
    from optimc.core.onnx_signature import all_graphs
    from optimc.passes._fuse_job import Job
    from optimc.passes._fuse_rules import RULES

    opset = model.opset_imports.get("", _LEAST_OPSET)
    job = Job(context.log, NameTable.of_values(model), opset)
    count = -1
    while count < len(context.log.rewrites) and not job.stopped:
        count = len(context.log.rewrites)
        for graph in list(all_graphs(model)):
            for node in graph:
                for rule in RULES.get(node.op_type, ()) if node.domain == "" else ():
                    if node.graph is graph and not job.stopped:
                        rule(node, job)
