"""Unstructured pruning: the weights nearest to zero become zero.

    mask = |w| > t,    t the quantile of |w| at the wanted share

(Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks",
arXiv:1506.02626, section 3.1). Cut in `steps`, with training between them, the share follows the
cubic of Zhu & Gupta 2017, "To prune, or not to prune", arXiv:1710.01878, section 3, from 0 on:

    s_i = s (1 - (1 - i / steps)^3)

so that much goes while much is superfluous, and little at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optimc.core.model import Level
from optimc.core.passes import Effect, Pass, PassContext, PassResult, lossy

NAME = "prune_magnitude"


class PruneMagnitude(Pass):
    """Sets the smallest weights of convolutions and linear layers to zero.

    The model keeps its shapes and its speed: what gets smaller is the compressed file, and what is
    zero makes room for structured passes behind it. On the torch level the zeros are held while
    `train` runs; repeat `prune_magnitude` and `train` with rising `step` for a schedule.

    Rewrites: weights of Conv, ConvTranspose, Gemm and MatMul, on the torch level of Conv1d to 3d,
        their transposed forms and Linear. Biases stay. One numbered rewrite is one weight; a weight
        that several layers share is cut once.
    Refuses: weights that other operators read too, such as a table of embeddings that is the last
        layer's weight; weights that are not constant, or computed from other parameters; those that
        are not finite; layers too small for one weight to go; and what `keep` names. A quantized
        model, or one in which nothing can be cut, is an error.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, behind the training that
        is to follow. Where nothing measures a metric, by an output SQNR of 0 dB, which says only
        that the model is not destroyed.
    Options: share, scope, step, steps, keep.
    """

    share: Annotated[float, Field(gt=0, lt=1)]
    """The share of the weights that are zero at the end, of those that are not kept."""
    scope: Literal["layer", "global"] = "layer"
    """Whether every layer loses its share, or the smallest weights of all layers go: then layers
    with small weights lose more."""
    step: Annotated[int, Field(ge=1)] = 1
    """Which step of the schedule this is, from 1."""
    steps: Annotated[int, Field(ge=1)] = 1
    """In how many steps the share is reached; with training between them."""
    keep: list[str] = Field(default=[])
    """Layers that stay as they are: patterns (`*`, `?`, `[...]`) of module names; in a model that
    comes as ONNX, of node names, of source names of their outputs, or operator types."""

    level: ClassVar[Level] = Level.ONNX
    also: ClassVar[frozenset[Level]] = frozenset({Level.TORCH})
    reads_names: ClassVar[bool] = True
    required_by_default: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx-ir")

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        if self.step > self.steps:
            raise ValueError(f"step {self.step} of {self.steps}: the last step is {self.steps}")
        return self

    @property
    def effect(self) -> Effect:
        """LOSSY. What is cut comes back by training, so the bound of the pass itself is low."""
        return lossy(0.0)

    @property
    def share_now(self) -> float:
        """The share that is zero behind this step."""
        return self.share * (1.0 - (1.0 - self.step / self.steps) ** 3)

    def module_patterns(self) -> Mapping[str, Sequence[str]]:
        """Of layers."""
        return {"keep": self.keep}

    def run(self, model: Any, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where nothing can be cut."""
        from optimc.core.torch_model import TorchModel
        from optimc.passes import _prune_graph as onnx_side
        from optimc.passes import _prune_masks as masks
        from optimc.passes import _prune_modules as torch_side

        if isinstance(model, TorchModel):
            options = {"share": self.share_now, "scope": self.scope}
            return torch_side.prune_module(
                model, context, NAME, self.keep, self._unfit, torch_side.cut_smallest, **options
            )
        layers = onnx_side.find_prunable(
            model, NAME, self.keep, context, self._unfit, one_axis=False
        )
        rule = masks.largest_in_each if self.scope == "layer" else masks.largest_everywhere
        kept = rule({layer.key: layer.array for layer in layers}, self.share_now)
        return onnx_side.cut(model, NAME, layers, kept, context)

    def _unfit(self, shape: tuple[int, ...], axis: int, operator: str) -> str | None:
        from math import prod

        if round(self.share_now * prod(shape)) == 0:
            return f"its weight is too small: {prod(shape)} elements"
        return None
