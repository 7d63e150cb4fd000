"""Intervals of a quality metric's drop, from the same samples seen by source and candidate.

All drops are positive where the candidate is worse. Pairing is what makes them sharp: samples on
which both agree say nothing about the difference, however hard they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from optimc.measure.statistics import ALPHA, Interval, normal_quantile, t_quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2000
GROUPS = 50
"""Groups of the jackknife that corrects the bootstrap for skewness."""

_BISECTIONS = 100


def proportion_drop(lost: int, won: int, n: int) -> Interval:
    """The drop of a share of right answers: `lost` samples only the source got right, `won` only
    the candidate, of `n` (at least 1).

    Tango's score interval holds its level for rare disagreement and small samples, and does not
    shrink to nothing where no sample disagrees: its ends are then ``+-z^2 / (n + z^2)``.

    Source: Tango, Statistics in Medicine 17 (1998) 891.
    """

    def end(alpha: float, side: int) -> float:
        return _tango_end(lost, won, n, normal_quantile(1 - alpha), side)

    return Interval(
        point=(lost - won) / n,
        ci95=(end(ALPHA / 2, -1), end(ALPHA / 2, 1)),
        lower=end(ALPHA, -1),
        upper=end(ALPHA, 1),
        n=n,
        method=f"Tango's score interval; {lost} samples lost and {won} won of {n}",
    )


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p-value of McNemar's test: how likely so uneven a split of the samples
    on which two models disagree is where neither is better.

    Twice the smaller tail of the binomial distribution of ``lost + won`` fair coins, 1 at most.

    Source: McNemar, Psychometrika 12 (1947) 153; the exact form: Fay, R Journal 2 (2010) 53.
    """
    from scipy.special import bdtr

    if lost + won == 0:
        return 1.0
    return min(2 * float(bdtr(min(lost, won), lost + won, 0.5)), 1.0)


def _tango_end(lost: int, won: int, n: int, z: float, side: int) -> float:
    """Where the score statistic, which falls in the difference, is ``-side z``."""
    inside, outside = (lost - won) / n, float(side)
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        if side * _tango_score(lost, won, n, middle) > -z:
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2


def _tango_score(lost: int, won: int, n: int, difference: float) -> float:
    b = -lost - won + (2 * n - lost + won) * difference
    c = -won * difference * (1 - difference)
    # The estimate of the rarer cell, where the difference is held at this value.
    cell = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * cell + difference * (1 - difference))
    distance = lost - won - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def mean_drop(differences: NDArray[np.float64]) -> Interval:
    """The mean of the samples' drops [n], n at least 2.

    A t interval, corrected for the skewness of the drops: few samples lose much and most lose
    little, and the plain interval then misses on one side two to three times as often as it says.

    Source: Hall, JRSS B 54 (1992) 221, his monotone cubic transformation of the t statistic.
    """
    import numpy as np

    n = len(differences)
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    error = deviation / math.sqrt(n)
    skewness = float(((differences - mean) ** 3).mean()) / deviation**3 if deviation > 0 else 0.0

    def end(probability: float) -> float:
        x = t_quantile(probability, n - 1)
        a = skewness / math.sqrt(n)
        # Solves t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 = x; for small a that is t = x.
        t = 3 / a * (float(np.cbrt(1 + a * (x - a / 6))) - 1) if abs(a) > 1e-6 else x
        return mean - t * error

    return Interval(
        point=mean,
        ci95=(end(1 - ALPHA / 2), end(ALPHA / 2)),
        lower=end(1 - ALPHA),
        upper=end(ALPHA),
        n=n,
        method="paired t interval, corrected for skewness",
    )


def statistic_drop(
    drop: Callable[[NDArray[np.intp]], float], n: int, seed: int, resamples: int = RESAMPLES
) -> Interval:
    """The drop of a statistic of the whole sample; `drop` takes the indices [m] of a resample.

    The bootstrap over samples, bias-corrected and accelerated: f1 and rank correlations are bounded
    and skewed near their best value, where percentiles of the bootstrap lie too far to one side.
    The acceleration comes from a delete-a-group jackknife, which costs 50 evaluations, not `n`.

    Source: Efron, JASA 82 (1987) 171.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    everything = np.arange(n)
    point = drop(everything)
    resampled = np.sort([drop(random.integers(0, n, n)) for _ in range(resamples)])
    below = np.count_nonzero(resampled < point) + np.count_nonzero(resampled == point) / 2
    bias = normal_quantile(min(max(float(below), 0.5), resamples - 0.5) / resamples)
    groups = np.array_split(random.permutation(n), min(n, GROUPS))
    left_out = np.array([drop(np.delete(everything, group)) for group in groups])
    acceleration = _acceleration(left_out)

    def end(probability: float) -> float:
        from scipy.special import ndtr

        z = bias + normal_quantile(probability)
        share = float(ndtr(bias + z / (1 - acceleration * z)))
        return float(np.quantile(resampled, share))

    return Interval(
        point=point,
        ci95=(end(ALPHA / 2), end(1 - ALPHA / 2)),
        lower=end(ALPHA),
        upper=end(1 - ALPHA),
        n=n,
        method=f"paired bootstrap of {resamples} resamples, bias-corrected and accelerated",
    )


def no_narrower(interval: Interval) -> Interval:
    """The interval of a bounded statistic (0 to 1), not narrower than its samples can know.

    A bootstrap of samples that all agree calls the drop known exactly. What none of `n` samples
    shows may still befall some: Tango's interval of no disagreement, ``+-z^2 / (n + z^2)``.
    """
    floor, point = proportion_drop(0, 0, interval.n), interval.point
    return replace(
        interval,
        ci95=(
            min(interval.ci95[0], point + floor.ci95[0]),
            max(interval.ci95[1], point + floor.ci95[1]),
        ),
        lower=min(interval.lower, point + floor.lower),
        upper=max(interval.upper, point + floor.upper),
        method=f"{interval.method}; no narrower than Tango's interval of no disagreement",
    )


def _acceleration(left_out: NDArray[np.float64]) -> float:
    distance = left_out.mean() - left_out
    square = float((distance**2).sum())
    return float((distance**3).sum()) / (6 * square**1.5) if square > 0 else 0.0


def group_drop(
    drop: float, left_out: NDArray[np.float64], sizes: NDArray[np.int64], samples: int
) -> Interval:
    """The drop of a statistic that can only be computed, not resampled.

    `left_out` [groups] holds the drop without each of at least 2 groups of `sizes` [groups]. The
    delete-m_j jackknife on ``groups - 1`` degrees of freedom; it needs a statistic that is smooth
    in the samples, and sees nothing of differences so rare that few groups hold one.

    Source: Busing, Meijer and van der Leeden, Statistics and Computing 9 (1999) 3.
    """
    groups = len(sizes)
    inverse = sizes.sum() / sizes
    pseudo = inverse * drop - (inverse - 1) * left_out
    center = groups * drop - float(((1 - 1 / inverse) * left_out).sum())
    error = math.sqrt(float(((pseudo - center) ** 2 / (inverse - 1)).sum()) / groups)
    wide = error * t_quantile(1 - ALPHA / 2, groups - 1)
    narrow = error * t_quantile(1 - ALPHA, groups - 1)
    return Interval(
        point=drop,
        ci95=(drop - wide, drop + wide),
        lower=drop - narrow,
        upper=drop + narrow,
        n=samples,
        method=f"paired jackknife over {groups} groups of samples",
    )
