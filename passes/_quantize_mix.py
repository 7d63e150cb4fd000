"""`quantize_mixed` within a budget: each layer's kind by sensitivity and by measured cost.

1. Sensitivity: the fewest layers in float with which the metric's drop is met, everything else with
   calibrated ranges; the search of `quantize_int8`.
2. Cost: layers that are of one operator, one kind, and weights of one shape take the same time, and
   so are timed together: one engine for each other kind that they could be of, in turns with what
   the search came to, on the target and on the recipe's first benchmark case.
3. Each kind that is clearly faster is taken where the limit holds with it, those that save most
   first. All of them together have to be clearly faster in a second run, as the fastest of many
   figures is too good by chance.

A kind that is not measured to be faster is not taken. Imports onnx_ir.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from optimc.calibration.ranges import RangeEstimator
from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import Drop, PassContext, PassResult, RewriteLog
from optimc.passes._dynamic_place import Site, judge
from optimc.passes._quantize_budget import Found
from optimc.passes._quantize_layers import Work, check_locked, in_words
from optimc.passes._quantize_units import Unit, constant, layer_name
from optimc.passes.quantize_int8 import QuantizeInt8

if TYPE_CHECKING:
    from optimc.passes.quantize_mixed import QuantizeMixed

Kind: TypeAlias = Literal["static", "dynamic", "float"]
Mix: TypeAlias = Mapping[str, Kind]
"""By layer: its kind, where that is not static."""

_KINDS: tuple[Kind, Kind] = ("dynamic", "float")
MOST_TIMED = 8
"""More other kinds than these are not tried: each takes an engine. Small weights come last."""


@dataclass(frozen=True)
class Group:
    """Layers of one operator with weights of one shape."""

    operator: str
    shape: tuple[int, ...]
    dynamic: bool
    """Whether they can take their range at run time."""
    layers: tuple[str, ...]

    @property
    def elements(self) -> int:
        """Of all their weights."""
        size = len(self.layers)
        for dim in self.shape:
            size *= dim
        return size

    def called(self, kind: Kind) -> str:
        """As notes name it: ``6 MatMul of 384 x 1536 in float``."""
        shape = " x ".join(map(str, self.shape))
        how = {"static": "with calibrated ranges", "dynamic": "at run time", "float": "in float"}
        return f"{len(self.layers)} {self.operator} of {shape} {how[kind]}"


@dataclass(frozen=True)
class Change:
    """Another kind for some layers."""

    group: Group
    kind: Kind

    @property
    def name(self) -> str:
        """What it is called."""
        return self.group.called(self.kind)

    def of(self, mix: Mix) -> Mix:
        """The mix with it."""
        return {**mix, **dict.fromkeys(self.group.layers, self.kind)}


def within_budget(pass_: QuantizeMixed, model: OnnxModel, context: PassContext) -> PassResult:
    """The mix that meets `max_drop`, with the choice, its figures and what the others cost."""
    static = QuantizeInt8(
        keep_float=pass_.keep_float, max_drop=pass_.max_drop, at_most=pass_.at_most
    )
    work = Mixing(static, model, context, mixed=pass_)
    return work.searched() if context.choice is None else work.replayed(context.choice)


@dataclass
class Mixing(Work):
    """The models of one run."""

    mixed: QuantizeMixed

    def searched(self) -> PassResult:
        """Searches, times the other kinds, and quantizes for good."""
        found = self.search()
        first: Mix = dict.fromkeys(found.kept, "float")
        mix, drop, told = self._faster(first, found)
        why = {
            layer: self._sensitive(layer, found) if layer in first else "faster so on the target"
            for layer in mix
        }
        return replace(
            self._placed(mix, why),
            choice={kind: [n for n, one in mix.items() if one == kind] for kind in _KINDS},
            budget=self._budget(replace(found, drop=drop, met=drop.point <= self._limit)),
            notes=(self._note(found, "the kinds of layers are timed"), told),
        )

    def replayed(self, choice: Mapping[str, Any]) -> PassResult:
        """Gives each layer the kind that the lock names; the drop is measured anew."""
        mix: dict[str, Kind] = {}
        for kind in _KINDS:
            check_locked(choice[kind], self._names)
            mix |= dict.fromkeys(choice[kind], kind)
        drop = self.context.tuning.drop(self._made(mix))
        result = self._placed(mix, dict.fromkeys(mix, "kept in float, as the lock says"))
        found = Found(tuple(mix), drop, drop.point <= self._limit, True, {}, 1, 0.0)
        return replace(result, choice=choice, budget=self._budget(found))

    @property
    def _limit(self) -> float:
        assert self.pass_.max_drop is not None
        return self.pass_.max_drop

    def _layers(self) -> tuple[list[Unit], RangeEstimator]:
        units, ranges = super()._layers()
        self._groups = tuple(_grouped(units, self.context))
        return units, ranges

    def _faster(self, first: Mix, found: Found) -> tuple[Mix, Drop, str]:
        """The mix with every kind that is measured to be faster, its drop, and what was timed."""
        context, changes = self.context, {c.name: c for c in self._changes(first)}
        models = {name: self._possible(change.of(first)) for name, change in changes.items()}
        tried = {name: model for name, model in models.items() if model is not None}
        if not tried:
            return first, found.drop, "no layer can be of another kind"
        context.progress(1.0, "timing layers of other kinds")
        costs = context.device.costs(self._made(first), tried)
        if isinstance(costs, str):
            return first, found.drop, f"no other kinds of layers were timed: {costs}"
        listed = "; ".join(f"{name}: {in_words(cost)}" for name, cost in costs.items())
        told = f"saved on {context.device.target} by other kinds, each alone: {listed}"
        faster = [name for name in costs if costs[name].low > 0.0]
        faster.sort(key=lambda name: -costs[name].ms)
        mix, drop, taken = self._accurate(first, found.drop, [changes[name] for name in faster])
        if not taken:
            return first, found.drop, f"{told}; none is taken"
        together = context.device.costs(self._made(first), {"": self._made(mix)})
        if isinstance(together, str) or together[""].low <= 0.0:
            return first, found.drop, f"{told}; together they are not faster, and none is taken"
        names = ", ".join(change.name for change in taken)
        told += f"; taken: {names}, which together save {in_words(together[''])}"
        return mix, drop, f"{told}; {context.tuning.metric} then drops by {drop.point:.4g}"

    def _accurate(
        self, mix: Mix, drop: Drop, changes: Sequence[Change]
    ) -> tuple[Mix, Drop, list[Change]]:
        """The mix with each of the changes with which the limit holds, in their order."""
        first, limit, taken = mix, max(self._limit, drop.point), list[Change]()
        for change in changes:
            if any(mix.get(layer) != first.get(layer) for layer in change.group.layers):
                continue  # they are of a kind that saves more already
            new = self.context.tuning.drop(self._made(change.of(mix)))
            if new.point <= limit:
                mix, drop, taken = change.of(mix), new, [*taken, change]
        return mix, drop, taken

    def _changes(self, mix: Mix) -> list[Change]:
        """The other kinds that groups of layers could be of, large weights first."""
        found = []
        for group in sorted(self._groups, key=lambda group: -group.elements):
            for now in ("static", "float"):
                layers = tuple(n for n in group.layers if mix.get(n, "static") == now)
                kinds: list[Kind] = ["dynamic"] if group.dynamic else []
                kinds += ["float"] if now == "static" else []
                part = replace(group, layers=layers)
                found += [Change(part, kind) for kind in kinds] if layers else []
        return found[:MOST_TIMED]

    def _possible(self, mix: Mix) -> OnnxModel | None:
        try:
            return self._made(mix)
        except PreconditionError:  # nothing is left to quantize
            return None

    def _made(self, mix: Mix) -> OnnxModel:
        why = dict.fromkeys(mix, "of this kind in this trial")
        placed = self.mixed.placed(
            self.model.clone(), self.context, RewriteLog(), _at_run_time(mix), why, self._estimator
        )
        assert isinstance(placed.model, OnnxModel)
        return placed.model

    def _placed(self, mix: Mix, why: Mapping[str, str]) -> PassResult:
        context = self.context
        return self.mixed.placed(
            self.model, context, context.log, _at_run_time(mix), why, self._estimator
        )


def _grouped(units: list[Unit], context: PassContext) -> Iterator[Group]:
    """The layers with a constant weight, those that take the same time together."""
    spec = context.spec.quantization
    assert spec is not None
    groups: dict[tuple[str, tuple[int, ...], bool], list[str]] = {}
    for unit in units:
        weight = None if unit.weight is None else constant(unit.node.inputs[unit.weight])
        if weight is None:
            continue
        dynamic = spec.dynamic is not None and isinstance(judge(unit.node, spec), Site)
        key = (unit.node.op_type, tuple(weight.shape), dynamic)
        groups.setdefault(key, []).append(layer_name(unit))
    for (operator, shape, dynamic), layers in groups.items():
        yield Group(operator, shape, dynamic, tuple(layers))


def _at_run_time(mix: Mix) -> frozenset[str]:
    return frozenset(layer for layer, kind in mix.items() if kind == "dynamic")
