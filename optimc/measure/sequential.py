"""Looking at the data several times without losing the coverage of the intervals.

Who stops as soon as a 95 % interval says what he hoped for is wrong more often than 5 %. Alpha
spending (Lan and DeMets, Biometrika 70 (1983) 659) shares the error out over the looks; here by
the power family ``alpha t**1.5`` of Kim and DeMets (Biometrika 74 (1987) 149), where ``t`` is the
share of the time that is up. Looks by the clock may be unevenly spaced, and their number need not
be known, as long as they do not depend on the data (Lan and DeMets, Statistics in Medicine 8
(1989) 1191). The intervals at the nominal levels hold at all looks together, whatever the rule
for stopping (repeated confidence intervals: Jennison and Turnbull, JRSS B 51 (1989) 305). For few
rounds, the nominal level is applied to Student's t (Jennison and Turnbull, Group Sequential
Methods (2000), section 4.4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POWER = 1.5

_GRID = 201


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the data: after so many rounds, when this share of the time was up."""

    rounds: int
    share: float
    """Above 0; 1 at the last look, which spends what is left."""


@dataclass(frozen=True, slots=True)
class _Walk:
    """The density of the score (a Brownian motion) where no look has stopped it, as masses."""

    at: NDArray[np.float64]
    mass: NDArray[np.float64]


def nominal_level(looks: tuple[Look, ...], alpha: float) -> float:
    """The two-sided error to use at the last of `looks`, so that all looks together have `alpha`.

    Recursive numerical integration: Armitage, McPherson and Rowe, JRSS A 132 (1969) 235.
    """
    if len(looks) == 1 and looks[0].share >= 1:
        return alpha
    from scipy.special import ndtr

    return float(2 * ndtr(-_bound(looks, alpha)))


@cache
def _bound(looks: tuple[Look, ...], alpha: float) -> float:
    """The z value that the walk passes first at the last look with the probability to spend."""
    *earlier, last = looks
    spent = alpha * earlier[-1].share ** POWER if earlier else 0.0
    spend = alpha * min(last.share, 1.0) ** POWER - spent
    step = last.rounds - (earlier[-1].rounds if earlier else 0)
    if step <= 0:
        raise ValueError("looks need more rounds each time")
    walk = _walk(tuple(earlier), alpha) if earlier else None
    low, high = 0.0, 12.0
    for _ in range(50):
        middle = (low + high) / 2
        if _crossing(walk, middle * math.sqrt(last.rounds), step) > spend:
            low = middle
        else:
            high = middle
    return high


@cache
def _walk(looks: tuple[Look, ...], alpha: float) -> _Walk:
    """The walk after the last of `looks`."""
    *earlier, last = looks
    before = _walk(tuple(earlier), alpha) if earlier else None
    step = last.rounds - (earlier[-1].rounds if earlier else 0)
    return _continue(before, _bound(looks, alpha) * math.sqrt(last.rounds), step)


def _crossing(walk: _Walk | None, edge: float, step: int) -> float:
    from scipy.special import ndtr

    root = math.sqrt(step)
    if walk is None:
        return float(2 * ndtr(-edge / root))
    outside = ndtr((walk.at - edge) / root) + ndtr((-edge - walk.at) / root)
    return float(walk.mass @ outside)


def _continue(walk: _Walk | None, edge: float, step: int) -> _Walk:
    import numpy as np

    at = np.linspace(-edge, edge, _GRID)
    start = np.zeros(1) if walk is None else walk.at
    mass = np.ones(1) if walk is None else walk.mass
    kernel = np.exp(-((at[:, None] - start) ** 2) / (2 * step)) / math.sqrt(2 * math.pi * step)
    width = np.full(_GRID, at[1] - at[0])
    width[[0, -1]] /= 2
    return _Walk(at, kernel @ mass * width)
