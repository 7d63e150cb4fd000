"""The histogram observer is exact whatever the batches, and estimators choose sensible ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from optimc.calibration.affine import Affine, IntegerType, Range
from optimc.calibration.observers import BINS, HistogramObserver
from optimc.calibration.ranges import MeanSquaredError, MinMax, Percentile, RangeEstimator
from optimc.core.statistics import TensorStatistics

FLOATS = arrays.arrays(np.float32, st.integers(1, 200), elements=st.floats(width=32))
U8 = IntegerType("uint8", symmetric=False)
S8 = IntegerType("int8", symmetric=True)


def observed(*batches: np.ndarray, bins: int = BINS) -> TensorStatistics:
    observer = HistogramObserver(bins)
    for batch in batches:
        observer.update(batch)
    return observer.statistics()


def assert_equal(one: TensorStatistics, two: TensorStatistics) -> None:
    np.testing.assert_array_equal(one.histogram, two.histogram)
    for name in ("minimum", "maximum", "count", "non_finite", "limit"):
        assert getattr(one, name) == getattr(two, name)


@given(values=FLOATS, cut=st.integers(0, 200), bins=st.sampled_from([4, 64]))
@settings(max_examples=200, deadline=None)
def test_batches_and_their_order_do_not_matter(values: np.ndarray, cut: int, bins: int) -> None:
    whole = observed(values, bins=bins)
    assert_equal(whole, observed(values[:cut], values[cut:], bins=bins))
    assert_equal(whole, observed(*reversed(values), bins=bins))


@given(values=FLOATS)
@settings(max_examples=200, deadline=None)
def test_statistics_are_exact(values: np.ndarray) -> None:
    seen = observed(values, bins=64)
    finite = values[np.isfinite(values)]
    assert seen.count == values.size
    assert seen.non_finite == values.size - finite.size
    assert seen.histogram.sum() == finite.size
    assert seen.minimum == (finite.min() if finite.size else 0)
    assert seen.maximum == (finite.max() if finite.size else 0)
    assert max(-seen.minimum, seen.maximum) < seen.limit


def test_the_histogram_is_the_one_of_its_limit() -> None:
    values = np.random.default_rng(0).normal(0, 3, 10_000).astype(np.float32)
    seen = observed(*np.array_split(np.sort(np.abs(values)) * np.sign(values), 50))
    expected, _ = np.histogram(
        np.sort(np.abs(values)) * np.sign(values), BINS, (-seen.limit, seen.limit)
    )
    np.testing.assert_array_equal(seen.histogram, expected)


def test_half_precision_and_scalars_are_taken() -> None:
    assert_equal(observed(np.float16([1, -2])), observed(np.float32([1, -2])))
    assert observed(np.float64(3.5)).maximum == 3.5
    assert observed(np.zeros((0, 3), np.float32)).count == 0


GAUSSIAN = observed(np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32))
RECTIFIED = observed(np.maximum(np.random.default_rng(0).normal(0, 1, 200_000), 0))


def noise(seen: TensorStatistics, estimator: RangeEstimator, kind: IntegerType) -> float:
    """The mean squared error of quantizing the Gaussian that the statistics came from."""
    values = np.random.default_rng(0).normal(0, 1, 200_000)
    if seen is RECTIFIED:
        values = np.maximum(values, 0)
    affine = kind.parameters(estimator.estimate(seen, kind))
    return float(np.mean((affine.dequantize(affine.quantize(values)) - values) ** 2))


def test_min_max_is_the_observed_range() -> None:
    found = MinMax().estimate(GAUSSIAN, U8)
    assert (found.low, found.high) == (GAUSSIAN.minimum, GAUSSIAN.maximum)


@pytest.mark.parametrize("percent", [99.0, 99.9])
def test_percentile_cuts_that_share_of_both_tails(percent: float) -> None:
    values = np.random.default_rng(0).normal(0, 1, 200_000)
    expected = np.percentile(values, [100 - percent, percent])
    found = Percentile(percent).estimate(GAUSSIAN, U8)
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.01)


def test_percentile_of_a_hundred_is_min_max() -> None:
    assert Percentile(100.0).estimate(GAUSSIAN, U8) == MinMax().estimate(GAUSSIAN, U8)


@pytest.mark.parametrize("kind", [U8, S8])
@pytest.mark.parametrize("seen", [GAUSSIAN, RECTIFIED], ids=["gaussian", "rectified"])
def test_squared_error_is_least_of_all(seen: TensorStatistics, kind: IntegerType) -> None:
    least = noise(seen, MeanSquaredError(), kind)
    assert least < noise(seen, MinMax(), kind)
    assert least <= noise(seen, Percentile(99.9), kind)
    assert least <= noise(seen, Percentile(99.99), kind) * 1.001


def test_outliers_do_not_take_the_range() -> None:
    values = np.random.default_rng(0).normal(0, 1, 1_000_000).astype(np.float32)
    values[0] = 20.0
    assert MeanSquaredError().estimate(observed(values), U8).high < 12
    values[0] = 1000.0  # one clip of that costs more than coarse rounding of all the others
    assert MeanSquaredError().estimate(observed(values[:100_000]), U8).high > 900


@pytest.mark.parametrize("estimator", [MinMax(), Percentile(), MeanSquaredError()])
@pytest.mark.parametrize("kind", [U8, S8])
def test_dead_tensors_get_a_scale_of_one(estimator: RangeEstimator, kind: IntegerType) -> None:
    affine = kind.parameters(estimator.estimate(observed(np.zeros(10, np.float32)), kind))
    assert affine.scale == 1.0
    assert affine.dequantize(affine.quantize(np.zeros(1))) == 0.0


@given(
    low=st.floats(-1e6, 1e6),
    width=st.floats(0, 1e6),
    dtype=st.sampled_from(["uint8", "int8"]),
    symmetric=st.booleans(),
)
def test_zero_is_exact_and_the_range_is_covered(
    low: float, width: float, dtype: str, symmetric: bool
) -> None:
    span = Range(low, low + width)
    affine = IntegerType(dtype, symmetric).parameters(span)
    assert affine.dequantize(affine.quantize(np.zeros(1)))[0] == 0.0
    assert np.finfo(np.float32).tiny < affine.scale < np.inf
    assert affine.scale == float(np.float32(affine.scale))
    for end in (span.low, span.high):
        back = affine.dequantize(affine.quantize(np.array([end])))[0]
        assert abs(back - end) <= affine.scale * 1.001


def test_symmetric_types_have_their_zero_point_in_the_middle() -> None:
    assert S8.parameters(Range(-1, 2)).zero_point == 0
    assert IntegerType("uint8", True).parameters(Range(-1, 2)).zero_point == 128
    assert IntegerType("uint8", True).parameters(Range(0, 2)) == Affine(
        "uint8", float(np.float32(2 / 255)), 0
    )


def test_ranges_hold_zero_and_are_finite() -> None:
    assert Range(1, 2) == Range(0, 2)
    assert Range(-2, -1).union(Range(0, 1)) == Range(-2, 1)
    with pytest.raises(ValueError, match="not a finite range"):
        Range(0, float("inf"))


def test_quantizing_rounds_half_to_even_and_saturates() -> None:
    affine = Affine("uint8", 1.0, 10)
    values = np.array([-100, -0.5, 0.5, 1.5, 2.5, 1000])
    np.testing.assert_array_equal(affine.quantize(values), [0, 10, 10, 12, 12, 255])
