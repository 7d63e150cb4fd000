"""GPTQ: weights on a 4-bit grid, each column's error made up for by the columns behind it.

    H = X X^T (the layer's inputs on samples)       d = chol(H^-1), upper
    for each input i:   q_i = s round(w_i / s),   w_j -= (w_i - q_i) d_ij / d_ii   for j > i

(Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323, algorithm 1), as neural-compressor has it for one layer. Which
layers, their inputs, and what becomes of the result is ours: see `_gptq_layers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from optimc.core.errors import PreconditionError, missing_extra
from optimc.core.model import Level
from optimc.core.passes import Effect, Input, Pass, PassContext, PassResult, lossy
from optimc.passes._block_size import BlockSize

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from optimc.core.torch_model import TorchModel

NAME = "gptq"


class Gptq(Pass):
    """Moves the weights of linear layers onto a 4-bit grid, by what their outputs lose on samples.

    To be put before `quantize_weights` with the same `block`, which then stores just these values:
    where that one rounds each weight for itself, this one lets the rest of a row make up for every
    error. The weights stay float32 until then. Reads data.training, whose labels it does not need.
    The arithmetic is neural-compressor's: extra `inc`.

    Rewrites: Linear modules, in the order in which they run, each with the inputs that it gets
        behind those already done. Biases and all other layers stay. One numbered rewrite is one
        layer. A layer that loses less by rounding alone is rounded.
    Refuses: layers whose inputs are no multiple of `block`, or are not seen, as the module that
        holds the layer reads its weight itself; weights that other modules read too, that are
        computed from other parameters, not float32, not finite, or on such a grid already; inputs
        that are not finite; and what `keep` names. A model in which nothing is left is an error.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, else by 1 % of the metric
        or an output SQNR of 10 dB against the source.
    Options: block, samples, keep.
    """

    block: BlockSize = 32
    """How many inputs share a scale: a power of two, and that of `quantize_weights`."""
    samples: Annotated[int, Field(ge=1)] = 128
    """How many training samples the errors are taken over (all where there are fewer). Time grows
    with it: all of them run through the model once for each layer."""
    keep: list[str] = Field(default=[])
    """Layers that stay as they are: patterns (`*`, `?`, `[...]`) of module names."""

    level: ClassVar[Level] = Level.TORCH
    reads: ClassVar[frozenset[Input]] = frozenset({Input.TRAINING})
    required_by_default: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy", "neural-compressor-pt")

    @property
    def effect(self) -> Effect:
        """LOSSY: 4 bits leave some 18 dB of each weight."""
        return lossy(10.0)

    def check_extras(self) -> None:
        """Raises UnavailableError without neural-compressor, or what it imports."""
        from importlib.util import find_spec

        if any(find_spec(name) is None for name in ("neural_compressor", "accelerate")):
            raise missing_extra("inc", f"the pass {NAME}")

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where no layer fits."""
        from optimc.passes import _gptq_layers as work

        self.check_extras()
        log = context.log
        with context.workshop(model) as shop:
            groups = self._fitting(shop.call(work.survey, block=self.block).data, context)
            chosen = [[n for n in group if log.allow(NAME, n)] for group in groups]
            chosen = [group for group in chosen if group]
            if not chosen:
                return PassResult(model, False, {}, log.rewrites, log.refusals)
            told = shop.call(
                work.fit,
                groups=chosen,
                samples=str(context.training.stored()),
                count=self.samples,
                block=self.block,
                seed=context.seed,
            ).data
            stats = {key: told[key] for key in ("layers", "samples", "error", "rounding_error")}
            note = (
                f"{told['layers']} layers on {told['samples']} samples: {told['error']:.4f} of"
                f" their outputs' power is lost, {told['rounding_error']:.4f} by rounding"
            )
            return PassResult(shop.model(), True, stats, log.rewrites, log.refusals, notes=(note,))

    def _fitting(self, found: list[Mapping[str, Any]], context: PassContext) -> list[list[str]]:
        """The names of the layers that fit, those with one input together. Raises as `run`."""
        from optimc.passes._patterns import unmatched
        from optimc.passes._prune_choice import kept_by

        log = context.log
        names = [layer["name"] for layer in found]
        for kept in self.keep:
            if not any(kept_by(name, [kept]) for name in names):
                raise unmatched("keep", kept, names, where=NAME, what="Linear layer")
        groups: dict[int, list[str]] = {}
        for layer in found:
            pattern = kept_by(layer["name"], self.keep)
            reason = f"kept as it is by `{pattern}`" if pattern else layer["reason"]
            if reason is not None:
                log.refuse(NAME, layer["name"], reason)
            else:
                groups.setdefault(layer["group"], []).append(layer["name"])
        done = any(layer["on_grid"] for layer in found)
        if not groups and not done:
            reasons = "".join(f"; {r.where}: {r.reason}" for r in log.refusals[:3])
            raise PreconditionError(
                f"no layer of this model can be put on a grid{reasons}",
                fix=f"take {NAME} out of this variant, or keep fewer layers",
            )
        return list(groups.values())
