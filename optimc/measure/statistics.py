"""Intervals of latencies: ratios over paired rounds, and percentiles by order statistics.

Runs of one session are alike, and two fresh sessions of the same engine differ by about 1 %: the
unit of sampling is therefore the *round* (a fresh session of each subject), not the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALPHA = 0.05
"""Two-sided error of `Interval.ci95`, and one-sided error of each of its ends lower and upper."""

TRIMMED = 0.2
"""Share of the rounds that is trimmed on each side (Wilcox's usual choice)."""

RUNS_BEYOND = 5
"""A percentile needs this many runs beyond it: p50 10 runs, p90 50, p99 500."""

_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its uncertainty, all in the unit of `point`.

    A value must stay at or below a limit: it passes when ``upper`` does, fails when ``lower`` lies
    beyond, and is undecided between. `n` counts what was sampled (samples, or rounds of sessions).
    """

    point: float
    ci95: tuple[float, float]
    """Both ends of the two-sided 95 % interval."""
    lower: float
    """The lower end of the one-sided 95 % interval that is open above."""
    upper: float
    """The upper end of the one-sided 95 % interval that is open below."""
    n: int
    method: str
    """How it was made, in words for the report."""


@dataclass(frozen=True, slots=True)
class Percentile:
    """A percentile of latency in milliseconds, with its two-sided 95 % interval."""

    ms: float
    ci95: tuple[float, float]
    runs: int


def normal_quantile(probability: float) -> float:
    """The quantile of the standard normal distribution."""
    # Of the standard library: a gate on ready reports need not wait for scipy.
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


def t_quantile(probability: float, degrees: float) -> float:
    """The quantile of Student's distribution with `degrees` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def trimmed_mean(values: NDArray[np.float64]) -> tuple[float, float, int]:
    """The trimmed mean of `values` [n], its standard error and its degrees of freedom.

    With ``h`` values left of ``n``, the error is ``s_w sqrt((n - 1) / (h (h - 1)))`` with the
    winsorized deviation ``s_w``, on ``h - 1`` degrees of freedom. Below 5 values nothing is
    trimmed, and this is the mean. Needs 2 values.

    Source: Tukey and McLaughlin, Sankhya A 25 (1963) 331; Wilcox, Introduction to Robust
    Estimation and Hypothesis Testing, section 4.3. Trimming matters: on a machine with noisy
    neighbours single rounds are off by tens of per cent, and t intervals 3 to 5 times as wide.
    """
    import numpy as np

    ordered = np.sort(values)
    n = len(ordered)
    cut = int(TRIMMED * n)
    left = n - 2 * cut
    winsorized = np.clip(ordered, ordered[cut], ordered[n - cut - 1])
    deviation = float(winsorized.std(ddof=1))
    error = deviation * math.sqrt((n - 1) / (left * (left - 1)))
    return float(ordered[cut : n - cut].mean()), error, left - 1


def ratio_interval(
    log_ratios: NDArray[np.float64],
    *,
    two_sided: float = ALPHA,
    one_sided: float = 2 * ALPHA,
) -> Interval | str:
    """The interval of a ratio from the logarithms [rounds] of the rounds' ratios.

    `two_sided` is the nominal two-sided error for `ci95`; `one_sided` that of the two-sided
    interval whose ends are `lower` and `upper` (`optimc.measure.sequential` lowers both where the
    data are looked at several times). Returns the reason where there are fewer than 2 rounds.
    """
    import numpy as np

    rounds = len(log_ratios)
    if rounds < 2:
        return f"needs 2 rounds of fresh sessions, has {rounds}: allow more time"
    center, error, degrees = trimmed_mean(np.asarray(log_ratios, dtype=np.float64))
    wide = error * t_quantile(1 - two_sided / 2, degrees)
    narrow = error * t_quantile(1 - one_sided / 2, degrees)
    return Interval(
        point=_ratio(center),
        ci95=(_ratio(center - wide), _ratio(center + wide)),
        lower=_ratio(center - narrow),
        upper=_ratio(center + narrow),
        n=rounds,
        method="t interval of the trimmed mean of the rounds' log ratios",
    )


def _ratio(logarithm: float) -> float:
    # Two rounds can give an absurdly wide interval: its ends stay finite and above zero.
    return math.exp(min(max(logarithm, -600.0), 600.0))


def percentile(rounds: Sequence[NDArray[np.int64]], q: float) -> Percentile | str:
    """The percentile `q` (0 to 1) of the runs of all rounds, from nanoseconds [runs] a round.

    The interval is made of order statistics. Runs of one session are alike, so the number of runs
    is first divided by the design effect of the rounds (how much more the share of runs below the
    percentile varies from round to round than independent runs would). An end that would lie
    beyond the largest run is the largest run. Returns the reason where the sample does not
    support the percentile.

    Source: Woodruff, JASA 47 (1952) 635, with the effective sample size of Korn and Graubard,
    Survey Methodology 24 (1998) 193, in the interval of Clopper and Pearson.
    """
    import numpy as np

    runs = sum(len(samples) for samples in rounds)
    needed = round(RUNS_BEYOND / (1 - max(q, 1 - q)))
    if runs < needed:
        return f"needs {needed} runs, has {runs}"
    if len(rounds) < 2:
        return f"needs 2 rounds of fresh sessions, has {len(rounds)}"
    ordered = np.sort(np.concatenate(rounds)) / _NS_PER_MS
    value = float(np.quantile(ordered, q, method="linear"))
    below = np.array([np.count_nonzero(s <= value * _NS_PER_MS) for s in rounds], dtype=np.float64)
    sizes = np.array([len(samples) for samples in rounds], dtype=np.float64)
    low, high = _shares(q, _effective_runs(below, sizes))
    first = min(max(int(low * runs), 0), runs - 1)
    last = min(max(math.ceil(high * runs) - 1, 0), runs - 1)
    return Percentile(value, (float(ordered[first]), float(ordered[last])), runs)


def _effective_runs(below: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """How many independent runs say as much as these, of which `below` of `sizes` lie below."""
    rounds, runs = len(sizes), float(sizes.sum())
    share = float(below.sum()) / runs
    independent = share * (1 - share) / runs
    clustered = rounds / (rounds - 1) * float(((below - share * sizes) ** 2).sum()) / runs**2
    effect = max(clustered / independent, 1.0) if independent > 0 else 1.0
    # The variance between few rounds is itself known badly.
    known = t_quantile(1 - ALPHA / 2, runs - 1) / t_quantile(1 - ALPHA / 2, rounds - 1)
    return max(runs / effect * known**2, 1.0)


def _shares(q: float, n: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share `q` seen in `n` (not always whole) runs."""
    from scipy.special import betaincinv

    hits, misses = q * n, (1 - q) * n
    return (
        float(betaincinv(hits, misses + 1, ALPHA / 2)),
        float(betaincinv(hits + 1, misses, 1 - ALPHA / 2)),
    )


def samples_to_decide(interval: Interval, limit: float) -> int | None:
    """About how many samples (rounds) would move the whole interval to one side of `limit`.

    Supposes that the point stays and the one-sided ends close in as ``1 / sqrt(n)``; rounded up to
    two digits, never below ``interval.n``. None where the point lies on the limit.
    """
    distance = limit - interval.point
    half = interval.upper - interval.point if distance > 0 else interval.point - interval.lower
    if distance == 0 or not math.isfinite(half / distance):
        return None
    needed = interval.n * (half / distance) ** 2
    if needed <= interval.n:
        return interval.n
    step = 10.0 ** max(math.floor(math.log10(needed)) - 1, 0)
    return int(math.ceil(needed / step) * step)
