"""Ratios over rounds, percentiles, and how many samples would decide."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optimc.measure.statistics import (
    Interval,
    Percentile,
    percentile,
    ratio_interval,
    samples_to_decide,
    trimmed_mean,
)


def test_a_ratio_of_quiet_rounds_is_known_closely():
    interval = ratio_interval(np.log([2.0, 2.02, 1.98, 2.01, 1.99, 2.0]))
    assert isinstance(interval, Interval)
    assert interval.point == pytest.approx(2.0, rel=1e-3)
    assert interval.ci95[0] < interval.lower < interval.point < interval.upper < interval.ci95[1]
    assert interval.ci95[1] / interval.ci95[0] < 1.04
    assert interval.n == 6


def test_one_round_gives_a_reason_and_no_ratio():
    assert ratio_interval(np.array([0.1])) == (
        "needs 2 rounds of fresh sessions, has 1: allow more time"
    )


def test_two_wild_rounds_stay_finite_and_positive():
    interval = ratio_interval(np.array([-200.0, 200.0]), two_sided=1e-6)
    assert isinstance(interval, Interval)
    assert 0 < interval.ci95[0] < interval.ci95[1] < math.inf


def test_disturbed_rounds_do_not_widen_the_ratio():
    quiet = np.random.default_rng(1).normal(0, 0.01, 20)
    disturbed = quiet.copy()
    disturbed[[3, 11]] += [0.7, -0.5]
    plain = ratio_interval(quiet)
    hit = ratio_interval(disturbed)
    assert isinstance(plain, Interval)
    assert isinstance(hit, Interval)
    assert hit.ci95[1] / hit.ci95[0] - 1 < 2 * (plain.ci95[1] / plain.ci95[0] - 1)


def test_the_trimmed_mean_of_few_values_is_the_mean():
    values = np.array([1.0, 2.0, 3.0, 10.0])
    mean, error, degrees = trimmed_mean(values)
    assert mean == 4.0
    assert error == pytest.approx(values.std(ddof=1) / 2)
    assert degrees == 3


@pytest.mark.parametrize("rounds", [6, 12, 30])
@pytest.mark.parametrize("noise", ["normal", "heavy", "bimodal"])
def test_ratios_cover_at_their_level(rounds, noise):
    random = np.random.default_rng(7)
    size = (1500, rounds)
    draws = random.normal(0, 0.01, size)
    if noise == "heavy":
        draws *= np.where(random.random(size) < 0.1, 20, 1)
    if noise == "bimodal":
        modes = np.array([0.0, 0.0, 0.1])
        draws += random.choice(modes, size) - random.choice(modes, size)
    intervals = [ratio_interval(row) for row in draws]
    inside = [i.ci95[0] <= 1 <= i.ci95[1] for i in intervals if isinstance(i, Interval)]
    below = [i.lower <= 1 for i in intervals if isinstance(i, Interval)]
    above = [i.upper >= 1 for i in intervals if isinstance(i, Interval)]
    # 95 % within the noise of 1,500 trials; two modes in few rounds err on the safe side.
    assert 0.93 <= np.mean(inside) <= 0.99
    assert 0.93 <= np.mean(below) <= 0.98
    assert 0.93 <= np.mean(above) <= 0.98


def test_percentiles_say_how_many_runs_they_need():
    rounds = [np.full(100, 1_000_000)] * 4
    assert percentile(rounds, 0.99) == "needs 500 runs, has 400"
    assert percentile([np.arange(9)], 0.5) == "needs 10 runs, has 9"
    assert percentile([np.arange(10)], 0.5) == "needs 2 rounds of fresh sessions, has 1"
    assert isinstance(percentile(rounds, 0.9), Percentile)


def test_percentiles_are_in_milliseconds():
    runs = np.arange(1, 1001) * 1_000_000
    rounds = np.split(np.random.default_rng(0).permutation(runs), 10)
    found = percentile(rounds, 0.9)
    assert isinstance(found, Percentile)
    assert found.ms == pytest.approx(900.1)
    assert found.ci95[0] < 900 < found.ci95[1]
    assert found.runs == 1000


@pytest.mark.parametrize(("q", "runs"), [(0.5, 20), (0.9, 40), (0.99, 100)])
def test_percentiles_cover_although_runs_of_a_session_are_alike(q, runs):
    """Sessions have luck of their own: counted as independent, the runs would say too much."""
    random = np.random.default_rng(3)

    def sample(rounds: int) -> list[np.ndarray]:
        luck = random.normal(0, 0.05, (rounds, 1))
        noise = random.exponential(0.05, (rounds, runs))
        return list((1e6 * np.exp(luck + noise)).astype(np.int64))

    true = float(np.quantile(np.concatenate(sample(20_000)), q)) / 1e6
    found = [percentile(sample(15), q) for _ in range(400)]
    inside = [p.ci95[0] <= true <= p.ci95[1] for p in found if isinstance(p, Percentile)]
    assert len(inside) == 400
    assert np.mean(inside) >= 0.92


def test_samples_to_decide_is_what_it_takes():
    undecided = Interval(0.004, (0.0005, 0.0075), 0.001, 0.007, 500, "")
    needed = samples_to_decide(undecided, 0.005)
    assert needed == 4500
    half = 0.003 * math.sqrt(500 / needed)
    assert undecided.point + half == pytest.approx(0.005, abs=2e-5)
    assert samples_to_decide(undecided, 0.003) == 4500
    assert samples_to_decide(undecided, 0.1) == 500
    assert samples_to_decide(undecided, 0.004) is None
