"""What tests of pruning passes give them: a context without a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimc.core.model import Model, Signature
from optimc.core.passes import Drop, Pass, PassContext, Ratio, RewriteLog, Runner
from optimc.core.torch_model import TorchModel
from optimc.core.workbench import Workbench
from optimc.testing.workshops import InlineWorkshop


class CountedTuning:
    """A `core.passes.Tuning` whose drop is what `measure` says of a runner."""

    digest = "test"
    metric = "top1"

    def __init__(self, measure: Callable[[Runner], float]) -> None:
        self._measure = measure
        self.asked = 0

    def drop(self, model: Model) -> Drop:
        """Not asked for by passes of the torch level."""
        raise NotImplementedError

    def drop_of(self, run: Runner) -> Drop:
        """See `core.passes.Tuning`."""
        self.asked += 1
        point = self._measure(run)
        return Drop(point, point, point, 1)

    def sqnr_db(self, model: Model, reference: Model) -> float:
        """Not asked for by passes of the torch level."""
        raise NotImplementedError


class CountingDevice:
    """A `core.passes.Device` on which time is what `cost` says of a stored model."""

    digest = "test"
    target = "test"

    def __init__(self, cost: Callable[[TorchModel], float], why_not: str | None = None) -> None:
        self._cost, self._why_not = cost, why_not
        self.timed: list[TorchModel] = []

    def costs(self, model: Model, others: Mapping[str, Model]) -> str:
        """Not asked for by pruning."""
        raise NotImplementedError

    def speedups(self, model: Model, others: Mapping[str, Model]) -> Mapping[str, Ratio] | str:
        """See `core.passes.Device`."""
        if self._why_not is not None:
            return self._why_not
        found = {}
        for name, other in others.items():
            assert isinstance(model, TorchModel)
            assert isinstance(other, TorchModel)
            self.timed.append(other)
            ratio = self._cost(model) / self._cost(other)
            found[name] = Ratio(ratio, ratio, ratio)
        return found


def pruning_context(pass_: Pass, bench: Workbench, folder: Path, **given: Any) -> PassContext:
    """A context for one run of `pass_` on `bench`; `given` are fields of `PassContext`."""
    given.setdefault("log", RewriteLog())
    return PassContext(
        reads=pass_.needs | pass_.wants,
        seed=0,
        workspace=folder,
        open_workshop=lambda model: InlineWorkshop(bench, Signature((), ()), folder),
        **given,
    )


def source_model(bench: Workbench) -> TorchModel:
    """The model that a bench begins with."""
    return TorchModel("test", Signature((), ()), bench.stats())
