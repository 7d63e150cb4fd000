"""What `train` computes in: float32, or bfloat16 where that is faster.

Micikevicius et al. 2018, "Mixed Precision Training", arXiv:1710.03740, and Kalamkar et al. 2019, "A
Study of BFLOAT16 for Deep Learning Training", arXiv:1905.12322: products and convolutions in 16
bits, weights, gradients of weights, the optimizer and losses in 32. bfloat16 has the range of
float32, so that losses need no scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from optimc.core.cpu import BF16_FEATURES, cpu_features

if TYPE_CHECKING:
    import torch

    Tensors: TypeAlias = Mapping[str, torch.Tensor]

Precision: TypeAlias = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Compute:
    """Where modules run in training, and in which numbers."""

    device: torch.device
    precision: Precision

    def outputs(self, run: Callable[[Tensors], Tensors], feeds: Tensors) -> Tensors:
        """What `run` gives for `feeds`, in float32 whatever it is computed in."""
        import torch

        if self.precision == "float32":
            return run(feeds)
        with torch.autocast(self.device.type, torch.bfloat16):
            return {name: widened(tensor) for name, tensor in run(feeds).items()}

    def emulated(self) -> bool:
        """Whether the processor has no instructions for the precision, and so gets slower by it."""
        import torch

        if self.precision == "float32":
            return False
        if self.device.type == "cuda":
            return not torch.cuda.is_bf16_supported(including_emulation=False)
        features = cpu_features()  # empty where they are not known
        return bool(features) and not features & BF16_FEATURES


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """bfloat16 as float32, all else as it is; gradients flow."""
    import torch

    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
