"""What pruning works to, for width and depth alike: the options, and whether they are met."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from optimc.core.errors import PreconditionError
from optimc.core.model import Level
from optimc.core.passes import (
    Budget,
    Drop,
    Effect,
    Input,
    Pass,
    PassContext,
    Refusal,
    Workshop,
    lossy,
)

if TYPE_CHECKING:
    from optimc.core.torch_model import TorchModel

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Figures = Mapping[str, int]
"""MACs of one sample, parameters and bytes of a module."""


class Pruning(Pass, ABC):
    """The options that say how far to go."""

    macs: Share | None = None
    """Target: the share of the multiply-accumulates that is left at most."""
    parameters: Share | None = None
    """Target: the share of the parameters that is left at most."""
    speedup: Annotated[float, Field(gt=1.0)] | None = None
    """Target: how many times as fast as before the model gets on the cell's target, measured."""
    max_drop: Annotated[float, Field(ge=0.0)] | None = None
    """Target: as far as the recipe's first metric stays within this drop from the source on
    `data.tuning`, in its own unit. Nothing is trained between: recovery comes after."""

    level: ClassVar[Level] = Level.TORCH
    required_by_default: ClassVar[bool] = True
    own_target: ClassVar[str]
    """The name of one more target."""

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        names = ("macs", "parameters", "speedup", "max_drop", self.own_target)
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"both {given[0]} and {given[1]} are there" if given else "there is none"
            raise ValueError(
                f"exactly one target is needed, {found}\ngive one of {', '.join(names)}"
            )
        return self

    @property
    def effect(self) -> Effect:
        """LOSSY with the default bound."""
        return lossy(20.0)

    @property
    def needs(self) -> frozenset[Input]:
        """Latencies for `speedup`, the metric on the tuning split for `max_drop`."""
        asked = {Input.DEVICE} if self.speedup is not None else set()
        return self.reads | asked | ({Input.TUNING} if self.max_drop is not None else set())


@dataclass
class Measured:
    """Tells whether a target is met by the module in the workshop as it is."""

    options: Pruning
    context: PassContext
    shop: Workshop
    before: TorchModel
    whole: Figures
    drop: Drop | None = None
    """The drop that was measured last."""
    ratio: float | None = None
    """The speed-up that was measured last."""

    @property
    def grows(self) -> bool:
        """Whether more pruning brings a module nearer to the target; not so for a budget."""
        return self.options.max_drop is None

    def met(self, figures: Figures) -> bool:
        """Raises PreconditionError where latencies cannot be measured."""
        options = self.options
        for name in ("macs", "parameters"):
            share = getattr(options, name)
            if share is not None:
                return bool(figures[name] <= share * self.whole[name])
        if options.speedup is not None:
            return self._speedup() >= options.speedup
        assert options.max_drop is not None
        self.drop = self.context.tuning.drop_of(self.shop.run)
        return self.drop.point <= options.max_drop

    def _speedup(self) -> float:
        device = self.context.device
        found = device.speedups(self.before, {"pruned": self.shop.model()})
        if isinstance(found, str):
            raise PreconditionError(
                f"the speed-up on {device.target} cannot be measured: {found}",
                fix="give the target as macs or parameters instead of speedup",
            )
        self.ratio = found["pruned"].point
        return self.ratio

    def budget(self) -> Budget | None:
        """The budget with what the module in the workshop drops by; None for other targets."""
        limit = self.options.max_drop
        if limit is None:
            return None
        self.drop = self.context.tuning.drop_of(self.shop.run)
        name = f"max_drop.{self.context.tuning.metric}"
        return Budget(name, limit, self.drop, self.drop.point <= limit)

    def unreachable(self, figures: Figures, refusals: tuple[Refusal, ...], fix: str) -> Exception:
        """The error where all that may be pruned is not enough."""
        options = self.options
        for name, words in (("macs", "MACs"), ("parameters", "parameters")):
            share = getattr(options, name)
            if share is not None:
                left = figures[name] / self.whole[name]
                what = f"{left:.3g} of the {words} are left at least, {share:g} were asked for"
                break
        else:
            what = f"the model gets {self.ratio or 1.0:.3g} times as fast at most"
            what += f", {options.speedup:g} was asked for"
        why = "".join(f"; {r.where}: {r.reason}" for r in refusals[:3])
        return PreconditionError(f"{what}{why}", fix=fix)

    def stats(self, figures: Figures) -> dict[str, int | float | str]:
        """MACs, parameters and bytes before and after, for the report."""
        told: dict[str, int | float | str] = {}
        for name in ("macs", "parameters", "bytes"):
            told[f"{name} before"], told[f"{name} after"] = self.whole[name], figures[name]
        if self.ratio is not None:
            told["speedup"] = round(self.ratio, 4)
        return told


def check_replayed(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises PreconditionError where the choice of the lock names what is not there."""
    missing = sorted(set(names) - set(known))
    if missing:
        raise PreconditionError(
            f"the lock prunes `{missing[0]}`, which is no {what} here",
            fix="build once without --locked, and commit the new lock",
        )
