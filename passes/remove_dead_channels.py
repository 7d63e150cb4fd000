"""Removal of channels that carry nothing.

A channel whose weights in the next layers are all zero can go: what it is does not matter. So can
one that is the same number v at every place and for every input: because its own weights are zero
(then v is its bias), or a BatchNormalization behind it has the factor 0 (then v is its shift),
taken through the activations that follow. The next layer then gets

    b2' = b2 + sum_i v_i sum_rs W2[:, i, r, s]

which is exact where that layer pads nothing: with zeros around the image the sum at its borders
runs over fewer r, s, so such channels stay unless v is 0. (Where pruning by magnitude leaves
channels of zeros, as in Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710,
section 3.2, this makes the model smaller by them.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from optimc.core.model import Level
from optimc.core.passes import Effect, Pass, PassContext, PassResult, tolerance

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimc.core.model import OnnxModel
    from optimc.core.onnx_names import NameTable
    from optimc.core.passes import RewriteLog

NAME = "remove_dead_channels"


class RemoveDeadChannels(Pass):
    """Takes out channels that are not read or that are constant: a smaller model, the same results.

    Put it behind `prune_magnitude` or training that drives whole channels to zero, and before
    quantization.

    Rewrites: Conv, Gemm and MatMul lose output channels, the Conv, Gemm and MatMul behind them the
        inputs for them; and what is between shrinks: activations, arithmetic with constants or of
        values with the same channels (x * sigmoid(x)), BatchNormalization, pooling, means over
        space, Concat, Transpose, flattening. Constants go into the next bias. One numbered rewrite
        is one layer.
    Refuses: channels that reach a residual Add, a grouped or transposed convolution, an output of
        the model, a subgraph, or any other operator; constants other than 0 in front of a Conv that
        pads, or of a MatMul, which has no bias. One channel of a layer stays always. A graph with
        Q/DQ nodes stays as it is.
    Accuracy: within 1e-5 of each output's scale, for finite inputs. Values that lost channels lose
        their source names.
    Options: none.
    """

    level: ClassVar[Level] = Level.ONNX
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx-ir")

    @property
    def effect(self) -> Effect:
        """Fewer terms are summed, and constants in another order."""
        return tolerance()

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class."""
        from optimc.core.analyses import QuantizationNodes
        from optimc.core.onnx_names import NameTable

        log = context.log
        if context.analysis(QuantizationNodes, model):
            log.refuse(NAME, "the whole graph", "float arithmetic stays in a quantized graph")
            return PassResult(model.sealed(), False, {}, log.rewrites, log.refusals)
        names, channels = NameTable.of_values(model.ir), 0
        while True:
            refused: dict[str, str] = {}
            gone = _round(model.ir.graph, names, log, refused)
            if not gone:
                break
            channels += gone
        for where, reason in refused.items():
            log.refuse(NAME, where, reason)
        stats = {"channels": channels}
        return PassResult(model.sealed(), bool(channels), stats, log.rewrites, log.refusals)


def _round(graph: ir.Graph, names: NameTable, log: RewriteLog, refused: dict[str, str]) -> int:
    """Removes what is dead now, the last layers first; returns how many channels went."""
    from optimc.passes._simplify_work import where

    order = {node: number for number, node in enumerate(graph)}
    gone = 0
    for node in reversed(list(order)):
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.domain in ("", "ai.onnx"):
            found = _removed(node, order, names, log)
            if isinstance(found, str):
                refused[where(node)] = found
            else:
                gone += found
    return gone


def _removed(
    node: ir.Node, order: dict[ir.Node, int], names: NameTable, log: RewriteLog
) -> int | str:
    """How many channels went, or why dead ones stay."""
    from optimc.passes._dead_follow import follow, starting_layer
    from optimc.passes._dead_remove import dead_rows, find_dead, remove, why_not_fit
    from optimc.passes._fuse_layer import layer_of
    from optimc.passes._simplify_work import where

    start = starting_layer(node)
    way = start if isinstance(start, str) else follow(*start, order)
    if isinstance(way, str):
        layer = layer_of(node)
        rows = 0 if isinstance(layer, str) else dead_rows(layer)
        return f"{rows} of its channels have no weights, but {way}" if rows else 0
    dead, reason = find_dead(way)
    if dead is None:
        return reason or 0
    reason = why_not_fit(way, dead)
    if reason is not None:
        return reason
    if not log.allow(NAME, where(node)):
        return 0
    remove(way, dead, names)
    return len(dead.channels)
