"""`quantize_int8` within a budget: what is kept in float, and what is said of it. Imports onnx_ir.

The search itself is in `_quantize_budget`; this module gives it models to try, replays a choice of
the lock, and has the cost of what was kept timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from optimc.calibration.affine import IntegerType, Range
from optimc.calibration.ranges import RangeEstimator
from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import Budget, Cost, PassContext, PassResult, RewriteLog
from optimc.core.statistics import TensorStatistics
from optimc.passes._quantize_budget import Found, Kept, Search
from optimc.passes._quantize_ranges import statistics_of, usable
from optimc.passes._quantize_select import select
from optimc.passes._quantize_units import Unit, find_units, layer_name

if TYPE_CHECKING:
    from optimc.passes.quantize_int8 import QuantizeInt8

_TIMED_ONE_BY_ONE = 6
"""More kept layers than these are timed together only: each takes an engine and its time."""


@dataclass(frozen=True)
class Remembering:
    """An estimator that looks at each tensor once: trials ask for the same ones again and again."""

    estimator: RangeEstimator
    _known: dict[tuple[int, IntegerType], tuple[TensorStatistics, Range]] = field(
        default_factory=dict
    )

    def estimate(self, seen: TensorStatistics, kind: IntegerType) -> Range:
        """What the estimator says."""
        key = (id(seen), kind)
        if key not in self._known:
            # The statistics are kept too, so that their id stays theirs.
            self._known[key] = (seen, self.estimator.estimate(seen, kind))
        return self._known[key][1]


def within_budget(pass_: QuantizeInt8, model: OnnxModel, context: PassContext) -> PassResult:
    """The quantized model that meets `max_drop`, with the choice, its figures and its costs."""
    work = Work(pass_, model, context)
    if context.choice is not None:
        return work.replayed(context.choice)
    return work.searched()


@dataclass
class Work:
    """The models of one run."""

    pass_: QuantizeInt8
    model: OnnxModel
    context: PassContext

    def __post_init__(self) -> None:
        # Found before the model is changed: at the end nothing is left of them.
        units, ranges = self._layers()
        self._names = tuple(layer_name(unit) for unit in units)
        self._estimator = Remembering(ranges)

    def search(self) -> Found:
        """The layers that cannot be quantized within the budget."""
        max_drop = self.pass_.max_drop
        assert max_drop is not None
        return Search(
            layers=self._names,
            trial=self._trial,
            original=self.model,
            tuning=self.context.tuning,
            max_drop=max_drop,
            seconds=self.pass_.seconds,
            progress=self.context.progress,
        ).run()

    def searched(self) -> PassResult:
        """Searches, times what was kept, and quantizes for good."""
        found = self.search()
        costs = self._costs(found.kept)
        why = {layer: self._reason(layer, found, costs) for layer in found.kept}
        result = self._final(why)
        return replace(
            result,
            choice={"float": list(found.kept)},
            budget=self._budget(found),
            notes=(self._note(found, costs),),
        )

    def replayed(self, choice: Mapping[str, Sequence[str]]) -> PassResult:
        """Keeps what the lock names; its drop is measured anew."""
        kept = list(choice["float"])
        check_locked(kept, self._names)
        drop = self.context.tuning.drop(self._trial(frozenset(kept)))
        result = self._final(dict.fromkeys(kept, "kept in float, as the lock says"))
        assert self.pass_.max_drop is not None
        met = drop.point <= self.pass_.max_drop
        found = Found(tuple(kept), drop, met, True, {}, 1, 0.0)
        return replace(result, choice=choice, budget=self._budget(found))

    def _layers(self) -> tuple[list[Unit], RangeEstimator]:
        """What can be kept in float: all that would be quantized and does not only move data. And
        what chooses the ranges."""
        from optimc.passes.quantize_int8 import matches

        spec = self.context.spec.quantization
        assert spec is not None

        def silent(node: object, reason: str) -> None:
            """The final run says it."""

        clone = self.model.clone()
        units = [
            unit
            for unit in find_units(clone.ir.graph, spec, silent)
            if not any(
                matches(node, pattern)
                for node in (unit.node, *unit.absorbed)
                for pattern in self.pass_.keep_float
            )
        ]
        statistics = statistics_of(units, clone, self.context.calibration)
        chosen = select(usable(units, statistics, silent), silent)
        ranges = self.pass_.searched(clone, chosen, statistics, self.context)
        return [unit for unit in chosen if not unit.moves], ranges

    def _trial(self, kept: Kept) -> OnnxModel:
        reasons = dict.fromkeys(kept, "kept in float by this trial")
        clone = self.model.clone()
        result = self.pass_.quantized(
            clone, self.context, RewriteLog(), reasons, self._estimator
        ).model
        assert isinstance(result, OnnxModel)
        return result

    def _final(self, why: Mapping[str, str]) -> PassResult:
        context = self.context
        return self.pass_.quantized(self.model, context, context.log, why, self._estimator)

    def _costs(self, kept: Sequence[str]) -> Mapping[str, Cost] | str:
        """By layer what keeping it costs; under the empty name, what all of them do."""
        if not kept:
            return {}
        self.context.progress(1.0, "timing what stays in float")
        everything = frozenset(kept)
        others = {"": self._trial(frozenset())}
        if 1 < len(kept) <= _TIMED_ONE_BY_ONE:
            others |= {layer: self._trial(everything - {layer}) for layer in kept}
        return self.context.device.costs(self._trial(everything), others)

    def _sensitive(self, layer: str, found: Found) -> str:
        text = f"kept in float to meet max_drop {self.pass_.max_drop:g} of {self._metric}"
        if layer in found.sqnr_db:
            text += f"; alone in INT8 it leaves an output SQNR of {found.sqnr_db[layer]:.1f} dB"
        return text

    def _reason(self, layer: str, found: Found, costs: Mapping[str, Cost] | str) -> str:
        text = self._sensitive(layer, found)
        if isinstance(costs, str):
            return f"{text}; its cost was not timed: {costs}"
        cost = costs.get(layer) or (costs.get("") if len(found.kept) == 1 else None)
        if cost is None:
            return f"{text}; timed together with the others only"
        return f"{text}; in float it costs {in_words(cost)} on {self.context.device.target}"

    @property
    def _metric(self) -> str:
        return self.context.tuning.metric

    def _budget(self, found: Found) -> Budget:
        assert self.pass_.max_drop is not None
        return Budget(f"max_drop.{self._metric}", self.pass_.max_drop, found.drop, found.met)

    def _note(self, found: Found, costs: Mapping[str, Cost] | str) -> str:
        state = "met" if found.met else "NOT met"
        drop = found.drop
        text = (
            f"max_drop {self.pass_.max_drop:g} of {self._metric} {state} with {len(found.kept)} of"
            f" {len(self._names)} layers in float: it drops by {drop.point:.4g} on {drop.samples}"
            f" tuning samples (one-sided 95 % ends {drop.lower:.4g} and {drop.upper:.4g}), best of"
            f" {found.trials} trials in {found.seconds:.0f} s"
        )
        if not found.finished:
            text += "; the time was up (at_most) before the search came to its end"
        if found.kept and not isinstance(costs, str):
            text += f"; float costs {in_words(costs[''])} on {self.context.device.target}"
        return text


def check_locked(names: Sequence[str], layers: Sequence[str]) -> None:
    """Raises PreconditionError where the lock names a layer that is none of `layers`."""
    missing = sorted(set(names) - set(layers))
    if missing:
        raise PreconditionError(
            f"the lock keeps `{missing[0]}` in float, which is no layer to quantize here",
            fix="build once without --locked, and commit the new lock",
        )


def in_words(cost: Cost) -> str:
    return f"{cost.ms:.4f} ms (95 %: {cost.low:.4f} to {cost.high:.4f})"
