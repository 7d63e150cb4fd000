"""Static INT8 where one range suits a tensor, dynamic INT8 where it does not.

A static range is one compromise for all inputs: where few of them bring large values, either these
are clipped or everything else is rounded to a few steps (Bondarenko et al. 2021, "Understanding and
Overcoming the Challenges of Efficient Transformer Quantization", arXiv:2109.12948, section 3). What
that costs is known before anything is placed, from the histogram of the calibration data:

    SQNR = 10 log10( sum(h c^2) / sum(h (c - Q(c))^2) )

with counts h over bin centres c, and Q of the range that `quantize_int8` would take. Products whose
input stays under a limit take their range at run time instead, as `quantize_dynamic` writes them.
That helps where ranges move from input to input; a channel that is large in all of them is as bad
at run time, and needs another cure. With `max_drop` the metric and latencies on the target
decide in place of that limit: see `optimc.passes._quantize_mix`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from optimc.core.errors import PreconditionError
from optimc.core.model import Level, Model
from optimc.core.passes import Effect, Input, PassContext, PassResult, RewriteLog, lossy
from optimc.passes._budgeted import Budgeted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx_ir as ir

    from optimc.calibration.ranges import RangeEstimator
    from optimc.core.model import OnnxModel
    from optimc.passes._dynamic_place import Site

NAME = "quantize_mixed"


class QuantizeMixed(Budgeted):
    """Quantizes to INT8 with calibrated ranges, and at run time where such ranges lose too much.

    Rewrites: the products (MatMul, Gemm with a constant matrix) whose input keeps less than
        `least_sqnr` dB in 8 bits with its calibrated range become dynamic INT8 (on targets without
        kernels for that, only their weights are stored as int8); everything else is quantized as
        quantize_int8 does it. One numbered rewrite is one operator.
    Refuses: what quantize_int8 refuses, and what `keep_float` names.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, else by 1 % of the metric
        or an output SQNR of 20 dB.
    Budget: with `max_drop`, the fewest layers stay in float that meet it, as quantize_int8 finds
        them. Then layers with weights of one shape are timed together on the target in each of the
        other kinds: those in float as dynamic INT8, the others as dynamic INT8 and in float. What
        is clearly faster and meets the limit is taken. `least_sqnr` is not used. The choice goes
        into the lock. What stays in float computes in the target's precision: for BF16 let the
        target `precision` be `auto`.
    Options: least_sqnr, keep_float, max_drop, at_most.
    """

    least_sqnr: Annotated[float, Field(ge=0.0, le=100.0)] = 30.0
    """Inputs that keep fewer dB than this with a calibrated range get theirs at run time."""
    keep_float: list[str] = Field(default=[])
    """Operators that stay in float: patterns (`*`, `?`, `[...]`) of node names, of source names of
    their outputs, or operator types such as `Gemm`."""

    level: ClassVar[Level] = Level.ONNX
    reads: ClassVar[frozenset[Input]] = frozenset({Input.SPEC, Input.CALIBRATION})
    reads_names: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True
    required_by_default: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx-ir")

    @property
    def needs(self) -> frozenset[Input]:
        """`reads`; with `max_drop` the metric on the tuning split and latencies, too."""
        budget = {Input.TUNING, Input.DEVICE} if self.max_drop is not None else frozenset()
        return self.reads | budget

    @property
    def effect(self) -> Effect:
        """LOSSY with the default bound."""
        return lossy(20.0)

    def check(self, model: Model, context: PassContext) -> None:
        """Raises PreconditionError for a target without INT8, and for a model that is quantized or
        has too old an opset."""
        from optimc.passes._quantize_checks import check_quantizable

        self.check_target(context.spec)
        graph: Any = model
        check_quantizable(graph.ir, self.keep_float, NAME)

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where nothing can be quantized."""
        self.check(model, context)
        if self.max_drop is not None:
            from optimc.passes._quantize_mix import within_budget

            return within_budget(self, model, context)
        return self.placed(model, context, context.log, self._by_range(model, context), {})

    def placed(
        self,
        model: OnnxModel,
        context: PassContext,
        log: RewriteLog,
        dynamic: Collection[str],
        why: Mapping[str, str],
        estimator: RangeEstimator | None = None,
    ) -> PassResult:
        """Quantizes `model`: the `dynamic` layers (by output name) at run time, those that only
        `why` names not at all, all others with calibrated ranges."""
        from optimc.passes._dynamic_place import DynamicPlacer, Site, judge
        from optimc.passes._quantize_checks import placement
        from optimc.passes._quantize_units import node_label

        spec = placement(self, context)
        found = [judge(node, spec) for node in model.ir.graph if _name(node) in dynamic]
        sites = [site for site in found if isinstance(site, Site)]
        names = {node_label(site.node) for site in sites}
        kept = {**dict.fromkeys(dynamic, "at run time"), **why}
        static = self._static(model, context, log, kept, estimator, alone=not sites)
        for refusal in static.refusals:
            if refusal.where not in names:
                log.refuse(refusal.rule, refusal.where, refusal.reason)
        placer = DynamicPlacer(model.ir.graph, spec, per_channel=True)
        for site in sites:
            if log.allow(f"quantize {site.node.op_type} at run time", node_label(site.node)):
                placer.place(site)
        placer.finish()
        stats = {**static.stats, "dynamic": len(sites)}
        return PassResult(model.sealed(), bool(log.rewrites), stats, log.rewrites, log.refusals)

    def _static(
        self,
        model: OnnxModel,
        context: PassContext,
        log: RewriteLog,
        kept: Mapping[str, str],
        estimator: RangeEstimator | None,
        *,
        alone: bool,
    ) -> PassResult:
        """What quantize_int8 does but for the `kept` layers, on `model` itself.

        Nothing that it could quantize is an error only where it is `alone`.
        """
        from optimc.passes.quantize_int8 import QuantizeInt8

        quiet = _Sharing(log)
        try:
            pass_ = QuantizeInt8(keep_float=self.keep_float)
            return pass_.quantized(model, context, quiet, kept, estimator)
        except PreconditionError:
            if alone:
                raise
            return PassResult(model, False, {}, (), quiet.refusals)

    def _by_range(self, model: OnnxModel, context: PassContext) -> list[str]:
        """The products whose input a calibrated range does not suit, in the graph's order."""
        from optimc.calibration.affine import IntegerType
        from optimc.calibration.ranges import MeanSquaredError
        from optimc.passes._activation_noise import activation_sqnr
        from optimc.passes._dynamic_place import judge
        from optimc.passes._quantize_checks import placement
        from optimc.passes.quantize_int8 import matches

        spec = placement(self, context)
        if spec.dynamic is None:
            return []
        found = [site for node in model.ir.graph if (site := judge(node, spec)) is not None]
        sites = [site for site in found if not isinstance(site, str) and site.kind == "matmul"]
        sites = [s for s in sites if not any(matches(s.node, p) for p in self.keep_float)]
        names = [str(_input(site).name) for site in sites]
        seen = context.calibration.statistics(model, names)
        kind = IntegerType(spec.activation_dtype, spec.activation_symmetric)
        estimator = MeanSquaredError()
        kept = []
        for site, name in zip(sites, names, strict=True):
            if name not in seen or seen[name].count == 0 or seen[name].non_finite:
                continue
            affine = kind.parameters(estimator.estimate(seen[name], kind))
            if activation_sqnr(seen[name], affine) < self.least_sqnr:
                kept.append(_name(site.node))
        return kept


class _Sharing(RewriteLog):
    """Numbers rewrites in another log, and keeps refusals to itself."""

    def __init__(self, other: RewriteLog) -> None:
        super().__init__()
        self._other = other

    def allow(self, rule: str, where: str) -> bool:
        """As the other log says."""
        return self._other.allow(rule, where) and super().allow(rule, where)


def _input(site: Site) -> ir.Value:
    value = site.node.inputs[0]
    assert value is not None, "judged before"
    return value


def _name(node: ir.Node) -> str:
    """What a layer is known by; see `_quantize_units.layer_name`."""
    return str(node.outputs[0].name)
