"""Structured pruning of depth: whole residual blocks and transformer layers.

A residual block adds to what it is given; without it, that is passed on (LayerDrop, Fan et al.
2019, arXiv 1909.11556; ShortGPT, Men et al. 2024, arXiv 2403.03853). Blocks are ranked by what
their loss does to the model's own outputs or metric, not by their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from optimc.core.errors import PreconditionError
from optimc.core.passes import Input, PassContext, PassResult, Workshop
from optimc.passes import _prune_blocks as work
from optimc.passes._prune_target import Measured, Pruning, check_replayed

if TYPE_CHECKING:
    from optimc.core.torch_model import TorchModel


class PruneDepth(Pruning):
    """Removes whole residual blocks and transformer layers, those first that matter least.

    Rewrites: takes a block out: what it was given goes on to what comes after it. One numbered
        rewrite is one block.
    Refuses: blocks whose output has not the shape and type of their first input (the first of a
        stage), that run more than once or not at all, or without which the module does not run;
        what `keep` names.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, else by 1 % of the metric;
        without one, what passes on the module left has an output SQNR of 10 dB at least.
        Train afterwards.
    Ranking: by the recipe's first metric on `data.tuning`, with the block left out. Where there is
        no such split, by how far the outputs move on samples of `data.training` (their noise to
        signal ratio), which needs no labels. After each block that goes the others are measured
        again, unless `rerank` is false. Of equal blocks the later one goes.
    Target: exactly one of `blocks`, `macs`, `parameters`, `speedup` and `max_drop`: blocks go until
        it is met (`max_drop`: as long as it is). For `speedup` the model is exported and timed on
        the cell's target after each block. The choice goes into the lock.
    Options: blocks, macs, parameters, speedup, max_drop, among, keep, rerank.
    """

    blocks: Annotated[int, Field(ge=1)] | None = None
    """Target: how many blocks go."""
    among: list[str] = Field(default=[])
    """Patterns (`*`, `?`, `[...]`) of names of modules that may go; without any, all members of
    ModuleLists and Sequentials that have modules of their own."""
    keep: list[str] = Field(default=[])
    """Patterns of names of blocks that stay."""
    rerank: bool = True
    """Whether what is left is ranked anew after each block; else all are ranked once."""

    own_target: ClassVar[str] = "blocks"
    tools: ClassVar[tuple[str, ...]] = ("torch",)

    @property
    def wants(self) -> frozenset[Input]:
        """The metric on the tuning split to rank by; where there is none, training samples."""
        return frozenset({Input.TUNING, Input.TRAINING})

    def module_patterns(self) -> Mapping[str, Sequence[str]]:
        """Of blocks."""
        return {"among": self.among, "keep": self.keep}

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where the target cannot be met."""
        with context.workshop(model) as shop:
            told = shop.call(work.survey, among=self.among, keep=self.keep).data
            for rule, where, reason in told["refused"]:
                context.log.refuse(rule, where, reason)
            if not told["blocks"]:
                raise PreconditionError(
                    "no block of this model can be left out",
                    fix="name the blocks in `among`, or take prune_depth out of this variant",
                )
            measured = Measured(self, context, shop, model, told["figures"])
            return _Run(self, context, shop, model, told["blocks"], measured).result()


@dataclass
class _Run:
    """One run of the pass, after the survey."""

    options: PruneDepth
    context: PassContext
    shop: Workshop
    model: TorchModel
    blocks: Sequence[str]
    measured: Measured
    _effects: dict[frozenset[str], float] = field(default_factory=dict)

    def result(self) -> PassResult:
        """Chooses blocks, takes them out, and tells of it."""
        log = self.context.log
        if self.context.choice is not None:
            chosen = list(self.context.choice)
            check_replayed(chosen, self.blocks, "block")
        else:
            chosen = self._chosen()
        gone = [name for name in chosen if log.allow("skip block", name)]
        figures = self.shop.call(work.leave_out, names=gone).data
        whole = self.measured.whole
        macs = figures["macs"] / whole["macs"]
        stats = self.measured.stats(figures)
        named = f" ({', '.join(gone)})" if gone else ""
        note = (
            f"{len(gone)} of {len(self.blocks)} blocks are gone{named}: {macs:.3f} of the MACs are"
            " left"
        )
        return PassResult(
            self.shop.model() if gone else self.model,
            bool(gone),
            stats | {"blocks": ", ".join(gone)} | self._ranks(gone),
            log.rewrites,
            log.refusals,
            choice=chosen,
            budget=self.measured.budget(),
            notes=(note,),
        )

    def _ranks(self, gone: Sequence[str]) -> dict[str, float]:
        """By block: what its loss alone does, as far as that was measured."""
        alone = {name: self._effects.get(frozenset({name})) for name in gone}
        return {f"{name} alone": round(x, 6) for name, x in alone.items() if x is not None}

    def _chosen(self) -> list[str]:
        """The blocks that go, in the order in which they do."""
        gone: list[str] = []
        left = list(self.blocks)
        most = self.options.blocks
        figures = self.measured.whole
        while left and (most is None or len(gone) < most):
            least = self._least(gone, left)
            trial = self.shop.call(work.leave_out, names=[*gone, least]).data
            met = most is None and self.measured.met(trial)
            if not met and not self.measured.grows:
                return gone  # the budget would not be kept
            gone.append(least)
            left.remove(least)
            figures = trial
            if met and self.measured.grows:
                return gone
        if most is not None and len(gone) < most:
            raise PreconditionError(
                f"only {len(gone)} blocks can be left out, {most} were asked for",
                fix="give a smaller number, or more in `among`",
            )
        if most is None and self.measured.grows:
            fix = "give a nearer target, or less in `keep`; prune_width cuts what is left"
            raise self.measured.unreachable(figures, self.context.log.refusals, fix)
        return gone

    def _least(self, gone: Sequence[str], left: Sequence[str]) -> str:
        """The block of `left` whose loss does the least harm."""
        before = gone if self.options.rerank else []
        effects = {}
        for number, name in enumerate(left):
            self.context.progress(number / len(left), f"without {', '.join([*before, name])[-60:]}")
            effects[name] = self._effect([*before, name])
        order = {name: place for place, name in enumerate(self.blocks)}
        # Where the metric is the same, what the block does alone decides, then its place.
        return min(left, key=lambda name: (effects[name], self._effect([name]), -order[name]))

    def _effect(self, names: Sequence[str]) -> float:
        key = frozenset(names)
        if key not in self._effects:
            self._effects[key] = self._measured_effect(names)
        return self._effects[key]

    def _measured_effect(self, names: Sequence[str]) -> float:
        context = self.context
        if context.has(Input.TUNING):
            self.shop.call(work.leave_out, names=names)
            return context.tuning.drop_of(self.shop.run).point
        if context.has(Input.TRAINING):
            samples = str(context.training.stored())
            told: Any = self.shop.call(work.distance, names=names, samples=samples, batch=16).data
            return float(told)
        raise PreconditionError(
            "nothing is there to rank blocks by",
            fix="add data.tuning (with metrics), or data.training, which needs no labels",
        )
