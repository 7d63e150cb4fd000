"""Which weights of a linear layer to round up and which down. Works on arrays.

Rounding to nearest minimises the error of each weight, not that of the layer's output. With rows x
of inputs, wanted outputs y, a scale s and integers q of a layer, the squared error of the output is

    E |x (s q) - y|^2  =  (s q)^T G (s q) - 2 (s q)^T C + const,    G = E[x^T x],  C = E[x^T y]

over ``q = floor(w / s) + h`` with h of 0 or 1 for each weight: a quadratic problem in h for each
output channel (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
arXiv:2004.10568, section 3). As there, h is relaxed to a rectified sigmoid that a
regularizer drives to 0 or 1, here with Adam on G and C, so on all rows at once.
Then single weights are flipped, in turn, as long as that makes the error less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_RIDGE = 1e-3
"""Share of G's mean diagonal that pulls towards the float weights: few samples leave G singular."""
_ZETA, _GAMMA = 1.1, -0.1
_WARM = 0.2
"""The share of the iterations without the regularizer."""
_SWEEPS = 20


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
    if iterations:
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
    return np.clip(low + (v > 0), -problem.limit, problem.limit)


def polished(problem: Problem, integers: Floats) -> Floats:
    """Flips weights between down and up, one of each output channel at a time, while that helps."""
    low = np.floor(problem.weight / problem.scale)
    high = np.clip(np.ceil(problem.weight / problem.scale), -problem.limit, problem.limit)
    low = np.clip(low, -problem.limit, problem.limit)
    integers = integers.copy()
    slope = problem.gram @ (problem.scale * integers) - problem.cross
    diagonal = np.diagonal(problem.gram, axis1=1, axis2=2)
    for _ in range(_SWEEPS):
        flips = 0
        for k in range(integers.shape[1]):
            other = low[:, k] + high[:, k] - integers[:, k]
            move = (other - integers[:, k]) * problem.scale[:, k]
            gain = move * (2 * slope[:, k] + move * diagonal[:, k, None])
            better = gain < 0
            if not better.any():
                continue
            flips += int(better.sum())
            move = np.where(better, move, 0.0)
            integers[:, k] = np.where(better, other, integers[:, k])
            slope += problem.gram[:, :, k, None] * move[:, None, :]
        if not flips:
            break
    return integers
