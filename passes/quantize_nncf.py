"""INT8 by NNCF, OpenVINO's own quantization library, on the ONNX graph.

NNCF places quantizers by OpenVINO's operator sets, takes ranges from means of the samples'
extremes, and corrects biases: each layer's mean output then is that of the float model

    b' = b + E[y] - E[yq]

with means taken over the calibration data, layer by layer from statistics of the float model alone
(its *fast* bias correction), or with the layers before it quantized (the full one); both after
Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
arXiv:1906.04721, section 4.2. On transformers it smooths before (Xiao et al. 2023, "SmoothQuant",
arXiv:2211.10438). Its accuracy control goes back to float, one group of operations after the other,
those first that move the outputs most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimc.core.errors import PreconditionError, missing_extra
from optimc.core.model import Level, Model
from optimc.core.passes import Budget, Effect, Input, PassContext, PassResult, lossy
from optimc.passes._budgeted import Budgeted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optimc.core.model import OnnxModel
    from optimc.core.targets import TargetSpec
    from optimc.passes._nncf_work import Delegate, Found

NAME = "quantize_nncf"


class QuantizeNncf(Budgeted):
    """Quantizes to INT8 as NNCF does it, for targets that NNCF places for (OpenVINO).

    In place of `quantize_int8`, to see which of the two is better there. Needs the extra
    `openvino`. NNCF runs in a worker, on one thread, without its telemetry.

    Rewrites: the operators that NNCF quantizes, with uint8 or int8 activations and int8 weights
        with one scale for each output channel. Biases stay float, and are corrected. One numbered
        rewrite is one operator.
    Refuses: operators that NNCF leaves in float, and what `keep_float` names. A model that is
        quantized already, and one in which NNCF quantizes nothing, is an error.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, else by 1 % of the metric
        or an output SQNR of 20 dB.
    Budget: with `max_drop`, NNCF's accuracy control puts operators back into float until the
        recipe's first metric drops by no more than that on the tuning split. It ranks them by what
        they do to the outputs on 32 calibration samples. The choice goes into the lock. Where no
        choice meets the limit in time, the best one found is built and the gate fails.
    Options: preset, ranges, transformer, smooth_quant, fast_bias_correction, samples, keep_float,
        max_drop, at_most.
    """

    preset: Literal["performance", "mixed"] | None = None
    """`performance` takes zero points of 0 for activations, `mixed` any. Without it `mixed` for
    transformers, else `performance`."""
    ranges: Literal["mean", "minmax"] = "mean"
    """How an activation's range is chosen: means of the samples' extremes, as NNCF does it by
    itself, or with `minmax` the extremes of all samples, which clip nothing."""
    transformer: bool | None = None
    """Whether NNCF looks for the patterns of transformers. Without it: where a MatMul reads the
    result of a Softmax."""
    smooth_quant: bool = True
    """Whether transformers are smoothed before."""
    fast_bias_correction: bool = True
    """Biases from statistics of the float model; with `false` from those of the quantized one,
    which takes many times as long."""
    samples: Annotated[int, Field(ge=1)] = 300
    """How many calibration samples NNCF sees (all where there are fewer)."""
    keep_float: list[str] = Field(default=[])
    """Operators that stay in float: patterns (`*`, `?`, `[...]`) of node names, of source names of
    their outputs, or operator types such as `Gemm`."""

    level: ClassVar[Level] = Level.ONNX
    reads: ClassVar[frozenset[Input]] = frozenset({Input.SPEC, Input.CALIBRATION})
    reads_names: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True
    required_by_default: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("nncf", "numpy", "onnx", "onnx-ir", "onnxruntime")

    @property
    def needs(self) -> frozenset[Input]:
        """`reads`; with `max_drop` the metric on the tuning split, too."""
        return self.reads | (frozenset() if self.max_drop is None else {Input.TUNING})

    @property
    def effect(self) -> Effect:
        """LOSSY with the default bound."""
        return lossy(20.0)

    def check_target(self, spec: TargetSpec) -> None:
        """Raises PreconditionError for a target that NNCF does not place for."""
        if spec.quantization is None or spec.quantization.nncf_device is None:
            raise PreconditionError(
                f"NNCF does not place for the target `{spec.runtime}`",
                fix="take quantize_int8 in the variants of this target",
            )

    def check_extras(self) -> None:
        """Raises UnavailableError without NNCF."""
        from importlib.util import find_spec

        if find_spec("nncf") is None:
            raise missing_extra("openvino", f"the pass {NAME}")

    def check(self, model: Model, context: PassContext) -> None:
        """Raises PreconditionError for a target that NNCF does not place for and for a model that
        is quantized or has too old an opset; UnavailableError without the extra."""
        from optimc.passes._quantize_checks import check_quantizable

        self.check_target(context.spec)
        self.check_extras()
        check_quantizable(_ir(model), self.keep_float, NAME)

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where NNCF quantizes nothing."""
        from optimc.passes._nncf_work import Delegate

        self.check(model, context)
        with Delegate(model, self._told(model, context), context, self.samples) as nncf:
            ignored = self._kept_by_name(model, context)
            if self.max_drop is None:
                return self._quantized(nncf, model, context, ignored, ())
            found = None
            if context.choice is None:
                found = nncf.search(ignored, self.max_drop, self.seconds)
            kept = found.best.kept if found is not None else tuple(context.choice["float"])
            result = self._quantized(nncf, model, context, ignored, kept)
            return self._judged(result, context, kept, found)

    def _told(self, model: OnnxModel, context: PassContext) -> dict[str, Any]:
        """What NNCF is told, as plain data."""
        from optimc.passes._nncf_work import attends
        from optimc.passes._quantize_checks import placement

        spec = placement(self, context)
        transformer = self.transformer
        return {
            "preset": self.preset,
            "ranges": self.ranges,
            "device": spec.nncf_device,
            "reduce_range": spec.reduce_range,
            "transformer": attends(model.ir.graph) if transformer is None else transformer,
            "smooth_quant": self.smooth_quant,
            "fast_bias_correction": self.fast_bias_correction,
        }

    def _kept_by_name(self, model: OnnxModel, context: PassContext) -> list[str]:
        """The nodes that `keep_float` names; says so of each."""
        from optimc.passes._quantize_units import node_label
        from optimc.passes.quantize_int8 import matches

        names = []
        for node in model.ir.graph:
            pattern = next((p for p in self.keep_float if matches(node, p)), None)
            if pattern is not None:
                names.append(str(node.name))
                reason = f"kept in float by `{pattern}`"
                context.log.refuse(f"quantize {node.op_type}", node_label(node), reason)
        return names

    def _quantized(
        self,
        nncf: Delegate,
        model: OnnxModel,
        context: PassContext,
        ignored: Sequence[str],
        kept: Sequence[str],
    ) -> PassResult:
        """The model with all but the `ignored` and the `kept` nodes quantized."""
        from optimc.passes._nncf_work import read
        from optimc.passes._quantize_units import node_label

        log, operations = context.log, nncf.operations()
        nodes = {str(node.name): node for node in model.ir.graph}
        missing = [name for name in kept if name not in nodes]
        if missing:
            raise PreconditionError(
                f"the lock keeps `{missing[0]}` in float, which is no operator here",
                fix="build once without --locked, and commit the new lock",
            )
        made = nncf.quantized([*ignored, *kept])
        if not made.nodes:
            raise _nothing()
        for name in operations:
            if name in made.nodes or name in ignored or name not in nodes:
                continue
            reason = "NNCF's placement leaves it in float"
            if name in kept:
                reason = f"kept in float to meet max_drop {self.max_drop:g}"
            log.refuse(f"quantize {nodes[name].op_type}", node_label(nodes[name]), reason)
        denied = [
            name
            for name in made.nodes
            if not log.allow(f"quantize {nodes[name].op_type}", node_label(nodes[name]))
        ]
        if not log.rewrites:
            return PassResult(model.sealed(), False, {}, (), log.refusals)
        if denied:
            made = nncf.quantized([*ignored, *kept, *denied])
        result = read(made.path, model)
        types = [node.op_type for node in result.ir.graph]
        stats = {name: types.count(name) for name in ("QuantizeLinear", "DequantizeLinear")}
        return PassResult(result, True, stats, log.rewrites, log.refusals)

    def _judged(
        self, result: PassResult, context: PassContext, kept: Sequence[str], found: Found | None
    ) -> PassResult:
        """The result with its drop: that of the model that ships, not of a trial."""
        import dataclasses

        assert self.max_drop is not None
        metric, drop = context.tuning.metric, context.tuning.drop(result.model)
        met = drop.point <= self.max_drop
        text = (
            f"max_drop {self.max_drop:g} of {metric} {'met' if met else 'NOT met'} with"
            f" {len(kept)} of {len(kept) + len(result.rewrites)} operators put back into float: it"
            f" drops by {drop.point:.4g} on"
            f" {drop.samples} tuning samples (one-sided 95 % ends {drop.lower:.4g} and"
            f" {drop.upper:.4g})"
        )
        if found is not None:
            text += f", best of {found.trials} trials in {found.seconds:.0f} s"
            text += "" if found.finished else "; the time was up (at_most) before NNCF was done"
        return dataclasses.replace(
            result,
            choice={"float": list(kept)},
            budget=Budget(f"max_drop.{metric}", self.max_drop, drop, met),
            notes=(text,),
        )


def _nothing() -> PreconditionError:
    return PreconditionError(
        "NNCF quantizes nothing in this model",
        fix=f"take {NAME} out of this variant, keep less in float, or take quantize_int8",
    )


def _ir(model: Any) -> Any:
    return model.ir
