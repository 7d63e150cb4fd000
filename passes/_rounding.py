"""Which weights of a linear layer to round up and which down. Works on arrays.

Rounding to nearest minimises the error of each weight, not that of the layer's output. With rows x
of inputs, wanted outputs y, a scale s and integers q of a layer, the squared error of the output is

    E |x (s q) - y|^2  =  (s q)^T G (s q) - 2 (s q)^T C + const,    G = E[x^T x],  C = E[x^T y]

over ``q = floor(w / s) + h`` with h of 0 or 1 for each weight: a quadratic problem in h for each
output channel (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
arXiv:2004.10568, section 3). As there, h is relaxed to a rectified sigmoid that a
regularizer drives to 0 or 1, here with Adam on G and C, so on all rows at once.
Then weights are turned, one or two at a time, as long as that makes the error less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_RIDGE = 1e-4
"""Share of G's mean diagonal that pulls towards the float weights: few samples leave G singular."""
_ZETA, _GAMMA = 1.1, -0.1
_WARM = 0.2
"""The share of the iterations without the regularizer."""
_SWEEPS = 20
_RELAX_WORK = 10**12
"""Largest G * K * K * O * iterations for which the relaxation is tried: about two minutes."""
_PAIR_WORK = 50_000_000
"""Largest K * K * O * G for which two weights are turned at a time: seconds a sweep."""


@dataclass(frozen=True)
class Problem:
    """One layer: `weight` and `scale` [G, K, O], integers within +-`limit`.

    `gram` is [G, K, K], `cross` [G, K, O]: see the module.
    """

    weight: Floats
    scale: Floats
    limit: int
    gram: Floats
    cross: Floats

    def ridged(self) -> Problem:
        """The same with the pull towards the float weights."""
        size = self.gram.shape[-1]
        mean = np.trace(self.gram, axis1=1, axis2=2)[:, None, None] / size
        pull = _RIDGE * np.maximum(mean, 1e-30)
        gram = self.gram + pull * np.eye(size)
        cross = self.cross + pull * self.weight
        return Problem(self.weight, self.scale, self.limit, gram, cross)

    def nearest(self) -> Floats:
        """The integers of rounding to nearest [G, K, O]."""
        return np.clip(np.rint(self.weight / self.scale), -self.limit, self.limit)

    def error(self, integers: Floats) -> Floats:
        """The squared error [G, O] of the outputs, up to a constant."""
        values = self.scale * integers
        result: Floats = (values * (self.gram @ values - 2 * self.cross)).sum(axis=1)
        return result


def fitted(problem: Problem, iterations: int) -> Floats:
    """The integers [G, K, O]; in no output channel worse than rounding to nearest."""
    ridged = problem.ridged()
    nearest = problem.nearest()
    best = polished(ridged, nearest)
    if iterations and ridged.gram.size * nearest.shape[2] * iterations <= _RELAX_WORK:
        other = polished(ridged, relaxed(ridged, iterations))
        better = ridged.error(other) < ridged.error(best)
        best = np.where(better[:, None, :], other, best)
    worse = problem.error(best) > problem.error(nearest)
    return np.where(worse[:, None, :], nearest, best)


def relaxed(problem: Problem, iterations: int) -> Floats:
    """The integers after minimising over the rectified sigmoid."""
    low = np.floor(problem.weight / problem.scale)
    share = np.clip(problem.weight / problem.scale - low, 0.0, 1.0)
    v = -np.log((_ZETA - _GAMMA) / (share - _GAMMA) - 1)
    moved = problem.scale * problem.nearest() - problem.weight
    norm = (moved * (problem.gram @ moved)).sum(axis=1, keepdims=True)
    norm = np.maximum(norm, 1e-12 * max(float(norm.max(initial=0.0)), 1e-30))
    strength = 0.5 / problem.weight.shape[1]
    first, second = np.zeros_like(v), np.zeros_like(v)
    for step in range(iterations):
        sigmoid = 1 / (1 + np.exp(-v))
        stretched = sigmoid * (_ZETA - _GAMMA) + _GAMMA
        h = np.clip(stretched, 0.0, 1.0)
        values = problem.scale * np.clip(low + h, -problem.limit, problem.limit)
        slope = 2 * problem.scale * (problem.gram @ values - problem.cross) / norm
        done = step / iterations
        if done >= _WARM:
            beta = 2 + 18 * 0.5 * (1 + np.cos(np.pi * (done - _WARM) / (1 - _WARM)))
            far = 2 * h - 1
            slope -= strength * 2 * beta * np.sign(far) * np.abs(far) ** (beta - 1)
        inside = (stretched > 0) & (stretched < 1)
        slope *= inside * (_ZETA - _GAMMA) * sigmoid * (1 - sigmoid)
        first += 0.1 * (slope - first)
        second += 0.001 * (slope * slope - second)
        mean, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        v -= 0.02 * mean / (np.sqrt(square) + 1e-8)
    # What is an integer already has no other side: pruned weights stay 0.
    up = (v > 0) & (share > 0)
    rounded: Floats = np.clip(low + up, -problem.limit, problem.limit)
    return rounded


def polished(problem: Problem, integers: Floats) -> Floats:
    """Turns weights between down and up, one or two of each output channel at a time, while that
    makes the error less.

    Two at a time find what no single one does, but only where the layer is small enough.
    """
    search = _Search(problem, integers)
    pairs = integers.size * integers.shape[1] <= _PAIR_WORK
    for sweep in range(_SWEEPS):
        turned = 0
        for k in range(integers.shape[1]):
            turned += search.turn(k)
            if pairs and sweep > 0:
                turned += search.turn_with_partner(k)
        if not turned and sweep > 0:
            break
    return search.integers


class _Search:
    """Integers on their way to a lower error; `slope` is ``G s q - C``, kept up to date."""

    def __init__(self, problem: Problem, integers: Floats) -> None:
        self._gram, self._scale = problem.gram, problem.scale
        self._diagonal = np.diagonal(problem.gram, axis1=1, axis2=2)[:, :, None]
        ratio = problem.weight / problem.scale
        low, high = np.floor(ratio), np.ceil(ratio)
        self._both = low.clip(-problem.limit, problem.limit) + high.clip(
            -problem.limit, problem.limit
        )
        self._slope = problem.gram @ (problem.scale * integers) - problem.cross
        self._noise = 1e-12 * float(np.abs(problem.error(integers)).max(initial=0.0))
        self.integers = integers.copy()

    def turn(self, k: int) -> int:
        """Turns weight `k` in the channels where that helps; how many these are."""
        step = self._both[:, k] - 2 * self.integers[:, k]
        move = step * self._scale[:, k]
        gain = move * (2 * self._slope[:, k] + move * self._diagonal[:, k])
        better = gain < -self._noise
        if better.any():
            self.integers[:, k] += np.where(better, step, 0.0)
            self._slope += self._gram[:, :, k, None] * np.where(better, move, 0.0)[:, None]
        return int(better.sum())

    def turn_with_partner(self, k: int) -> int:
        """Turns weight `k` together with the best other one, in the channels where that helps."""
        steps = self._both - 2 * self.integers
        moves = steps * self._scale
        gains = moves * (2 * self._slope + moves * self._diagonal)
        gains += 2 * self._gram[:, :, k, None] * moves * moves[:, k, None]
        alone = gains[:, k] - 2 * self._diagonal[:, k] * moves[:, k] ** 2
        gains[:, k] = np.inf
        partner = gains.argmin(axis=1)
        better = alone + gains.min(axis=1) < -self._noise
        for group, output in np.argwhere(better):
            for index in (k, int(partner[group, output])):
                self.integers[group, index, output] += steps[group, index, output]
                self._slope[group, :, output] += (
                    self._gram[group, :, index] * moves[group, index, output]
                )
        return int(better.sum())
