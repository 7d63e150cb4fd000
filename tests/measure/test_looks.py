"""Looking several times keeps the error: alpha spending."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from optimc.measure.sequential import Look, nominal_level


def bounds(looks: tuple[Look, ...], alpha: float) -> list[float]:
    """The z value at each look."""
    return [-float(ndtri(nominal_level(looks[: k + 1], alpha) / 2)) for k in range(len(looks))]


def test_a_single_look_costs_nothing():
    assert nominal_level((Look(12, 1.0),), 0.05) == 0.05


def test_the_first_look_spends_its_share():
    assert nominal_level((Look(6, 0.25),), 0.05) == pytest.approx(0.05 * 0.25**1.5, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.1])
@pytest.mark.parametrize(
    "looks",
    [
        (Look(6, 0.15), Look(12, 0.3), Look(24, 0.6), Look(40, 1.0)),
        # Rounds that grow slower as time goes by: the clock and the information part.
        (Look(20, 0.15), Look(30, 0.4), Look(33, 1.0)),
    ],
)
def test_all_looks_together_err_as_often_as_said(looks, alpha):
    steps = np.random.default_rng(5).normal(size=(100_000, looks[-1].rounds))
    walk = np.cumsum(steps, axis=1)
    crossed = np.zeros(len(walk), dtype=bool)
    for look, bound in zip(looks, bounds(looks, alpha), strict=True):
        crossed |= np.abs(walk[:, look.rounds - 1]) > bound * np.sqrt(look.rounds)
    assert crossed.mean() == pytest.approx(alpha, abs=0.003)


def test_the_last_look_keeps_nearly_all_precision():
    looks = (Look(6, 0.15), Look(12, 0.3), Look(24, 0.6), Look(40, 1.0))
    found = bounds(looks, 0.05)
    assert found == sorted(found, reverse=True)
    assert found[-1] < 1.08 * 1.96


def test_looks_without_new_rounds_are_refused():
    with pytest.raises(ValueError, match="more rounds"):
        nominal_level((Look(6, 0.2), Look(6, 1.0)), 0.05)
