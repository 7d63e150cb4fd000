"""Structured pruning of widths: channels, attention heads and hidden units.

Bound channels are found by torch-pruning's dependency graph (DepGraph, Fang et al. 2023, arXiv
2301.12900). Each group is proven before it is cut, see `optimc.passes._prune_cut`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimc.core.errors import PreconditionError, missing_extra
from optimc.core.passes import Input, PassContext, PassResult, Workshop
from optimc.passes import _prune_width_work as work
from optimc.passes._prune_allocate import Level, Units, levels, nearest, widths
from optimc.passes._prune_target import Measured, Pruning, Share, check_replayed

if TYPE_CHECKING:
    from optimc.core.torch_model import TorchModel


class PruneWidth(Pruning):
    """Removes the least important channels, attention heads and hidden units.

    The result is a smaller module: layers have fewer channels, nothing is masked.

    Rewrites: cuts one group of channels that are bound together: the filters that make them, the
        normalisation that scales them, and the weights that read them. One numbered rewrite is one
        group.
    Refuses: groups of which a trial does not prove that the smaller module computes what the whole
        one does when nothing reads those channels. Such are the residual stream of networks whose
        shortcuts pad channels with zeros (ResNet for CIFAR, option A: inner widths are cut there),
        channels under LayerNorm or GroupNorm, reshapes with fixed sizes, and the model's outputs;
        parameters that layers share; what `keep` names, and what `cut` does not. A module that was
        made sparse before is an error.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, else by 1 % of the metric;
        without one, what passes on the module left has an output SQNR of 10 dB at least.
        Train afterwards.
    Target: exactly one of `macs`, `parameters`, `ratio`, `speedup` and `max_drop`. Levels of
        pruning are searched by bisection for the least that meets it (`max_drop`: the most). For
        `speedup` every level tried is exported and timed on the cell's target, in turns with the
        model as it came to this pass; fewer MACs are often not faster. What was chosen by measuring
        goes into the lock.
    Options: macs, parameters, ratio, speedup, max_drop, importance, align, floor, global_ranking,
        cut, heads, keep.
    """

    ratio: Share | None = None
    """Target: the share of the channels that is left, about."""
    importance: Literal["l1", "l2", "group_norm", "bn_scale", "taylor"] = "group_norm"
    """How units are ranked: `l1` and `l2` by the norm of the filters that make them (Li et al.
    2017), `group_norm` by that of all weights bound together (Fang et al. 2023), `bn_scale` by the
    scale of batch normalisation (network slimming, Liu et al. 2017), `taylor` by weight times
    gradient on `data.training` (Molchanov et al. 2019)."""
    align: Annotated[int, Field(ge=1, le=256)] = 8
    """Widths that are cut become multiples of this: kernels work on blocks of channels."""
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """The share of a group's units that is left at least, whatever the target."""
    global_ranking: bool = False
    """Whether all units are ranked together (global pruning), relative to their group's mean, so
    that unimportant layers lose more; else every group loses the same share."""
    cut: list[Literal["channels", "heads", "hidden"]] = Field(
        default=["channels", "heads", "hidden"], min_length=1
    )
    """What may be cut: `channels` of convolutions, attention `heads`, `hidden` units of MLPs."""
    heads: dict[str, Annotated[int, Field(ge=1)]] = Field(default={})
    """How many heads attention modules have that keep it under a name of their own, by patterns
    (`*`, `?`, `[...]`) of the modules' names."""
    keep: list[str] = Field(default=[])
    """Patterns of names of modules whose channels stay, with all that are bound to them."""

    own_target: ClassVar[str] = "ratio"
    tools: ClassVar[tuple[str, ...]] = ("torch", "torch-pruning")

    @property
    def needs(self) -> frozenset[Input]:
        """What the target needs; with `taylor` the training split."""
        return super().needs | ({Input.TRAINING} if self.importance == "taylor" else set())

    def module_patterns(self) -> Mapping[str, Sequence[str]]:
        """Of modules, and of attention modules."""
        return {"keep": self.keep, "heads": list(self.heads)}

    def check_extras(self) -> None:
        """Raises UnavailableError where torch-pruning is not installed."""
        from importlib.util import find_spec

        if find_spec("torch_pruning") is None:
            raise missing_extra("torch", f"the pass {self.pass_name()}")

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where the target cannot be met."""
        self.check_extras()
        with context.workshop(model) as shop:
            told = self._survey(shop, context)
            groups = [_units(group) for group in told["groups"]]
            for rule, where, reason in told["refused"]:
                context.log.refuse(rule, where, reason)
            measured = Measured(self, context, shop, model, told["figures"])
            return _Run(self, context, shop, model, groups, measured).result()

    def _survey(self, shop: Workshop, context: PassContext) -> Any:
        samples = str(context.training.stored()) if self.importance == "taylor" else None
        told = shop.call(
            work.survey,
            importance=self.importance,
            heads=self.heads,
            keep=self.keep,
            kinds=self.cut,
            seed=context.seed,
            samples=samples,
        ).data
        if not told["groups"]:
            reasons = "".join(f"; {where}: {why}" for _, where, why in told["refused"][:3])
            raise PreconditionError(
                f"no width of this model can be cut{reasons}",
                fix="take prune_width out of this variant; prune_depth removes whole blocks",
            )
        return told


def _units(told: Mapping[str, Any]) -> Units:
    return Units(told["name"], told["kind"], told["unit"], tuple(told["scores"]))


@dataclass
class _Run:
    """One run of the pass, after the survey."""

    options: PruneWidth
    context: PassContext
    shop: Workshop
    model: TorchModel
    groups: list[Units]
    measured: Measured

    def result(self) -> PassResult:
        """Chooses a level, cuts it, and tells of it."""
        options, log = self.options, self.context.log
        level = self._level()
        full = tuple(len(group.scores) for group in self.groups)
        final = tuple(
            kept if kept < count and log.allow(f"prune {group.kind}", group.name) else count
            for group, kept, count in zip(self.groups, level, full, strict=True)
        )
        figures = self._apply(final)
        by_measuring = options.speedup is not None or options.max_drop is not None
        kept = {g.name: n for g, n in zip(self.groups, level, strict=True) if n < len(g.scores)}
        stats = self.measured.stats(figures)
        stats["widths"] = "; ".join(f"{n}: {w}" for n, w in widths(self.groups, final).items())
        return PassResult(
            self.shop.model() if final != full else self.model,
            final != full,
            stats,
            log.rewrites,
            log.refusals,
            choice=kept if by_measuring else None,
            budget=self.measured.budget(),
            notes=(self._note(figures, len(log.rewrites)),),
        )

    def _apply(self, level: Level) -> Mapping[str, int]:
        removed = {g.name: g.removed(n) for g, n in zip(self.groups, level, strict=True)}
        figures: Mapping[str, int] = self.shop.call(work.cut, removed=removed).data
        return figures

    def _level(self) -> Level:
        options, choice = self.options, self.context.choice
        if choice is not None:
            check_replayed(choice, (g.name for g in self.groups), "group")
            return tuple(int(choice.get(g.name, len(g.scores))) for g in self.groups)
        found = levels(self.groups, options.align, options.floor, whole=options.global_ranking)
        if not found:
            raise PreconditionError(
                f"no width can be cut to a multiple of {options.align}",
                fix="give a smaller `align` or `floor`",
            )
        if options.ratio is not None:
            return nearest(self.groups, found, options.ratio)
        return self._searched(found)

    def _searched(self, found: list[Level]) -> Level:
        """The first level that meets the target; for a budget the last."""
        last: Mapping[str, int] = {}
        ratios: dict[int, float | None] = {}

        def met(number: int) -> bool:
            nonlocal last
            self.context.progress(0.5, f"trying level {number + 1} of {len(found)}")
            last = self._apply(found[number])
            answer = self.measured.met(last)
            ratios[number] = self.measured.ratio
            return answer

        if self.measured.grows and not met(len(found) - 1):
            fix = "give a nearer target, a smaller `align` or `floor`, or less in `keep`"
            raise self.measured.unreachable(last, self.context.log.refusals, fix)
        low, high = 0, len(found) - (1 if self.measured.grows else 0)
        while low < high:
            middle = (low + high) // 2
            if met(middle) == self.measured.grows:
                high = middle
            else:
                low = middle + 1
        if self.measured.grows:
            self.measured.ratio = ratios[low]
            return found[low]
        # `low` levels keep within the budget; with none of them the model stays whole.
        return found[low - 1] if low else tuple(len(g.scores) for g in self.groups)

    def _note(self, figures: Mapping[str, int], cut: int) -> str:
        whole = self.measured.whole
        macs, parameters = (figures[n] / whole[n] for n in ("macs", "parameters"))
        return (
            f"{cut} of {len(self.groups)} groups cut: {macs:.3f} of the MACs and"
            f" {parameters:.3f} of the parameters are left"
        )
