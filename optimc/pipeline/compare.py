"""Comparing outputs: bit-equal, relative to the output's scale, or by signal to noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from optimc.pipeline.probes import Probe

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far outputs are from their reference.

    `max_abs` and `max_rel` (``max |difference| / max |reference|`` of each output, the greatest
    over outputs and probes) are over finite elements; `signal` and `noise` are sums of squares;
    `broken` says what no tolerance can excuse: shapes, dtypes, NaN or infinity out of place,
    differing integers.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    bit_equal: bool = True
    broken: str | None = None

    @property
    def sqnr_db(self) -> float:
        """``10 log10(signal / noise)``; infinite where nothing differs."""
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf

    def __or__(self, other: Difference) -> Difference:
        """Both together: the worst of the maxima, the sums of the squares."""
        return Difference(
            max(self.max_abs, other.max_abs),
            max(self.max_rel, other.max_rel),
            self.signal + other.signal,
            self.noise + other.noise,
            self.bit_equal and other.bit_equal,
            self.broken or other.broken,
        )


def compare_outputs(
    reference: Iterable[Outputs], candidate: Iterable[Outputs], names: Iterable[str]
) -> Difference:
    """The difference of two runs over the same probes, for the outputs `names`.

    The scale of an output is its greatest magnitude over all probes: a probe of zeros, whose
    outputs may be nothing but rounding, must not decide.
    """
    total = Difference()
    pairs = list(zip(reference, candidate, strict=True))
    for name in names:
        of_output = Difference()
        scale = 0.0
        for expected, actual in pairs:
            if name not in actual:
                return Difference(bit_equal=False, broken=f"output `{name}` is missing")
            of_output |= compare_arrays(expected[name], actual[name], name)
            scale = max(scale, magnitude(expected[name]))
        total |= replace(of_output, max_rel=_ratio(of_output.max_abs, scale))
    return total


def compare_on_data(
    probes: Sequence[Probe],
    reference: Sequence[Outputs],
    candidate: Sequence[Outputs],
    names: Sequence[str],
) -> Difference:
    """The difference on samples of the data, where there are any; `broken` of every probe.

    Ranges were calibrated on data: made-up inputs beyond them saturate and say nothing of the
    error in use.
    """
    real = [index for index, probe in enumerate(probes) if probe.real]
    everywhere = compare_outputs(reference, candidate, names)
    if not real or everywhere.broken:
        return everywhere
    return compare_outputs([reference[i] for i in real], [candidate[i] for i in real], names)


def magnitude(array: NDArray[Any]) -> float:
    """The greatest finite magnitude of a float array; 0 for other dtypes."""
    if array.dtype.kind in "biuUSO":
        return 0.0
    values = np.abs(array.astype(np.float64))
    return float(values[np.isfinite(values)].max(initial=0.0))


def _ratio(error: float, scale: float) -> float:
    return error / scale if scale > 0 else (math.inf if error > 0 else 0.0)


def compare_arrays(expected: NDArray[Any], actual: NDArray[Any], name: str) -> Difference:
    """The difference of one output; `name` is for the messages."""

    def broken(text: str) -> Difference:
        return Difference(bit_equal=False, broken=f"output `{name}`: {text}")

    if expected.shape != actual.shape:
        return broken(f"shape {actual.shape} in place of {expected.shape}")
    if expected.dtype != actual.dtype:
        return broken(f"dtype {actual.dtype} in place of {expected.dtype}")
    if expected.dtype.kind in "biuUSO":
        differing = int(np.count_nonzero(expected != actual))
        return (
            broken(f"{differing} of {expected.size} elements differ") if differing else Difference()
        )
    # Complex numbers are not met in models' outputs; every float, bfloat16 included, fits float64.
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(
        np.where(finite, 0.0, a), np.where(np.isfinite(b), 0.0, b), equal_nan=True
    ):
        return broken("NaN or infinity stands in other places")
    a, b = a[finite], b[finite]
    error = np.abs(a - b)
    max_abs = float(error.max(initial=0.0))
    with np.errstate(over="ignore"):  # doubles beyond 1e154: their power is infinite
        signal, noise = float(np.square(a).sum()), float(np.square(error).sum())
    return Difference(
        max_abs=max_abs,
        max_rel=_ratio(max_abs, float(np.abs(a).max(initial=0.0))),
        signal=signal,
        noise=noise,
        bit_equal=expected.tobytes() == actual.tobytes(),
    )
