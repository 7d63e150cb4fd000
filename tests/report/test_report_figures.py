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
    assert figures.percent(0.9996) == "99.96 %"
    assert figures.percent(0.99949) == "99.9 %"
    assert figures.percent(0.993) == "99.3 %"
    assert figures.percent(0.0712) == "7.1 %"
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
        (4.63, (4.46, 4.81), "4.63 ± 0.18"),
        (5.2, (4.6, 5.8), "5.2 ± 0.6"),
        (5.2, (4.9, 5.8), "5.2 [4.9, 5.8]"),
        (5.0, (4.46, 5.60), "5.00 [4.46, 5.60]"),
        (0.5, (0.1, 2.1), "0.5 [0.1, 2.1]"),
        (0.5, (0.6, 0.9), "0.5 [0.6, 0.9]"),
    ],
)
def test_an_estimate_has_as_many_digits_as_its_interval_supports(
    value: float, ends: figures.Ends, text: str
) -> None:
    assert figures.estimate(value, ends) == text


@pytest.mark.parametrize("value", [0.07, 0.9, 5.0, 123.0])
@pytest.mark.parametrize("below", [0.02, 0.31, 0.6])
@pytest.mark.parametrize("above", [0.02, 0.35, 0.6, 4.0])
def test_the_short_form_says_the_interval_to_one_in_its_last_digit(
    value: float, below: float, above: float
) -> None:
    low, high = value * (1 - below), value * (1 + above)
    text = figures.estimate(value, (low, high))
    if " ± " not in text:
        return
    shown, half = text.split(" ± ")
    last = 10.0 ** -len(half.partition(".")[2]) if "." in half else 1.0
    assert float(shown) - float(half) == pytest.approx(low, abs=2.01 * last)
    assert float(shown) + float(half) == pytest.approx(high, abs=2.01 * last)


def test_narrow_columns_set_lopsided_ends_below_the_value() -> None:
    assert figures.stacked(0.004, (0.001, 0.007)) == "0.004 ± 0.003"
    assert figures.stacked(0.004, (0.003, 0.009), "×") == "0.004×\n[0.003, 0.009]"
    assert figures.bracketed(0.004, (0.003, 0.009), "×") == "0.004× [0.003, 0.009]"


def test_a_value_apart_from_its_ends_has_no_more_digits_than_they_have() -> None:
    assert figures.parts(4.6318, (3.1, 7.25), "×") == ("4.6×", "[3.1, 7.2]")
    assert figures.parts(4.6318, Skipped(skipped="one sample"), "×") == ("4.632×", "")
