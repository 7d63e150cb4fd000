"""The numbers that are trained of a Q/DQ graph, and the graph's constants made of them.

A step size is ``s = s0 exp(t)`` with t trained, so that it stays positive and one learning rate
fits all (Jain et al. 2020, "Trained Quantization Thresholds", arXiv:1903.08066, section 3.3); its
gradient is that of LSQ, see `_onnx_torch.quantize`. Zero points stay. A weight is ``w = s0 v``: v
counts steps, and so does the learning rate, whatever the size of a layer's weights is. A bias is
counted in steps of its weight at half of the input's range. Weights that are 0 in the float model
were pruned and stay 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optimc.calibration.affine import LEAST_SCALE
from optimc.passes._onnx_torch import TorchGraph, rounded
from optimc.passes._quantize_weights import BIAS_LIMIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from optimc.passes._qat_graph import StoredBias, StoredIntegers, Trainable

_HALF_RANGE = 127.0
_CELL = 0.499
"""How far from its integer a float may start, in steps: it has to round to what is stored."""
_INT32 = 2.0**31 - 1


class Parameters:
    """See the module. `numbers` are the trained tensors by ``kind/initializer``."""

    def __init__(self, graph: TorchGraph, wanted: Trainable) -> None:
        import torch

        self._constants = graph.constants
        self._wanted = wanted
        self._members: dict[str, list[str]] = {}
        for name, root in wanted.scales.items():
            self._members.setdefault(root, []).append(name)
        self.numbers: dict[str, Tensor] = {}
        for root in self._members:
            self._add("scale", root, torch.zeros_like(self._constants[root]))
        self._kept: dict[str, Tensor] = {}
        for weight in wanted.weights:
            start = _start(weight, self._constants)
            self._add("weight", weight.name, start)
            if weight.guess is not None and not weight.guess.all():
                # What was pruned stays 0, and with it the pattern that sparse kernels want.
                self._kept[weight.name] = (
                    (torch.from_numpy(weight.guess.copy()) != 0) | (start != 0)
                ).float()
        self._units: dict[str, Tensor] = {}
        self._starts: dict[str, Tensor] = {}
        for bias in wanted.biases:
            self._add_bias(bias)

    def _add(self, kind: str, name: str, start: Tensor) -> None:
        self.numbers[f"{kind}/{name}"] = start.clone().requires_grad_(True)

    def _add_bias(self, bias: StoredBias) -> None:
        import torch

        stored = self._constants[bias.name].double()
        product = self._constants[bias.input_scale] * self._constants[bias.weight_scale]
        # In float64, because int32 has more digits than float32.
        scale = 1.0 if bias.scale is None else self._constants[bias.scale].double()
        self._starts[bias.name] = stored * scale
        self._units[bias.name] = (product * _HALF_RANGE).expand(stored.shape)
        self._add("bias", bias.name, torch.zeros_like(stored, dtype=torch.float32))

    def of_kind(self, *kinds: str) -> list[Tensor]:
        """The trained tensors of these kinds, in their order."""
        return [tensor for key, tensor in self.numbers.items() if key.split("/")[0] in kinds]

    def constants(self) -> dict[str, Tensor]:
        """The initializers that are other than they were, by name; gradients flow to `numbers`.

        Integers are float32 numbers.
        """
        values: dict[str, Tensor] = {}
        for root, names in self._members.items():
            factor = self.numbers[f"scale/{root}"].exp()
            scale = (self._constants[root] * factor).clamp_min(LEAST_SCALE)
            values.update(dict.fromkeys(names, scale))
        biases = [(bias, self._bias(bias)) for bias in self._wanted.biases]
        for bias, floats in biases:
            self._widen(bias, floats, values)
        for weight in self._wanted.weights:
            values[weight.name] = self._weight(weight, values)
        for bias, floats in biases:
            self._store_bias(bias, floats, values)
        return values

    def _scale(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        return values.get(name, self._constants[name])

    def _bias(self, bias: StoredBias) -> Tensor:
        return self._starts[bias.name] + self.numbers[f"bias/{bias.name}"] * self._units[bias.name]

    def _widen(self, bias: StoredBias, floats: Tensor, values: dict[str, Tensor]) -> None:
        """Makes the weight's scale large enough for the bias, as `quantize_weight` does."""
        if bias.weight_scale not in values:
            return
        scale, source = values[bias.weight_scale], self._scale(bias.input_scale, values)
        least = floats.detach().abs().float() / (source.detach() * BIAS_LIMIT)
        values[bias.weight_scale] = scale.maximum(least if scale.dim() else least.max())

    def _weight(self, weight: StoredIntegers, values: Mapping[str, Tensor]) -> Tensor:
        first, now = self._constants[weight.scale], self._scale(weight.scale, values)
        number = self.numbers[f"weight/{weight.name}"]
        if weight.name in self._kept:
            number = number * self._kept[weight.name]
        steps = (now / first).reshape(weight.shape)
        zero = _zero_of(weight, self._constants)
        return rounded(number, steps, zero, weight.low, weight.high)

    def _store_bias(self, bias: StoredBias, floats: Tensor, values: dict[str, Tensor]) -> None:
        if bias.scale is None:
            values[bias.name] = floats.float()
            return
        source = self._scale(bias.input_scale, values)
        scale = (source * self._scale(bias.weight_scale, values)).expand(
            self._constants[bias.scale].shape
        )
        values[bias.scale] = scale
        values[bias.name] = rounded(floats, scale.double(), 0.0, -_INT32, _INT32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """`constants` as the graph stores them: int8, uint8, int32 and float32."""
        import torch

        result = {}
        with torch.no_grad():
            for name, tensor in self.constants().items():
                dtype = self._constants[name].numpy().dtype
                array = tensor.double().numpy()
                if dtype.kind in "iu":
                    info = np.iinfo(dtype)
                    array = array.clip(info.min, info.max)
                result[name] = array.astype(dtype).reshape(self._constants[name].shape)
        return result


def _zero_of(weight: StoredIntegers, constants: Mapping[str, Tensor]) -> Tensor | float:
    return 0.0 if weight.zero is None else constants[weight.zero].float().reshape(weight.shape)


def _start(weight: StoredIntegers, constants: Mapping[str, Tensor]) -> Tensor:
    """The float weight in steps, moved by no more than makes it round to what is stored."""
    import torch

    center = constants[weight.name].float() - _zero_of(weight, constants)
    if weight.guess is None:
        return center
    scale = constants[weight.scale].reshape(weight.shape)
    steps = torch.from_numpy(np.array(weight.guess)) / scale
    return torch.clamp(steps, center - _CELL, center + _CELL)
