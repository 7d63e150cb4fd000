"""What of a placed Q/DQ graph is trained, and what has to stay alike. Imports onnx_ir.

The placement's own rules are read off the graph: scales that integers run between without a new
rounding are one scale, a bias of int32 has the scale of the accumulator, and padding is stored as
an integer. Whatever is trained keeps them, so that runtimes fuse what they fused before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.passes._quantize_graph import number
from optimc.passes._quantize_units import constant
from optimc.passes._quantize_weights import FULL_RANGE, REDUCED_RANGE
from optimc.passes.quantize_int8 import matches

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass
class StoredIntegers:
    """An initializer of integers behind a DQ, which floats are trained for."""

    name: str
    """The initializer's name."""
    scale: str
    """The name of its scale."""
    zero: str | None
    """The name of its zero point, which stays."""
    shape: tuple[int, ...]
    """What scale and zero point are reshaped to, to broadcast with the integers."""
    low: float
    high: float
    guess: NDArray[np.float32] | None
    """What it was in the float model, where that is known."""


@dataclass
class StoredBias:
    """A bias of a quantized layer: int32 behind a DQ, or float."""

    name: str
    scale: str | None
    """The name of its scale, which is the product of the next two; None where it is float."""
    input_scale: str
    weight_scale: str


@dataclass
class Trainable:
    """The names of what is trained, and of what shares one parameter."""

    weights: list[StoredIntegers] = field(default_factory=list)
    biases: list[StoredBias] = field(default_factory=list)
    scales: dict[str, str] = field(default_factory=dict)
    """Each scale of an activation or a weight that is trained, by what it shares a parameter with:
    the name of one of them."""


def trainable(
    model: ir.Model, origin: ir.Model, frozen: Sequence[str] = (), *, scales: bool = True
) -> Trainable:
    """What is trained of `model`, which `quantize_int8` made of `origin`.

    `frozen` are patterns of layers whose weights and biases stay, as `keep_float` has them.
    """
    return _Search(model.graph, origin.graph, frozen).found(scales)


class _Search:
    """Reads one graph."""

    def __init__(self, graph: ir.Graph, origin: ir.Graph, frozen: Sequence[str]) -> None:
        self._graph = graph
        self._frozen = frozen
        self._floats: dict[tuple[str, str], list[ir.Node]] = {}
        for node in origin:
            self._floats.setdefault((node.name or "", node.op_type), []).append(node)
        self._shared = _Shared()
        self._fixed: set[str] = set()
        integers = (_initializer(n.inputs[0]) for n in graph if n.op_type == "DequantizeLinear")
        most = max((_most(a) for a in integers if a is not None and a.dtype == np.int8), default=0)
        self._limit = REDUCED_RANGE if most <= REDUCED_RANGE else FULL_RANGE

    def found(self, scales: bool) -> Trainable:
        """See `trainable`."""
        result = Trainable()
        self._activations()
        readers: dict[str, list[ir.Node]] = {}
        for node in self._graph:
            if node.op_type == "DequantizeLinear" and _initializer(node.inputs[0]) is not None:
                readers.setdefault(_name(node.inputs[0]), []).append(node)
        for name, dequantizers in readers.items():
            self._stored(name, dequantizers, result)
        self._float_biases(result)
        if scales:
            fixed = {self._shared.root(name) for name in self._fixed}
            roots = {name: self._shared.root(name) for name in self._shared.names()}
            fixed |= {root for name, root in roots.items() if self._differ(name, root)}
            result.scales = {name: root for name, root in roots.items() if root not in fixed}
        return result

    def _differ(self, name: str, other: str) -> bool:
        """Whether two scales that belong together are not equal as they came."""
        one, two = (_initializer(self._graph.initializers.get(n)) for n in (name, other))
        return one is None or two is None or not np.array_equal(one, two)

    def _activations(self) -> None:
        """Joins the scales between which integers run as they are."""
        scale_of: dict[ir.Value, str] = {}
        for node in self._graph:
            if node.op_type == "QuantizeLinear":
                scale_of[node.outputs[0]] = self._scale(node)
            elif node.op_type == "DequantizeLinear":
                source = node.inputs[0]
                if source in scale_of:
                    self._shared.join(self._scale(node), scale_of[source])
            else:
                self._movement(node, scale_of)
                self._same_scale(node)

    def _movement(self, node: ir.Node, scale_of: dict[ir.Value, str]) -> None:
        """A node on integers: all it reads and gives has one scale."""
        read = [value for value in node.inputs if value in scale_of]
        if not read:
            return
        first = scale_of[read[0]]
        for value in read:
            self._shared.join(scale_of[value], first)
        for value in node.outputs:
            scale_of[value] = first
        stored = [_initializer(v) for v in node.inputs if v is not None and v not in scale_of]
        zeros = _zero_points(read)
        if any(
            a is not None and a.dtype in (np.int8, np.uint8) and not _any_is(a, zeros)
            for a in stored
        ):
            # A constant integer among them stands for a number that the scale must not change.
            self._fixed.add(first)

    def _same_scale(self, node: ir.Node) -> None:
        """Floats that are moved between a DQ and a Q of equal parameters."""
        if node.op_type in WEIGHTED:
            return
        before = [value.producer() for value in node.inputs if value is not None]
        behind = [reader for value in node.outputs for reader, _ in value.uses()]
        for dq in before:
            for q in behind:
                if (
                    dq is not None
                    and dq.op_type == "DequantizeLinear"
                    and q.op_type == "QuantizeLinear"
                    and _initializer(dq.inputs[0]) is None
                    and _parameters(dq) == _parameters(q)
                ):
                    self._shared.join(_name(dq.inputs[1]), _name(q.inputs[1]))

    def _scale(self, node: ir.Node) -> str:
        name = _name(node.inputs[1])
        self._shared.add(name)
        if _initializer(node.inputs[1]) is None:
            self._fixed.add(name)
        return name

    def _stored(self, name: str, readers: list[ir.Node], result: Trainable) -> None:
        """Adds the weight or bias `name` unless something about it has to stay."""
        uses = [use for dq in readers for use in dq.outputs[0].uses()]
        stays = any(matches(node, p) for node, _ in uses for p in self._frozen)
        first, scale = readers[0], _name(readers[0].inputs[1])
        integers, steps = _initializer(first.inputs[0]), _initializer(first.inputs[1])
        stays |= any(_name(dq.inputs[1]) != scale for dq in readers)
        if steps is None or integers is None or not uses:
            return
        if integers.dtype == np.int32:
            layers = {self._layer_scales(node) for node, index in uses if index == 2} - {None}
            if not stays and len(layers) == 1 and all(index == 2 for _, index in uses):
                result.biases.append(StoredBias(name, scale, *layers.pop()))  # type: ignore[misc]
            # A bias that stays, or is one of layers with other scales: they have to fit it.
            for pair in layers:
                self._fixed.update(pair)  # type: ignore[arg-type]
        elif not stays and integers.dtype in (np.int8, np.uint8):
            self._shared.add(scale)
            axis = int(number(first, "axis", 1)) % max(integers.ndim, 1)
            shape = tuple(-1 if i == axis else 1 for i in range(integers.ndim))
            zero = _initializer(first.inputs[2]) if len(first.inputs) > 2 else None
            info = np.iinfo(integers.dtype)
            low, high = float(info.min), float(info.max)
            if integers.dtype == np.int8 and (zero is None or not zero.any()):
                low, high = -float(self._limit), float(self._limit)
            result.weights.append(
                StoredIntegers(
                    name,
                    scale,
                    None if zero is None else _name(first.inputs[2]),
                    shape if steps.size > 1 else (),
                    low,
                    high,
                    self._guess(*uses[0], integers.shape),
                )
            )

    def _float_biases(self, result: Trainable) -> None:
        """Biases that the target keeps in float."""
        for node in self._graph:
            value = node.inputs[2] if node.op_type in WEIGHTED and len(node.inputs) > 2 else None
            scales = self._layer_scales(node)
            if value is None or scales is None or any(matches(node, p) for p in self._frozen):
                continue
            array = _initializer(value)
            if array is not None and array.dtype == np.float32 and len(value.uses()) == 1:
                result.biases.append(StoredBias(_name(value), None, *scales))

    def _layer_scales(self, node: ir.Node) -> tuple[str, str] | None:
        """The names of the scales of a layer's input and weight."""
        found = []
        for value in node.inputs[:2]:
            dq = None if value is None else value.producer()
            if dq is None or dq.op_type != "DequantizeLinear":
                return None
            found.append(_name(dq.inputs[1]))
        return (found[0], found[1]) if node.op_type in WEIGHTED and len(found) == 2 else None

    def _guess(
        self, node: ir.Node, index: int, shape: tuple[int, ...]
    ) -> NDArray[np.float32] | None:
        """What the float model has in the place of this input."""
        found = self._floats.get((node.name or "", node.op_type), [])
        if len(found) != 1 or index >= len(found[0].inputs):
            return None
        array = constant(found[0].inputs[index])
        if array is None:
            return None
        if node.op_type == "Gemm":
            # quantize_int8 multiplied the factors in.
            name = "alpha" if index == 1 else "beta"
            array = array.astype(np.float32) * np.float32(number(found[0], name, 1.0))
        try:
            return np.broadcast_to(array.astype(np.float32), shape)
        except ValueError:
            return None


class _Shared:
    """Union-find over names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def add(self, name: str) -> None:
        """Takes `name` in."""
        self._parent.setdefault(name, name)

    def root(self, name: str) -> str:
        """What stands for all that `name` was joined with."""
        self.add(name)
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def join(self, one: str, two: str) -> None:
        """Makes the two one."""
        self._parent[self.root(one)] = self.root(two)

    def names(self) -> list[str]:
        """All, in the order in which they came."""
        return list(self._parent)


def _zero_points(values: Sequence[Any]) -> list[Any]:
    """The zero points of the Qs that make `values`; behind other nodes they are not looked for."""
    makers = [value.producer() for value in values]
    found = [_initializer(m.inputs[2]) for m in makers if m is not None and len(m.inputs) > 2]
    return [zero for zero in found if zero is not None]


def _any_is(array: NDArray[Any], others: Sequence[NDArray[Any]]) -> bool:
    return any(bool((array == other).all()) for other in others)


def _parameters(node: ir.Node) -> tuple[bytes, bytes] | None:
    arrays = [_initializer(value) for value in node.inputs[1:]]
    if any(array is None for array in arrays) or len(arrays) != 2:
        return None
    return arrays[0].tobytes(), arrays[1].tobytes()  # type: ignore[union-attr]


def _most(integers: NDArray[Any]) -> int:
    return int(np.abs(integers.astype(np.int16)).max(initial=0))


def _initializer(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of an initializer; None for all else."""
    return constant(value) if value is not None and value.is_initializer() else None


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return str(value.name)
