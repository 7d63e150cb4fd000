"""What channels that are constant become behind operators, for `remove_dead_channels`.

Works on arrays: one number for each channel, NaN where it is not constant or not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Attributes = Mapping[str, float]
Function = Callable[[Array, Attributes], Array]


def _leaky(v: Array, a: Attributes) -> Array:
    return np.where(v < 0, a.get("alpha", 0.01) * v, v)


def _elu(v: Array, a: Attributes) -> Array:
    return np.where(v < 0, a.get("alpha", 1.0) * np.expm1(v), v)


def _hard_sigmoid(v: Array, a: Attributes) -> Array:
    return np.clip(a.get("alpha", 0.2) * v + a.get("beta", 0.5), 0.0, 1.0)


def _erf(v: Array, a: Attributes) -> Array:
    return np.array([math.erf(x) for x in v])


def _unknown(v: Array, a: Attributes) -> Array:
    return np.full_like(v, np.nan)


UNARY: Mapping[str, Function] = {
    "Abs": lambda v, a: np.abs(v),
    "Elu": _elu,
    "Erf": _erf,
    "Exp": lambda v, a: np.exp(v),
    "Gelu": _unknown,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda v, a: v * np.clip(v / 6.0 + 0.5, 0.0, 1.0),
    "Identity": lambda v, a: v,
    "LeakyRelu": _leaky,
    "Mish": _unknown,
    "Neg": lambda v, a: -v,
    "Relu": lambda v, a: np.maximum(v, 0.0),
    "Selu": _unknown,
    "Sigmoid": lambda v, a: 1.0 / (1.0 + np.exp(-v)),
    "Softplus": lambda v, a: np.logaddexp(0.0, v),
    "Sqrt": lambda v, a: np.sqrt(v),
    "Tanh": lambda v, a: np.tanh(v),
}
"""Operators of one input that treat each number by itself."""

BINARY: Mapping[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "Pow": np.power,
    "PRelu": lambda v, slope: np.where(v < 0, slope * v, v),
    "Sub": np.subtract,
}
"""Operators of two inputs that treat each number by itself."""


def unary(op_type: str, values: Array, attributes: Attributes) -> Array:
    """The constants behind an operator of `UNARY`."""
    with np.errstate(all="ignore"):
        return _finite(UNARY[op_type](values, attributes))


def binary(op_type: str, first: Array, second: Array) -> Array:
    """The constants behind an operator of `BINARY`. Nothing times zero is zero."""
    with np.errstate(all="ignore"):
        result = BINARY[op_type](first, second)
        if op_type == "Mul":
            result = np.where((first == 0) | (second == 0), 0.0, result)
        return _finite(result)


def normalized(values: Array, rows: tuple[Array, Array, Array, Array], epsilon: float) -> Array:
    """The constants behind a BatchNormalization; where its factor is 0, its shift."""
    scale, shift, mean, variance = rows
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        return _finite(np.where(factor == 0, shift, (values - mean) * factor + shift))


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, np.nan)
