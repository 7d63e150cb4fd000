"""The learning rate as a function of how far the training is: there is no state to be stored.

`cosine`: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts",
arXiv:1608.03983, without restarts. `one_cycle`: Smith and Topin 2018, "Super-Convergence",
arXiv:1708.07120, with the shape and the shares of `torch.optim.lr_scheduler.OneCycleLR`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_RISING = 0.3
"""The share of one_cycle in which the rate rises."""
_START, _END = 1 / 25, 1 / 25e4
"""Of one_cycle, as shares of the greatest rate."""


@dataclass(frozen=True)
class Schedule:
    """See the module."""

    name: str
    milestones: Sequence[float]
    """For `step`: shares of the training after which the rate is multiplied by `factor`."""
    factor: float
    warm_up: float
    """Epochs in which the rate rises in a straight line to what the schedule says."""

    def share(self, step: int, steps: int, epoch_steps: int) -> float:
        """The rate at `step` (from 0) of `steps`, as a share of `learning_rate`."""
        warm = self.warm_up * epoch_steps
        rising = min(1.0, (step + 1) / warm) if warm > 0 else 1.0
        return rising * self._at(step / max(1, steps))

    def _at(self, done: float) -> float:
        """The share at a time from 0 to 1, warm-up left out."""
        if self.name == "cosine":
            return _between(1.0, 0.0, done)
        if self.name == "step":
            return float(self.factor ** sum(done >= milestone for milestone in self.milestones))
        if self.name == "one_cycle":
            if done < _RISING:
                return _between(_START, 1.0, done / _RISING)
            return _between(1.0, _END, (done - _RISING) / (1 - _RISING))
        return 1.0


def _between(first: float, last: float, done: float) -> float:
    """From `first` to `last` by half a cosine wave."""
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
