"""Static INT8 quantization with QuantizeLinear and DequantizeLinear (ONNX operators, opset 13).

    q = saturate(round(x / s) + z)        x' = (q - z) * s

A runtime fuses what stands between a DQ and a Q into its INT8 kernels. Where it does, and of which
types, differs from one to the next: the target's `QuantizationSpec` says it, this pass knows none
of them. Ranges come from the calibration data, see `optimc.calibration.ranges`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimc.core.errors import PreconditionError
from optimc.core.model import SOURCE_KEY, Level, Model
from optimc.core.passes import Effect, Input, PassContext, PassResult, lossy
from optimc.passes._budgeted import Budgeted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from optimc.calibration.ranges import RangeEstimator
    from optimc.core.model import OnnxModel
    from optimc.core.passes import RewriteLog
    from optimc.core.statistics import TensorStatistics
    from optimc.core.targets import QuantizationSpec
    from optimc.passes._quantize_select import Refusals
    from optimc.passes._quantize_units import Unit


class QuantizeInt8(Budgeted):
    """Quantizes weights and activations to 8-bit integers.

    Rewrites: gives each operator that the target runs in INT8 quantized inputs, an int8 weight with
        one scale for each output channel, and a Q behind it where the target's kernel needs one.
        One numbered rewrite is one operator.
    Refuses: operators without an INT8 kernel on the target, weights that are not constant, values
        that hold infinities or NaNs on the calibration data, operators between others that stay in
        float, BatchNormalization that `fuse` would take in before, and what `keep_float` names. A
        model that is quantized already, or in which nothing can be quantized, is an error.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, else by 1 % of the metric
        or an output SQNR of 20 dB.
    Budget: with `max_drop`, layers stay in float until the recipe's first metric drops by no more
        than that on the tuning split (the point, not an end of its interval; the gate judges on the
        evaluation split). Each layer's sensitivity is the output SQNR with it alone in INT8; the
        fewest of the most sensitive ones are kept, each is tried back in INT8, and what they cost
        in latency is timed. The choice goes into the lock. Where no choice meets the limit in time,
        the best one found is built and the gate fails.
    Options: ranges, percentile, keep_float, max_drop, at_most.
    """

    ranges: Literal["minmax", "moving_average", "percentile", "entropy", "mse", "output_error"] = (
        "mse"
    )
    """How an activation's range is chosen: `minmax` clips nothing, `moving_average` takes weighted
    means of the samples' extremes, `percentile` cuts the tails, `entropy` loses the least
    information (TensorRT's method), `mse` minimises the squared error of clipping and rounding
    together, `output_error` the error of the layers that read it, on 64 samples (slower: each
    layer runs once for each of some 15 ranges; values that no layer with a constant weight reads
    are left to `mse`)."""
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.999
    """With `ranges: percentile`: how many per cent of the elements lie within either end."""
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
        check_quantizable(_ir(model), self.keep_float, self.pass_name())

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where nothing can be quantized."""
        self.check(model, context)
        if self.max_drop is None:
            return self.quantized(model, context, context.log, {})
        from optimc.passes._quantize_layers import within_budget

        return within_budget(self, model, context)

    def quantized(
        self,
        model: OnnxModel,
        context: PassContext,
        log: RewriteLog,
        kept: Mapping[str, str],
        estimator: RangeEstimator | None = None,
    ) -> PassResult:
        """Quantizes `model`, but for the `kept` layers: by output name, why they stay in float."""
        from optimc.passes._quantize_checks import placement
        from optimc.passes._quantize_place import Placer
        from optimc.passes._quantize_ranges import assign, statistics_of
        from optimc.passes._quantize_select import Refusals
        from optimc.passes._quantize_units import node_label

        spec, graph = placement(self, context), model.ir.graph
        refuse = Refusals(log)
        candidates = self._candidates(graph, spec, refuse, kept)
        statistics = statistics_of(candidates, model, context.calibration)
        selected = self._selected(graph, candidates, statistics, refuse)
        if not selected:
            raise _nothing(log)
        chosen = [
            unit
            for unit in selected
            if log.allow(f"quantize {unit.node.op_type}", node_label(unit.node))
        ]
        ranges = estimator or self.searched(model, selected, statistics, context)
        affine = assign(chosen, statistics, ranges, spec)
        placer = Placer(graph, spec, affine)
        for unit in chosen:
            placer.place(unit)
        placer.finish()
        return PassResult(model.sealed(), bool(chosen), _stats(graph), log.rewrites, log.refusals)

    def _candidates(
        self,
        graph: ir.Graph,
        spec: QuantizationSpec,
        refuse: Refusals,
        kept: Mapping[str, str],
    ) -> list[Unit]:
        """The units that fit by themselves and that neither `keep_float` nor `kept` names."""
        from optimc.passes._quantize_units import find_units, layer_name

        units = []
        for unit in find_units(graph, spec, refuse):
            nodes = (unit.node, *unit.absorbed)
            named = (p for p in self.keep_float if any(matches(node, p) for node in nodes))
            pattern = next(named, None)
            reason = kept.get(layer_name(unit)) or (pattern and f"kept in float by `{pattern}`")
            if reason is None:
                units.append(unit)
            else:
                refuse(unit.node, reason)
        return units

    def _selected(
        self,
        graph: ir.Graph,
        candidates: list[Unit],
        statistics: Mapping[ir.Value, TensorStatistics],
        refuse: Refusals,
    ) -> list[Unit]:
        """The units that will be quantized; says why of every other node that works on floats."""
        from optimc.passes._fuse_rules import fusible_batchnorms
        from optimc.passes._quantize_ranges import usable
        from optimc.passes._quantize_select import select

        selected = select(usable(candidates, statistics, refuse), refuse)
        # Folding it here would hide a float rewrite, held to 1e-5, in a lossy pass.
        for node in fusible_batchnorms(graph):
            refuse(node, "stays in float between quantized layers: put `fuse` before quantize_int8")
        refuse.of_others(graph, candidates)
        if not selected:
            self._check_inputs(graph, statistics)
        return selected

    def _check_inputs(
        self, graph: ir.Graph, statistics: Mapping[ir.Value, TensorStatistics]
    ) -> None:
        """Raises PreconditionError where the data are what keeps everything in float."""
        for value in graph.inputs:
            if value in statistics and statistics[value].non_finite:
                raise PreconditionError(
                    f"the calibration data hold infinities or NaNs in the input `{value.name}`",
                    fix="take those samples out of data.calibration, or correct its transform",
                )

    def searched(
        self,
        model: OnnxModel,
        units: list[Unit],
        statistics: Mapping[ir.Value, TensorStatistics],
        context: PassContext,
    ) -> RangeEstimator:
        """What chooses the ranges of the values of `units`; asks the data where it has to."""
        if self.ranges != "output_error":
            return self.estimator()
        from optimc.passes._quantize_checks import placement
        from optimc.passes._quantize_output_error import search

        return search(model, units, statistics, placement(self, context), context)

    def estimator(self) -> RangeEstimator:
        """What chooses the ranges."""
        from optimc.calibration.entropy import Entropy
        from optimc.calibration.ranges import MeanSquaredError, MinMax, MovingAverage, Percentile

        estimators: dict[str, RangeEstimator] = {
            "minmax": MinMax(),
            "moving_average": MovingAverage(),
            "percentile": Percentile(self.percentile),
            "entropy": Entropy(),
            "mse": MeanSquaredError(),
            "output_error": MeanSquaredError(),  # for what `searched` does not find
        }
        return estimators[self.ranges]


def matches(node: ir.Node, pattern: str) -> bool:
    """Whether a pattern of `keep_float` names a node: by name, operator type or source name."""
    names = [node.name or "", node.op_type]
    names += [str(value.meta[SOURCE_KEY]) for value in node.outputs if SOURCE_KEY in value.meta]
    return any(fnmatchcase(name, pattern) for name in names)


def _nothing(log: RewriteLog) -> PreconditionError:
    reasons = "".join(f"; {refusal.where}: {refusal.reason}" for refusal in log.refusals[:3])
    return PreconditionError(
        f"nothing in this model can be quantized{reasons}",
        fix="take quantize_int8 out of this variant, or keep less in float",
    )


def _stats(graph: ir.Graph) -> dict[str, int]:
    """How many Q and DQ the graph holds."""
    types = [node.op_type for node in graph]
    return {name: types.count(name) for name in ("QuantizeLinear", "DequantizeLinear")}


def _ir(model: Any) -> ir.Model:
    return model.ir  # type: ignore[no-any-return]
