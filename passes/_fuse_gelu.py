"""GELU from the spellings of exporters, for `fuse`. Imports onnx_ir at the top.

Hendrycks and Gimpel 2016, "Gaussian Error Linear Units (GELUs)" (arXiv:1606.08415), section 2:

    gelu(x)   = x * (1 + erf(x / sqrt(2))) / 2
    approx(x) = x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) / 2

ONNX has both as Gelu from opset 20 on. The factors come in any order and association, and with
divisions: products are taken apart into their factors, constants multiplied, and compared. In an
older opset the nodes stay: raising a model's opset changes the rules for all of its operators and
the runtimes that load it, which is for who exports it to decide. ONNX Runtime finds few of these
spellings by itself: export with opset 20 or newer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import onnx_ir as ir

from optimc.passes._fuse_job import Job, near, producer, read_outside, replace, scalar
from optimc.passes._simplify_work import where

_LEAST_OPSET = 20
_ERF_SCALE = math.sqrt(0.5)
_TANH_SCALE = math.sqrt(2 / math.pi)
_CUBE_SCALE = 0.044715
_MOST_FACTORS = 8


@dataclass
class _Product:
    """What a value is a product of."""

    scale: float = 1.0
    factors: list[ir.Value] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)

    def without(self, *values: ir.Value) -> list[ir.Value] | None:
        """The other factors, or None where one of `values` is not among them."""
        rest = list(self.factors)
        for value in values:
            if not any(value is factor for factor in rest):
                return None
            rest.pop(next(i for i, factor in enumerate(rest) if factor is value))
        return rest


def fuse_gelu(node: ir.Node, job: Job) -> None:
    """The product that ends a GELU into one node."""
    rule = "fuse_gelu"
    found = _gelu(node)
    if found is None:
        return
    x, form, inner = found
    reason = None
    if job.opset < _LEAST_OPSET:
        reason = (
            f"Gelu is in opset {_LEAST_OPSET} and newer, the model has {job.opset}: "
            f"export it with {_LEAST_OPSET}"
        )
    elif x.dtype != ir.DataType.FLOAT:
        reason = "it does not work on float32"
    reason = reason or read_outside(node, inner)
    if reason is not None:
        job.log.refuse(rule, where(node), reason)
    elif job.allow(rule, node):
        replace(node, inner, ir.Node("", "Gelu", [x], [ir.AttrString("approximate", form)]))


def _gelu(node: ir.Node) -> tuple[ir.Value, str, list[ir.Node]] | None:
    """The input, `none` or `tanh`, and the inner nodes of the GELU that ends in `node`."""
    whole = _product_of(node)
    if len(whole.factors) != 2 or not near(whole.scale, 0.5):
        return None
    for x, gate in (whole.factors, reversed(whole.factors)):
        add = producer(gate, "Add")
        if add is None:
            continue
        inner = [*whole.nodes, add]
        for one, curve in (add.inputs, reversed(add.inputs)):
            erf, tanh = producer(curve, "Erf"), producer(curve, "Tanh")
            if not near(scalar(one), 1.0) or (erf is None and tanh is None):
                continue
            bend = erf or tanh
            assert bend is not None
            nodes = _is_erf(bend, x) if erf is not None else _is_tanh(bend, x)
            if nodes is not None:
                return x, "none" if erf is not None else "tanh", [*inner, bend, *nodes]
    return None


def _is_erf(erf: ir.Node, x: ir.Value) -> list[ir.Node] | None:
    """The nodes of x / sqrt(2) before the Erf, or None."""
    inner = _factors(erf.inputs[0])
    fits = near(inner.scale, _ERF_SCALE) and inner.without(x) == []
    return inner.nodes if fits else None


def _is_tanh(tanh: ir.Node, x: ir.Value) -> list[ir.Node] | None:
    """The nodes of the polynomial before the Tanh, or None."""
    inner = _factors(tanh.inputs[0])
    if not near(inner.scale, _TANH_SCALE):
        return None
    # x + c x^3, or taken apart: x (1 + c x^2)
    by_x = inner.without(x)
    rest, power = (inner.factors, 3) if by_x is None else (by_x, 2)
    add = producer(rest[0], "Add") if len(rest) == 1 else None
    if add is None:
        return None
    for first, second in (add.inputs, reversed(add.inputs)):
        starts = first is x if power == 3 else near(scalar(first), 1.0)
        nodes = _is_power(second, x, power) if starts else None
        if nodes is not None:
            return [*inner.nodes, add, *nodes]
    return None


def _is_power(value: ir.Value | None, x: ir.Value, power: int) -> list[ir.Node] | None:
    """The nodes of 0.044715 times a power of x, or None."""
    found = _factors(value)
    if not near(found.scale, _CUBE_SCALE):
        return None
    if found.without(*[x] * power) == []:
        return found.nodes
    raised = producer(found.factors[0], "Pow") if len(found.factors) == 1 else None
    if raised is None or raised.inputs[0] is not x or scalar(raised.inputs[1]) != power:
        return None
    return [*found.nodes, raised]


def _factors(value: ir.Value | None) -> _Product:
    """The factors of a value, which is a product or its own only factor."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return _Product(factors=[] if value is None else [value])
    found = _product_of(node)
    found.nodes.append(node)
    return found


def _product_of(node: ir.Node) -> _Product:
    """The factors of a Mul, or of a Div by a constant; without the node itself in `nodes`."""
    found = _Product()
    waiting: list[tuple[ir.Value | None, bool]] = [
        (v, node.op_type == "Div" and i == 1) for i, v in enumerate(node.inputs)
    ]
    while waiting and len(found.factors) <= _MOST_FACTORS:
        value, divides = waiting.pop(0)
        number = scalar(value)
        inner = None if divides else producer(value, "Mul", "Div")
        if number is not None and not (divides and number == 0):
            found.scale *= 1 / number if divides else number
        elif inner is not None and value is not None and len(value.uses()) == 1:
            found.nodes.append(inner)
            waiting += [(v, inner.op_type == "Div" and i == 1) for i, v in enumerate(inner.inputs)]
        elif value is not None and not divides:
            found.factors.append(value)
        else:
            return _Product(math.nan, [], [])
    return found
