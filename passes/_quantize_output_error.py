"""Ranges by what they cost the layers that read them: `ranges: output_error`. Imports onnx_ir.

For a value x, candidate ranges r and the layers f that read x (with the activation that their
kernel takes in; weights in float), the range is the one with the least

    sum over f of  |f(Q_r(x)) - f(x)|^2 / |f(x)|^2

on calibration samples. A tensor's own squared error weighs all its elements alike; a layer does
not (Nagel et al. 2021, "A White Paper on Neural Network Quantization", arXiv:2106.08295, section
3.1, and Wu et al. 2020, arXiv:2004.09602, on ranges by the effect behind them). Candidates are the
ranges of the other estimators, some around the best of them, and shares of the extremes.

The sums come out of the float graph itself: a copy of it computes Q, DQ and the layers once for
each candidate and gives one number for each. Values are searched some at a time, so that memory is
bounded by a few of them and not by the samples or the depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optimc.calibration.affine import IntegerType, Range
from optimc.calibration.entropy import Entropy
from optimc.calibration.ranges import MeanSquaredError, MinMax, Percentile
from optimc.calibration.values import Reduction
from optimc.core.statistics import TensorStatistics
from optimc.passes._quantize_graph import GraphWriter
from optimc.passes._quantize_units import Unit

if TYPE_CHECKING:
    from optimc.calibration.ranges import RangeEstimator
    from optimc.core.model import OnnxModel
    from optimc.core.passes import PassContext
    from optimc.core.targets import QuantizationSpec

SAMPLES = 64
"""Calibration samples that the errors are taken over."""
CHUNK = 8
"""Values that are searched in one sweep."""
_AROUND = (0.8, 0.9, 1.1)
"""What the range of least squared error is stretched by for further candidates."""
_OF_ALL = tuple(2.0 ** (-step / 2) for step in range(1, 9))
"""Shares of the extremes, down to a sixteenth: where layers hardly look at what is large."""
_LEAST = 1e-30
"""The least power of an output: layers that give zeros lose nothing."""


@dataclass(frozen=True)
class ByOutputError:
    """The ranges that were found, by the identity of the statistics; `mse` for all other values."""

    found: dict[int, tuple[TensorStatistics, Range]] = field(default_factory=dict)
    """The statistics are kept too, so that their id stays theirs."""
    fallback: RangeEstimator = field(default_factory=MeanSquaredError)

    def estimate(self, seen: TensorStatistics, kind: IntegerType) -> Range:
        """The range with the least error of the layers behind."""
        known = self.found.get(id(seen))
        return self.fallback.estimate(seen, kind) if known is None else known[1]


@dataclass
class _Site:
    """One value whose range is searched, and who reads it, by names."""

    value: ir.Value
    kind: IntegerType
    candidates: list[Range]
    readers: list[Unit] = field(default_factory=list)


def search(
    model: OnnxModel,
    units: Iterable[Unit],
    statistics: Mapping[ir.Value, TensorStatistics],
    spec: QuantizationSpec,
    context: PassContext,
) -> ByOutputError:
    """Searches the ranges of all values that layers with constant weights among `units` read.

    `model` is the float model that `units` and `statistics` are of; it stays as it is.
    """
    sites = _sites(list(units), statistics, spec)
    result = ByOutputError()
    if not sites:
        return result
    with context.calibration.reader(SAMPLES) as reader:
        for start in range(0, len(sites), CHUNK):
            part = sites[start : start + CHUNK]
            context.progress(start / len(sites), f"searching the range of `{part[0].value.name}`")
            trial, names = _with_errors(model, part)
            sums = reader.reduce(
                {"model": trial},
                {
                    name: Reduction("channel_moments", [("model", name)], {"axis": -1})
                    for name in names
                },
            )
            for site, name in zip(part, names, strict=True):
                errors = np.asarray(sums[name]["mean"])
                if np.isfinite(errors).all():
                    # The first of equal ones wins: they stand from the widest to the narrowest.
                    best = site.candidates[int(np.argmin(errors))]
                    seen = statistics[site.value]
                    result.found[id(seen)] = (seen, best)
    return result


def _sites(
    units: Sequence[Unit],
    statistics: Mapping[ir.Value, TensorStatistics],
    spec: QuantizationSpec,
) -> list[_Site]:
    """What is searched, in the graph's order. Data movement keeps the range of what it moves."""
    moved = {unit.output: unit.sources()[0] for unit in units if unit.moves and unit.sources()}
    symmetric = {v for unit in units if unit.rule.symmetric_input for v in unit.sources()}
    kind = IntegerType(spec.activation_dtype, spec.activation_symmetric)
    sites: dict[ir.Value, _Site] = {}
    for unit in units:
        if unit.weight is None:
            continue
        value = unit.node.inputs[0]
        while value in moved:
            value = moved[value]
        seen = None if value is None else statistics.get(value)
        if value is None or seen is None or value in symmetric:
            continue
        if value not in sites:
            sites[value] = _Site(value, kind, _candidates(seen, kind))
        sites[value].readers.append(unit)
    return [site for site in sites.values() if len(site.candidates) > 1]


def _candidates(seen: TensorStatistics, kind: IntegerType) -> list[Range]:
    """Different ranges within the extremes, from the widest to the narrowest."""
    full, best = MinMax().estimate(seen, kind), MeanSquaredError().estimate(seen, kind)
    others = (Percentile(99.9), Percentile(99.99), Percentile(99.999), Entropy())
    ranges = [full, best, *(one.estimate(seen, kind) for one in others)]
    stretched = [(best, factor) for factor in _AROUND] + [(full, share) for share in _OF_ALL]
    for span, factor in stretched:
        low, high = max(full.low, span.low * factor), min(full.high, span.high * factor)
        ranges.append(Range(low, high))
    unique = {(r.low, r.high): r for r in ranges if r.magnitude > 0.0}
    return sorted(unique.values(), key=lambda r: (r.low - r.high, r.low))


def _with_errors(model: OnnxModel, sites: Sequence[_Site]) -> tuple[OnnxModel, list[str]]:
    """A copy of `model` that computes the errors of each site's candidates, [1, candidates] each,
    and the names of these values."""
    clone = model.clone()
    trial = _Trial(clone.ir.graph)
    names = [trial.errors_of(site) for site in sites]
    return clone.sealed(), names


class _Trial:
    """Adds to a graph what computes errors."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._values = {value.name: value for value in graph.inputs}
        self._values |= {value.name: value for node in graph for value in node.outputs}
        self._writer = GraphWriter(graph)
        constants = {"row": np.array([1, -1]), "one": np.array([1])}
        self._shapes = {n: self._writer.initializer(f"optimc_{n}", a) for n, a in constants.items()}
        self._least = self._writer.initializer("optimc_least", np.array(_LEAST, np.float32))

    def errors_of(self, site: _Site) -> str:
        """The name of the value with the errors of a site's candidates."""
        errors = []
        for candidate in site.candidates:
            affine = site.kind.parameters(candidate)
            parameters = self._writer.parameters(f"{site.value.name}_candidate", affine)
            shares = [self._error(unit, parameters) for unit in site.readers]
            total = self._add("Sum", shares) if len(shares) > 1 else shares[0]
            errors.append(self._add("Reshape", [total, self._shapes["one"]]))
        joined = self._add("Concat", errors, {"axis": 0})
        given = self._add("Reshape", [joined, self._shapes["row"]])
        given.type = ir.TensorType(ir.DataType.FLOAT)
        return str(given.name)

    def _error(self, unit: Unit, parameters: tuple[ir.Value, ir.Value]) -> ir.Value:
        """The share of a layer's output power that is lost with its input quantized."""
        source = unit.node.inputs[0]
        assert source is not None
        x, wanted = self._values[source.name], self._values[unit.output.name]
        quantized = self._add("QuantizeLinear", [x, *parameters])
        given = self._add("DequantizeLinear", [quantized, *parameters])
        for original in (unit.node, *unit.absorbed):
            node = self._values[original.outputs[0].name].producer()
            assert node is not None
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            given = self._add(node.op_type, [given, *node.inputs[1:]], attributes)
        power = self._add("ReduceSumSquare", [wanted], {"keepdims": 0})
        difference = self._add("Sub", [given, wanted])
        lost = self._add("ReduceSumSquare", [difference], {"keepdims": 0})
        return self._add("Div", [lost, self._add("Max", [power, self._least])])

    def _add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """The result of a new node, at the graph's end."""
        name = self._writer.unique(f"optimc_{op_type}")
        node = ir.node(op_type, inputs, attributes or {}, name=name)
        node.outputs[0].name = name
        self._graph.append(node)
        return node.outputs[0]
