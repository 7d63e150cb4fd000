"""The histogram observer is exact whatever the batches, and estimators choose sensible ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from optimc.calibration.affine import Affine, IntegerType, Range
from optimc.calibration.entropy import Entropy
from optimc.calibration.observers import AVERAGING, BINS, HistogramObserver
from optimc.calibration.ranges import (
    MeanSquaredError,
    MinMax,
    MovingAverage,
    Percentile,
    RangeEstimator,
)
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


@given(
    values=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 5)),
        elements=st.floats(-9, 9, width=32),
    ),
    cut=st.integers(0, 12),
)
@settings(max_examples=100, deadline=None)
def test_means_of_extremes_depend_on_the_order_alone(values: np.ndarray, cut: int) -> None:
    whole, parts = HistogramObserver(64), HistogramObserver(64)
    whole.update(values, len(values))
    for part in (values[:cut], values[cut:]):
        if len(part):
            parts.update(part.reshape(-1), len(part))  # any shape whose rows are the samples'
    weights = (1 - AVERAGING) ** np.arange(len(values))[::-1]
    expected = [np.average(f(values, axis=1), weights=weights) for f in (np.min, np.max)]
    for observer in (whole, parts):
        seen = observer.statistics()
        found = [seen.average_minimum, seen.average_maximum]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_value_that_does_not_count_samples_is_one_observation() -> None:
    observer = HistogramObserver(64)
    observer.update(np.float32([1, 2, 3]), 2)
    observer.update(np.float32([np.inf, -4]), 2)
    seen = observer.statistics()
    old = 1 - AVERAGING
    assert seen.average_minimum == pytest.approx((old * 1 - 4) / (old + 1))
    assert seen.average_maximum == pytest.approx((old * 3 - 4) / (old + 1))


def test_moving_average_clips_what_few_samples_reach() -> None:
    values = np.tile(np.float32([[-1, 2]]), (100, 1))
    values[40] = [-50, 70]
    observer = HistogramObserver()
    observer.update(values, 100)
    found = MovingAverage().estimate(observer.statistics(), U8)
    assert -2 < found.low < -1
    assert 2 < found.high < 4


def test_entropy_cuts_a_lone_outlier_and_keeps_what_is_even() -> None:
    rng = np.random.default_rng(0)
    bulk = rng.normal(0, 1, 200_000).astype(np.float32)
    cut = Entropy().estimate(observed(np.append(bulk, np.float32(60))), S8)
    assert 3.5 < cut.high < 8
    assert cut.low == pytest.approx(bulk.min())
    even = observed(rng.uniform(-1, 1, 100_000).astype(np.float32))
    assert Entropy().estimate(even, S8).magnitude > 0.99


def test_entropy_takes_the_threshold_of_least_divergence() -> None:
    """Against the textbook's loop over bins, written out from the slides."""
    values = np.random.default_rng(1).laplace(0, 1, 20_000).astype(np.float32)
    seen = observed(values, bins=2048)
    counts = seen.histogram[1024:] + seen.histogram[:1024][::-1]
    counts = counts[: int(np.ceil(np.abs(values).max() / seen.limit * 1024))].astype(float)
    counts[0] = counts[1]

    def divergence(bins: int) -> float:
        p = counts[:bins].copy()
        p[-1] += counts[bins:].sum()
        q = np.zeros(bins)
        groups = [
            int(np.searchsorted(np.arange(128) * bins // 128, i, "right")) for i in range(bins)
        ]
        for group in set(groups):
            inside = [i for i in range(bins) if groups[i] == group and counts[i]]
            for i in inside:
                q[i] = sum(counts[j] for j in inside) / len(inside)
        there = p > 0
        if (q[there] == 0).any():
            return np.inf
        p, q = p / p.sum(), q / (q.sum() + counts[bins:].sum())
        return float(np.sum(p[there] * np.log(p[there] / q[there])))

    width = 2 * seen.limit / 2048
    step = max(1, (len(counts) - 128) // 256)
    best = min(range(len(counts), 128, -step), key=divergence)
    found = Entropy().estimate(seen, S8)
    assert found.magnitude == pytest.approx(min(best * width, np.abs(values).max()))


def test_outliers_do_not_take_the_range() -> None:
    values = np.random.default_rng(0).normal(0, 1, 1_000_000).astype(np.float32)
    values[0] = 20.0
    assert MeanSquaredError().estimate(observed(values), U8).high < 12
    values[0] = 1000.0  # one clip of that costs more than coarse rounding of all the others
    assert MeanSquaredError().estimate(observed(values[:100_000]), U8).high > 900


@pytest.mark.parametrize(
    "estimator", [MinMax(), MovingAverage(), Percentile(), Entropy(), MeanSquaredError()]
)
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
