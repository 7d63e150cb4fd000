"""The worker's side of `fit_rounding`: fits where the products of the inputs are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optimc.calibration.values_service import ValuesService
from optimc.passes._rounding import Problem, fitted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]


class RoundingService(ValuesService):
    """Sums products and solves for the rounding; served by `optimc.core.worker.Worker`."""

    def fit(self, arrays: Arrays, key: str, limit: int, iterations: int) -> tuple[Any, Any]:
        """`integers` [G, K, O] of the reduction `key`, and the output's squared `errors`.

        `arrays` holds weight and scale [G, K, O] and bias [G, O], float64. `errors` are three: of
        rounding to nearest, as fitted, and of the float weights, each up to the same constant.
        """
        sums = self._reduced(key)
        weight, bias = arrays["weight"], arrays["bias"]
        cross = sums["cross"] - sums["inputs"][:, :, None] * bias[:, None, :]
        problem = Problem(weight, arrays["scale"], limit, sums["gram"], cross)
        integers = fitted(problem, iterations)
        candidates = (problem.nearest(), integers, weight / problem.scale)
        errors = np.array([problem.error(one).sum() for one in candidates])
        return None, {"integers": integers.astype(np.int8), "errors": errors}
