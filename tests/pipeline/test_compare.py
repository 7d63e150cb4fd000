"""Comparing outputs: bits, scale, noise, and what no tolerance excuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optimc.pipeline.compare import compare_arrays, compare_on_data, compare_outputs
from optimc.pipeline.probes import Probe


def _one(*arrays):
    return [{"y": np.asarray(array, dtype=np.float32)} for array in arrays]


def test_equal_outputs_are_bit_equal_with_infinite_sqnr() -> None:
    found = compare_outputs(_one([1, 2]), _one([1, 2]), ["y"])
    assert found.bit_equal
    assert found.max_abs == 0
    assert found.sqnr_db == math.inf


def test_minus_zero_is_not_bit_equal_to_zero() -> None:
    found = compare_outputs(_one([0.0]), _one([-0.0]), ["y"])
    assert not found.bit_equal
    assert found.max_abs == 0


def test_the_error_is_relative_to_the_outputs_greatest_magnitude_over_all_probes() -> None:
    found = compare_outputs(_one([100.0, 1.0], [0.001]), _one([100.0, 1.5], [0.002]), ["y"])
    assert found.max_abs == pytest.approx(0.5)
    assert found.max_rel == pytest.approx(0.005)


def test_sqnr_is_ten_times_the_logarithm_of_signal_over_noise() -> None:
    found = compare_outputs(_one([3.0, 4.0]), _one([3.0, 4.5]), ["y"])
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25))


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [
        ([1.0, math.nan], [1.0, 2.0], "NaN or infinity"),
        ([1.0, math.inf], [1.0, -math.inf], "NaN or infinity"),
        ([1.0, 2.0], [1.0, math.inf], "NaN or infinity"),
        ([1.0, 2.0], [[1.0, 2.0]], "shape"),
    ],
)
def test_what_no_tolerance_excuses(expected, actual, message) -> None:
    broken = compare_outputs(_one(expected), _one(actual), ["y"]).broken
    assert broken is not None
    assert message in broken


def test_nan_and_infinity_at_the_same_places_match() -> None:
    values = [math.nan, math.inf, -math.inf, 1.0]
    found = compare_outputs(_one(values), _one(values), ["y"])
    assert found.broken is None
    assert found.max_abs == 0


def test_integers_must_be_equal() -> None:
    a, b = np.array([1, 2]), np.array([1, 3])
    assert compare_arrays(a, a, "y").broken is None
    assert compare_arrays(a, b, "y").broken == "output `y`: 1 of 2 elements differ"


def test_a_missing_output_is_named() -> None:
    assert compare_outputs([{"y": np.zeros(1)}], [{"z": np.zeros(1)}], ["y"]).broken == (
        "output `y` is missing"
    )


def test_noise_is_taken_from_real_data_where_there_is_any() -> None:
    probes = [Probe("seeded", {}), Probe("sample", {}, real=True)]
    reference, candidate = _one([1.0], [1.0]), _one([9.0], [1.1])
    on_data = compare_on_data(probes, reference, candidate, ["y"])
    assert on_data.sqnr_db == pytest.approx(20.0, abs=0.01)
    everywhere = compare_on_data([Probe("a", {}), Probe("b", {})], reference, candidate, ["y"])
    assert everywhere.sqnr_db < 0
