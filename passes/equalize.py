"""Cross-layer equalization of weight ranges.

Where f(s x) = s f(x) for s > 0 between two layers, as for Relu, a channel can be made smaller in
the first and larger in the second with the same result:

    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1),    S = diag(s),  s_i = sqrt(r1_i / r2_i)

with r1_i = max |W1| of output channel i and r2_i = max |W2| of input channel i. Both ranges are
then sqrt(r1_i r2_i), so that one scale for a whole weight fits all of its channels (Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
section 4.1). Pairs share layers, so they are done in turn until nothing moves.

A channel with a small W1 and a large bias would become a large constant, and take the range of the
activations from the others. The paper absorbs such constants into the next bias, which zero padding
does not allow; here r1_i is the larger of max |W1| and b1_i / (4 m), where m is the median of
b1 / max |W1| over the channels (where a Relu follows, of the positive biases alone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from optimc.core.model import SOURCE_KEY, Level
from optimc.core.passes import Effect, Pass, PassContext, PassResult, tolerance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optimc.core.model import OnnxModel
    from optimc.passes._equalize_pairs import Pair

NAME = "equalize"


class Equalize(Pass):
    """Evens out the channels of neighbouring layers, for INT8 with one scale for a whole tensor.

    Depthwise networks gain most: the ranges of their channels differ by orders of magnitude once
    BatchNormalization is folded. Run `fuse` before it and `quantize_int8` behind it.

    Rewrites: the weights and the bias of a Conv or Gemm, and the weight of the Conv or Gemm that
        alone reads it through Relu, LeakyRelu, PRelu, pooling,
        and Flatten of 1x1. One numbered rewrite is one pair of layers.
    Refuses: pairs with anything else between them, Clip included (its upper limit would differ from
        channel to channel), values that are read elsewhere or are outputs, weights that are shared
        or not float32 constants. A graph with Q/DQ nodes stays as it is.
    Accuracy: within 1e-5 of each output's scale: the same function, rounded in other places. The
        values between the layers change, so they lose their source names.
    Options: none.
    """

    level: ClassVar[Level] = Level.ONNX
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx-ir")

    @property
    def effect(self) -> Effect:
        """Scaled weights round differently."""
        return tolerance()

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class."""
        from optimc.core.analyses import QuantizationNodes
        from optimc.passes._equalize_pairs import find_pairs
        from optimc.passes._equalize_solve import solved

        log = context.log
        if context.analysis(QuantizationNodes, model):
            log.refuse(NAME, "the whole graph", "float arithmetic stays in a quantized graph")
            return PassResult(model.sealed(), False, {}, log.rewrites, log.refusals)
        pairs = find_pairs(model.ir.graph, lambda where, why: log.refuse(NAME, where, why))
        uneven = [pair for pair, scale in zip(pairs, solved(pairs), strict=True) if _moves(scale)]
        chosen = [pair for pair in uneven if log.allow("equalize", pair.label)]
        _apply(chosen)
        return PassResult(model.sealed(), bool(chosen), {}, log.rewrites, log.refusals)


_LEAST_CHANGE = 0.01
"""Pairs none of whose channels changes by more than this share are even already."""


def _moves(scale: object) -> bool:
    import numpy as np

    return bool(np.abs(np.log(np.asarray(scale))).max(initial=0.0) > _LEAST_CHANGE)


def _apply(pairs: Sequence[Pair]) -> None:
    """Scales the weights of `pairs`, and drops the source names of what is between."""
    from optimc.passes._equalize_solve import solved

    for pair, scale in zip(pairs, solved(pairs), strict=True):
        pair.first.divide_outputs(scale)
        pair.second.multiply_inputs(scale)
        for value in pair.between:
            value.meta.pop(SOURCE_KEY, None)
