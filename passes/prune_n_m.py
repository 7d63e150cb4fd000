"""N:M sparsity: of M neighbouring weights along the input channels, N stay.

    mask_i = |w_i| is among the N largest of its group of M

A row of a product then needs N / M of its multiplications, and an index of few bits for each weight
that is left. Sparse tensor cores do that for 2:4 (Mishra et al. 2021, "Accelerating Sparse Deep
Neural Networks", arXiv:2104.08378: magnitudes in section 4.1, training with the mask in 4.2).
The neighbours lie along the axis that the layer sums over: C of a Conv's K, C, R, S, and K of a
product of [M, K] and [K, N].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from optimc.core.model import Level
from optimc.core.passes import Effect, Pass, PassContext, PassResult, lossy

NAME = "prune_n_m"


class PruneNM(Pass):
    """Keeps N of each M weights along the input channels: 2:4 for sparse tensor cores.

    On the torch level the mask is held while `train` runs. The pattern survives `fuse` (a factor
    for each output channel keeps zeros), `float16` and `quantize_int8` (weights are symmetric: zero
    stays zero). The target tensorrt uses it with `sparse_weights: true`; CPUs gain nothing from it.

    Rewrites: weights of Conv, Gemm and MatMul, on the torch level of Conv1d to 3d and Linear.
        One numbered rewrite is one weight.
    Refuses: layers whose input channels (of one group) are no multiple of M, depthwise convolutions
        and the first layer of images among them; transposed convolutions, which have no sparse
        kernels; weights that other operators read too, or that layers share which sum over
        different axes; weights that are not constant or not finite; and what `keep` names. A
        quantized model, or one in which nothing can be cut, is an error.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, behind the training that
        is to follow. Where nothing measures a metric, by an output SQNR of 0 dB, which says only
        that the model is not destroyed.
    Options: n, m, keep.
    """

    n: Annotated[int, Field(ge=1)] = 2
    """How many weights of a group stay."""
    m: Annotated[int, Field(ge=2, le=64)] = 4
    """How many weights a group has."""
    keep: list[str] = Field(default=[])
    """Layers that stay as they are: patterns (`*`, `?`, `[...]`) of module names; in a model that
    comes as ONNX, of node names, of source names of their outputs, or operator types."""

    level: ClassVar[Level] = Level.ONNX
    also: ClassVar[frozenset[Level]] = frozenset({Level.TORCH})
    reads_names: ClassVar[bool] = True
    required_by_default: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx-ir")

    @classmethod
    def pass_name(cls) -> str:
        """The name in recipes."""
        return NAME

    @model_validator(mode="after")
    def _fewer_than_all(self) -> Self:
        if self.n >= self.m:
            raise ValueError(f"n {self.n} of m {self.m}: n has to be smaller than m")
        return self

    @property
    def effect(self) -> Effect:
        """LOSSY. What is cut comes back by training, so the bound of the pass itself is low."""
        return lossy(0.0)

    def module_patterns(self) -> Mapping[str, Sequence[str]]:
        """Of layers."""
        return {"keep": self.keep}

    def run(self, model: Any, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where nothing can be cut."""
        from optimc.core.torch_model import TorchModel
        from optimc.passes import _prune_graph as onnx_side
        from optimc.passes import _prune_modules as torch_side
        from optimc.passes._prune_masks import largest_of_neighbours

        if isinstance(model, TorchModel):
            options = {"n": self.n, "m": self.m}
            return torch_side.prune_module(
                model, context, NAME, self.keep, self._unfit, torch_side.cut_neighbours, **options
            )
        layers = onnx_side.find_prunable(
            model, NAME, self.keep, context, self._unfit, one_axis=True
        )
        kept = {
            layer.key: largest_of_neighbours(layer.array, layer.axis, self.n, self.m)
            for layer in layers
        }
        return onnx_side.cut(model, NAME, layers, kept, context)

    def _unfit(self, shape: tuple[int, ...], axis: int, operator: str) -> str | None:
        if operator == "ConvTranspose":
            return "transposed convolutions have no sparse kernels"
        channels = shape[axis]
        if operator == "Conv" and channels == 1:
            return "each output channel reads one input channel: there are no neighbours"
        if channels < self.m:
            return f"its {channels} input channels are fewer than a group of {self.m}"
        if channels % self.m:
            return f"its {channels} input channels are no multiple of {self.m}"
        return None
