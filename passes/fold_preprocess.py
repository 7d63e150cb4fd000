"""Folds the normalization of an input into the first convolution.

Preprocessing is an affine function of each channel c, ``y_c = a_c * x_c + b_c``: for
``(x / 255 - mean) / std``, a = 1 / (255 std) and b = -mean / std. A convolution is linear, so

    W * y + d = (W a) * x + (d + sum(W b))

where no padding is in play (Jacob et al. 2018, arXiv:1712.05877, section 3.2, has the same algebra
behind the layer). A convolution that pads with zeros pads y, and y = 0 is x = -b / a, which is no
zero. There the scale alone is folded, and the shift stays:

    W * y + d = (W a) * (x + b / a) + d

which is exact at the borders as well, because x + b / a is zero where y is.
"""

from __future__ import annotations

from typing import ClassVar

from optimc.core.model import Level, OnnxModel
from optimc.core.passes import Effect, Pass, PassContext, PassResult, tolerance


class FoldPreprocess(Pass):
    """Folds arithmetic between an input and the first Conv into that Conv's weight and bias.

    Made for `preprocess: {embed: true}`, and for models that came with their normalization inside.
    Run it after `simplify` and before quantization.

    Rewrites: Add, Sub, Mul and Div with one constant, or with one for each channel, between an
        input of the model and a Conv. Casts and layout stay where they are. Where the Conv pads,
        all of them become one subtraction.
    Refuses: constants that differ inside a channel; results that are read elsewhere; weights that
        are no constants; a subtraction before a Conv that pads, because its zeros stand for the
        mean; constants that are not finite. A graph with Q/DQ nodes stays as it is.
    Accuracy: within 1e-5 of each output's scale; computed in float64, then rounded once.
    Options: none.
    """

    level: ClassVar[Level] = Level.ONNX
    tools: ClassVar[tuple[str, ...]] = ("onnx-ir",)

    @property
    def effect(self) -> Effect:
        """Folded weights round differently."""
        return tolerance()

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class."""
        from optimc.core.analyses import QuantizationNodes

        log = context.log
        if context.analysis(QuantizationNodes, model):
            reason = "float arithmetic stays as it is in a quantized graph"
            log.refuse("fold_preprocess", "the whole graph", reason)
        else:
            self._fold(model, context)
        return PassResult(model.sealed(), bool(log.rewrites), {}, log.rewrites, log.refusals)

    def _fold(self, model: OnnxModel, context: PassContext) -> None:
        from optimc.core.onnx_names import NameTable
        from optimc.passes._fold_affine import fold_into

        names = NameTable.of_values(model.ir)
        for node in model.ir.graph:
            if node.domain == "" and node.op_type == "Conv":
                fold_into(node, names, context.log)
