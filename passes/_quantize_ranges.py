"""Scales and zero points of the activations that `quantize_int8` quantizes. Imports onnx_ir."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from optimc.calibration.affine import GREATEST_SCALE, Affine, IntegerType, Range
from optimc.calibration.ranges import RangeEstimator
from optimc.core.model import OnnxModel
from optimc.core.passes import Calibration
from optimc.core.statistics import TensorStatistics
from optimc.core.targets import QuantizationSpec
from optimc.passes._quantize_units import Refuse, Unit, pad_value


def wanted_values(units: Iterable[Unit]) -> list[ir.Value]:
    """The values whose statistics are needed, in order: what is read, and what needs a Q."""
    values: dict[ir.Value, None] = {}
    for unit in units:
        values.update(dict.fromkeys(unit.sources()))
        if unit.rule.output and not unit.moves:
            values[unit.output] = None
    return list(values)


def statistics_of(
    units: Iterable[Unit], model: OnnxModel, calibration: Calibration
) -> dict[ir.Value, TensorStatistics]:
    """What the calibration data say of the values that the units need."""
    values = wanted_values(units)
    seen = calibration.statistics(model, [str(value.name) for value in values])
    return {value: seen[str(value.name)] for value in values if value.name in seen}


def usable(
    units: Iterable[Unit], statistics: Mapping[ir.Value, TensorStatistics], refuse: Refuse
) -> list[Unit]:
    """The units all of whose values can be quantized; refuses the others."""
    kept = []
    for unit in units:
        reasons = [_unusable(value, statistics.get(value)) for value in wanted_values([unit])]
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None:
            kept.append(unit)
        else:
            refuse(unit.node, reason)
    return kept


def _unusable(value: ir.Value, seen: TensorStatistics | None) -> str | None:
    if seen is None or seen.count == 0:
        return f"`{value.name}` was not observed on the calibration data"
    if seen.non_finite:
        return f"`{value.name}` holds infinities or NaNs"
    greatest = max(-seen.minimum, seen.maximum)
    return f"`{value.name}` goes up to {greatest:.3g}" if greatest > GREATEST_SCALE * 127 else None


def assign(
    units: Iterable[Unit],
    statistics: Mapping[ir.Value, TensorStatistics],
    estimator: RangeEstimator,
    spec: QuantizationSpec,
) -> dict[ir.Value, Affine]:
    """The parameters of every value that the units read or must quantize."""
    units = list(units)
    groups = _Groups()
    for unit in units:
        for value in wanted_values([unit]):
            groups.add(value)
        if unit.moves:
            for value in unit.sources():
                groups.join(unit.output, value)
    moved = {unit.output for unit in units if unit.moves}
    symmetric = {v for unit in units if unit.rule.symmetric_input for v in unit.sources()}
    padded = {unit.output: pad_value(unit.node) for unit in units if unit.node.op_type == "Pad"}
    result: dict[ir.Value, Affine] = {}
    for members in groups.all():
        seen = [statistics[value] for value in members if value not in moved]
        kind = _integer_type(spec, seen, not symmetric.isdisjoint(members))
        spans = [estimator.estimate(one, kind) for one in seen]
        spans += [Range(fill, fill) for v in members if (fill := padded.get(v)) is not None]
        span = spans[0]
        for other in spans[1:]:
            span = span.union(other)
        result.update(dict.fromkeys(members, kind.parameters(span)))
    return result


def _integer_type(
    spec: QuantizationSpec, seen: Iterable[TensorStatistics], symmetric: bool
) -> IntegerType:
    if symmetric and not spec.activation_symmetric:
        positive = all(one.minimum >= 0.0 for one in seen)
        return IntegerType("uint8" if positive else "int8", symmetric=True)
    return IntegerType(spec.activation_dtype, spec.activation_symmetric)


class _Groups:
    """Union-find over values, in the order in which they came."""

    def __init__(self) -> None:
        self._parent: dict[ir.Value, ir.Value] = {}

    def add(self, value: ir.Value) -> ir.Value:
        root = self._parent.setdefault(value, value)
        while root is not self._parent[root]:
            root = self._parent[root]
        self._parent[value] = root
        return root

    def join(self, one: ir.Value, two: ir.Value) -> None:
        self._parent[self.add(one)] = self.add(two)

    def all(self) -> list[list[ir.Value]]:
        groups: dict[ir.Value, list[ir.Value]] = {}
        for value in self._parent:
            groups.setdefault(self.add(value), []).append(value)
        return list(groups.values())
