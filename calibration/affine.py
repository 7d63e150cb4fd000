"""Affine quantization to 8 bits: the integer types, and scale and zero point from a range.

    q = saturate(round(x / s) + z)        x' = (q - z) * s

as QuantizeLinear and DequantizeLinear define it (ONNX operators, opset 13), with rounding half to
even. Zero is always represented exactly (``z`` is an integer of the type), because padding writes
zeros and Relu produces them; see Jacob et al. 2018, "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference" (arXiv:1712.05877), section 2.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

LEAST_SCALE = 2.0**-60
"""Scales are not smaller, so that the product of two is still a normal float32."""

GREATEST_SCALE = 2.0**60
"""Values that need a larger scale are not quantized: the product of two could overflow."""


@dataclass(frozen=True, slots=True)
class Range:
    """What the integers have to span; `low` <= 0 <= `high`, both finite."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"not a finite range: {self.low} to {self.high}")
        object.__setattr__(self, "low", min(self.low, 0.0))
        object.__setattr__(self, "high", max(self.high, 0.0))

    @property
    def magnitude(self) -> float:
        """The larger of the two absolute values."""
        return max(-self.low, self.high)

    def union(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, slots=True)
class Affine:
    """One scale (float32 exact) and zero point of an integer type."""

    dtype: str
    scale: float
    zero_point: int

    def quantize(self, x: NDArray[np.floating]) -> NDArray[np.integer]:
        """The integers, of `dtype`, shape of x; divides in float32 as the runtimes do."""
        info = np.iinfo(self.dtype)
        q = np.rint(x.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        integers: NDArray[np.integer] = np.clip(q, info.min, info.max).astype(self.dtype)
        return integers

    def dequantize(self, q: NDArray[np.integer]) -> NDArray[np.float32]:
        """What the integers stand for, float32."""
        return (q.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


@dataclass(frozen=True, slots=True)
class IntegerType:
    """An 8-bit type and how it is used.

    A symmetric type has its zero point at 0 (int8) or, for values that take both signs, at 128
    (uint8); for values without negative ones an unsigned symmetric type has it at 0.
    """

    dtype: str
    symmetric: bool

    @property
    def least(self) -> int:
        """The smallest integer."""
        return _limits(self.dtype)[0]

    @property
    def greatest(self) -> int:
        """The largest integer."""
        return _limits(self.dtype)[1]

    def parameters(self, span: Range) -> Affine:
        """Scale and zero point that cover `span`; scale 1 where it holds nothing but zero.

        Symmetric: ``s = max(|low|, |high|) / 127`` (255 for an unsigned type and ``low = 0``).
        Asymmetric: ``s = (high - low) / 255``, ``z = round(least - low / s)``.
        """
        if span.magnitude == 0.0:
            return self._affine(1.0, 0 if self.symmetric else self.least)
        if not self.symmetric:
            scale = _float32((span.high - span.low) / (self.greatest - self.least))
            zero = round(self.least - span.low / scale)
            return self._affine(scale, min(max(zero, self.least), self.greatest))
        if self.least == 0 and span.low == 0.0:
            return self._affine(_float32(span.high / self.greatest), 0)
        zero = (self.least + self.greatest + 1) // 2
        return self._affine(_float32(span.magnitude / (self.greatest - zero)), zero)

    def _affine(self, scale: float, zero_point: int) -> Affine:
        return Affine(self.dtype, scale, zero_point)


@cache
def _limits(dtype: str) -> tuple[int, int]:
    # Range searches ask a thousand times a tensor, and numpy makes an object each time.
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _float32(scale: float) -> float:
    return float(np.float32(max(scale, LEAST_SCALE)))
