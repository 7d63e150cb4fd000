from __future__ import annotations

import math

import pytest

from optimc.report import figures
from optimc.report.values import Skipped


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (3.96, "3.96"),
        (12345.6, "12,346"),
        (0.00123456, "0.00123"),
        (-0.5, "−0.500"),
        (2.1e-6, "2.10e-06"),
        (3e9, "3.00e+09"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert figures.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.8853, "0.8853"), (0.0, "0.0000"), (0.0008, "0.0008"), (1234.5, "1,234")]
)
def test_metrics_have_four_decimals(value: float, text: str) -> None:
    assert figures.metric(value) == text


def test_units() -> None:
    assert figures.size(935_000) == "935 kB"
    assert figures.size(3_446_120) == "3.45 MB"
    assert figures.percent(0.946) == "94.6 %"
    assert figures.percent(0.0) == "0 %"
    assert figures.percent(1.0) == "100 %"
    assert figures.seconds(0.02) == "20 ms"
    assert figures.seconds(4.14) == "4.1 s"
    assert figures.count(1, "pass", "passes") == "1 pass"
    assert figures.count(1200, "node") == "1,200 nodes"


@pytest.mark.parametrize(
    ("value", "ends", "text"),
    [
        (0.004, (0.001, 0.007), "0.004 ± 0.003"),
        (0.0008, (-0.0006, 0.0022), "0.0008 ± 0.0014"),
        (2.251, (2.226, 2.276), "2.251 ± 0.025"),
        (0.004, (0.003, 0.009), "0.004 [0.003, 0.009]"),
        (0.0, (0.0, 0.0), "0 ± 0"),
        (-0.0001, (-0.003, 0.0028), "−0.0001 ± 0.0029"),
        (100.0, (80.0, 120.0), "100 ± 20"),
        (0.5, Skipped(skipped="one sample"), "0.5"),
    ],
)
def test_an_estimate_has_as_many_digits_as_its_interval_supports(
    value: float, ends: figures.Ends, text: str
) -> None:
    assert figures.estimate(value, ends) == text


def test_narrow_columns_show_the_larger_half() -> None:
    assert figures.plus_minus(0.004, (0.003, 0.009)) == "0.004 ± 0.005"
    assert figures.bracketed(0.004, (0.003, 0.009), "×") == "0.004× [0.003, 0.009]"
    assert figures.ends((0.003, 0.009)) == "[0.003, 0.009]"
    assert figures.ends(Skipped(skipped="one sample")) == ""
