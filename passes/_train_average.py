"""A moving average of the weights, which is judged and kept in their place.

    a <- d a + (1 - d) w        d = min(decay, (1 + t) / (10 + t)) at step t

By `torch.optim.swa_utils` (Polyak and Juditsky 1992; the rising decay is that of TensorFlow's
ExponentialMovingAverage). Between epochs the average stands in the module, so that whatever judges
or stores it sees that; the weights wait here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Average:
    """The average of one module's floating-point state; counters are those of the weights."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._mean: dict[str, torch.Tensor] = {}
        self.weights: dict[str, torch.Tensor] = {}
        """What is trained, while the average stands in the module; else empty."""

    def begin(self, module: torch.nn.Module) -> None:
        """Before an epoch: takes the average out of the module, and the weights in."""
        self._mean = _copy(module)
        if self.weights:
            module.load_state_dict(self.weights)
            self.weights = {}

    def update(self, module: torch.nn.Module, step: int) -> None:
        """After a step of the optimizer (from 0); nothing outside of an epoch."""
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        if not self._mean:
            return
        now = module.state_dict()
        floats = [name for name, tensor in now.items() if tensor.is_floating_point()]
        decay = min(self._decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average([self._mean[n] for n in floats], [now[n] for n in floats], 0)
        for name in now.keys() - set(floats):
            self._mean[name].copy_(now[name])

    def end(self, module: torch.nn.Module) -> None:
        """After an epoch: puts the average into the module."""
        self.weights = _copy(module)
        module.load_state_dict(self._mean)
        self._mean = {}


def _copy(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
