"""How exporters spell GELU, LayerNormalization, linear layers and shortcuts in small operators.

Each function writes the nodes into a `GraphBuilder` and returns the name of the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from optimc.testing.graphs import GraphBuilder

GELUS = (
    "erf, PyTorch",
    "erf, halved last",
    "erf, divided by two",
    "erf, half of the sum",
    "tanh, Pow",
    "tanh, cubed by Mul",
    "tanh, x taken out",
)
"""The spellings that `gelu` writes."""


def gelu(b: GraphBuilder, x: str, spelling: str, *, to: str | None = None) -> str:
    """GELU of `x`, in one of `GELUS`."""
    one = b.constant(1.0)
    half = "" if spelling == "erf, divided by two" else b.constant(0.5)
    if spelling == "erf, PyTorch":
        curve = b.node("Erf", b.node("Div", x, b.constant(math.sqrt(2))))
        return b.node("Mul", x, b.node("Mul", half, b.node("Add", curve, one)), to=to)
    if spelling.startswith("erf"):
        curve = b.node("Erf", b.node("Mul", b.constant(math.sqrt(0.5)), x))
        gate = b.node("Add", one, curve)
        if spelling == "erf, halved last":
            return b.node("Mul", half, b.node("Mul", x, gate), to=to)
        if spelling == "erf, divided by two":
            return b.node("Div", b.node("Mul", gate, x), b.constant(2.0), to=to)
        return b.node("Mul", b.node("Mul", half, x), gate, to=to)
    scale, cubed = b.constant(math.sqrt(2 / math.pi)), b.constant(0.044715)
    if spelling == "tanh, x taken out":
        square = b.node("Mul", cubed, b.node("Mul", x, x))
        inner = b.node("Mul", b.node("Mul", x, scale), b.node("Add", square, one))
    else:
        if spelling == "tanh, Pow":
            cube = b.node("Pow", x, b.constant(3.0))
        else:
            cube = b.node("Mul", x, b.node("Mul", x, x))
        inner = b.node("Mul", scale, b.node("Add", x, b.node("Mul", cubed, cube)))
    gate = b.node("Add", b.node("Tanh", inner), one)
    return b.node("Mul", b.node("Mul", half, x), gate, to=to)


def layer_norm(
    b: GraphBuilder,
    x: str,
    size: int,
    *,
    square: Literal["Pow", "Mul"] = "Pow",
    affine: Literal["both", "scale", "bias", "none"] = "both",
    twice: bool = False,
    axis: int = -1,
    epsilon: float = 1e-5,
    scalars: bool = False,
    to: str | None = None,
) -> str:
    """LayerNormalization over the last axis, of `size`.

    `twice` writes x - mean(x) once more for the square; `scalars` are scale and bias of one number.
    """

    def mean(value: str) -> str:
        if b.opset >= 18:
            return b.node("ReduceMean", value, b.constant([axis]), keepdims=1)
        return b.node("ReduceMean", value, axes=[axis], keepdims=1)

    difference = b.node("Sub", x, mean(x))
    again = b.node("Sub", x, mean(x)) if twice else difference
    if square == "Pow":
        squared = b.node("Pow", again, b.constant(2.0))
    else:
        squared = b.node("Mul", again, again)
    deviation = b.node("Sqrt", b.node("Add", mean(squared), b.constant(epsilon)))
    shape = () if scalars else (size,)
    rest = {"both": 2, "scale": 1, "bias": 1, "none": 0}[affine]
    result = b.node("Div", difference, deviation, to=None if rest else to, name="div")
    if affine in ("both", "scale"):
        last = to if affine == "scale" else None
        result = b.node("Mul", result, b.weight(*shape), to=last)
    if affine in ("both", "bias"):
        result = b.node("Add", result, b.weight(*shape), to=to)
    return result


def shortcut(
    b: GraphBuilder,
    x: str,
    *,
    rank: int = 4,
    strides: Mapping[int, int] | None = None,
    pads: tuple[int, int] = (1, 2),
    starts: int = 0,
    value: float = 0.0,
    axes_of_pad: bool = False,
    to: str | None = None,
) -> str:
    """The shortcut of CIFAR's ResNets: a Slice for each of `strides`, `pads` channels of zeros."""
    for axis, step in (strides or {2: 2, 3: 2}).items():
        parts = [b.constant([part]) for part in (starts, 2**63 - 1, axis, step)]
        x = b.node("Slice", x, *parts, name=f"slice_{axis}")
    if axes_of_pad:
        inputs = [b.constant(list(pads)), b.constant(value), b.constant([1])]
    else:
        amounts = [0] * 2 * rank
        amounts[1], amounts[rank + 1] = pads
        inputs = [b.constant(amounts), b.constant(value)]
    return b.node("Pad", x, *inputs, name="pad", to=to)
