"""Intervals of drops from the same samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial, norm

from optimc.measure import paired
from optimc.measure.paired import group_drop, mean_drop, proportion_drop, statistic_drop


def likelihood_score(lost: int, won: int, n: int, difference: float) -> float:
    """The score statistic by maximising the likelihood numerically: what Tango solves."""
    low, high = max(0.0, -difference), (1 - difference) / 2

    def negative(cell: float) -> float:
        parts = [
            (lost, cell + difference),
            (won, cell),
            (n - lost - won, 1 - 2 * cell - difference),
        ]
        return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

    cell = minimize_scalar(negative, bounds=(low, high), options={"xatol": 1e-12}).x
    variance = n * (2 * cell + difference - difference**2)
    return (lost - won - n * difference) / math.sqrt(variance)


@pytest.mark.parametrize(("lost", "won", "n"), [(12, 9, 73), (3, 0, 500), (40, 31, 5000)])
def test_shares_end_where_the_likelihood_says(lost, won, n):
    interval = proportion_drop(lost, won, n)
    assert interval.point == pytest.approx((lost - won) / n)
    ends = zip(interval.ci95, (1.959964, -1.959964), strict=True)
    for end, z in [*ends, (interval.lower, 1.644854), (interval.upper, -1.644854)]:
        assert likelihood_score(lost, won, n, end) == pytest.approx(z, abs=2e-3)


def test_no_disagreement_is_no_certainty():
    z2 = norm.ppf(0.975) ** 2
    interval = proportion_drop(0, 0, 600)
    assert interval.ci95 == pytest.approx((-z2 / (600 + z2), z2 / (600 + z2)))


def test_extreme_shares_stay_in_range():
    assert proportion_drop(10, 0, 10).ci95[1] == pytest.approx(1.0)
    assert proportion_drop(0, 10, 10).ci95[0] == pytest.approx(-1.0)
    assert proportion_drop(1, 0, 1).lower < 0


@pytest.mark.parametrize(
    ("n", "p_lost", "p_won"), [(5000, 0.002, 0.001), (600, 0.004, 0.001), (500, 0.01, 0.01)]
)
def test_shares_cover_where_disagreement_is_rare(n, p_lost, p_won):
    """Exact, by summing over what can happen."""
    most = int(n * max(p_lost, p_won) + 7 * math.sqrt(n * max(p_lost, p_won)) + 4)
    true, inside, below, above = p_lost - p_won, 0.0, 0.0, 0.0
    for lost in range(most):
        for won in range(most):
            weight = multinomial.pmf(
                [lost, won, n - lost - won], n, [p_lost, p_won, 1 - p_lost - p_won]
            )
            if weight < 1e-6:
                continue
            interval = proportion_drop(lost, won, n)
            inside += weight * (interval.ci95[0] <= true <= interval.ci95[1])
            below += weight * (interval.lower <= true)
            above += weight * (interval.upper >= true)
    assert 0.94 <= inside <= 0.985
    assert 0.93 <= below <= 0.975
    assert 0.93 <= above <= 0.975


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("sign", [1, -1])
def test_means_of_skewed_drops_cover_on_each_side(n, sign):
    draws = sign * np.random.default_rng(2).exponential(1.0, (2000, n))
    intervals = [mean_drop(row) for row in draws]
    assert 0.935 <= np.mean([i.ci95[0] <= sign <= i.ci95[1] for i in intervals]) <= 0.965
    assert 0.935 <= np.mean([i.lower <= sign for i in intervals]) <= 0.965
    assert 0.935 <= np.mean([i.upper >= sign for i in intervals]) <= 0.965


def test_a_mean_without_skewness_has_the_t_interval():
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) + 3
    interval = mean_drop(values)
    half = 2.776445 * values.std(ddof=1) / math.sqrt(5)
    assert interval.ci95 == pytest.approx((3 - half, 3 + half), rel=1e-5)


def test_equal_samples_have_a_drop_of_zero():
    interval = mean_drop(np.zeros(10))
    assert (interval.point, interval.ci95) == (0.0, (0.0, 0.0))


def test_the_bootstrap_repeats_with_its_seed():
    values = np.random.default_rng(0).normal(size=60)

    def drop(chosen: np.ndarray) -> float:
        return float(np.median(values[chosen]))

    assert statistic_drop(drop, 60, 1) == statistic_drop(drop, 60, 1)
    assert statistic_drop(drop, 60, 1) != statistic_drop(drop, 60, 2)


def test_the_bootstrap_covers_and_leans_the_right_way(monkeypatch):
    monkeypatch.setattr(paired, "RESAMPLES", 400)
    draws = np.random.default_rng(4).exponential(1.0, (200, 80))
    intervals = [
        statistic_drop(lambda chosen, row=row: float(row[chosen].mean()), 80, seed)
        for seed, row in enumerate(draws)
    ]
    assert np.mean([i.ci95[0] <= 1 <= i.ci95[1] for i in intervals]) >= 0.90
    right = np.mean([i.ci95[1] - i.point for i in intervals])
    left = np.mean([i.point - i.ci95[0] for i in intervals])
    assert right > 1.15 * left


@pytest.mark.parametrize("n", [400, 205])
def test_groups_cover_for_a_mean(n):
    groups = np.arange(n) % 20
    sizes = np.bincount(groups)

    def interval(row: np.ndarray):
        left_out = np.array([row[groups != g].mean() for g in range(20)])
        return group_drop(float(row.mean()), left_out, sizes, n)

    draws = np.random.default_rng(6).exponential(1.0, (1000, n))
    found = [interval(row) for row in draws]
    assert 0.93 <= np.mean([i.ci95[0] <= 1 <= i.ci95[1] for i in found]) <= 0.97


def test_one_sample_groups_give_the_t_interval_of_a_mean():
    values = np.array([1.0, 2.0, 4.0, 7.0])
    left_out = np.array([np.delete(values, i).mean() for i in range(4)])
    interval = group_drop(3.5, left_out, np.ones(4, dtype=np.int64), 4)
    half = 3.182446 * values.std(ddof=1) / 2
    assert interval.ci95 == pytest.approx((3.5 - half, 3.5 + half), rel=1e-5)
