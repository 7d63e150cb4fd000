"""Workshops for tests of torch passes: the module is in the test's own process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from optimc.core.model import Signature, TensorSpec
from optimc.core.passes import Input, PassContext, RewriteLog
from optimc.core.torch_model import TorchModel, write_header
from optimc.testing.workbenches import workbench

if TYPE_CHECKING:
    import torch

    from optimc.core.passes import Training, Tuning
    from optimc.core.workbench import Workbench

ORIGIN = "a test's module"


@dataclass(frozen=True)
class Told:
    """A `core.passes.WorkshopReply`."""

    data: Any
    arrays: Mapping[str, Any] = field(default_factory=dict)


class InlineWorkshop:
    """A `core.passes.Workshop` over a bench."""

    def __init__(self, bench: Workbench, signature: Signature, folder: Path) -> None:
        self.bench = bench
        self._signature = signature
        self._folder = folder
        self.calls: list[str] = []
        """The functions that were called, by name."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def call(
        self,
        function: Callable[..., Any],
        arrays: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **data: Any,
    ) -> Told:
        """See `core.passes.Workshop`; what is handed over has to be plain data here too."""
        import json

        self.calls.append(function.__name__)
        answer = function(self.bench, arrays or {}, **json.loads(json.dumps(data)))
        self.bench.module.eval()
        plain, made = answer if isinstance(answer, tuple) else (answer, {})
        return Told(json.loads(json.dumps(plain)), made)

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """The module's outputs in eval mode."""
        import torch

        self.bench.module.eval()
        with torch.no_grad():
            found = self.bench.forward({n: torch.from_numpy(a.copy()) for n, a in feeds.items()})
        return {name: tensor.numpy() for name, tensor in found.items()}

    def model(self) -> TorchModel:
        """The module as it is now, stored."""
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"module-{len(list(self._folder.iterdir()))}"
        target.mkdir()
        self.bench.write_tensors(target)
        stats, structure = self.bench.stats(), self.bench.structure()
        write_header(target, ORIGIN, self._signature, stats, structure)
        return TorchModel.load(target)


@dataclass
class TorchTrial:
    """A torch pass's surroundings: a module, and what the pass may read."""

    make: Callable[[], torch.nn.Module]
    example: Mapping[str, torch.Tensor]
    folder: Path
    training: Training | None = None
    tuning: Tuning | None = None
    unfinished: Path | None = None
    seed: int = 0
    choice: Any = None
    prepare: Callable[[Workbench], None] = lambda bench: None
    """What is done to a fresh bench, such as setting masks."""
    shop: InlineWorkshop | None = None
    """The last one that was opened."""
    log: RewriteLog = field(default_factory=RewriteLog)

    @property
    def model(self) -> TorchModel:
        """The source."""
        bench = workbench(self.make, self.example)
        return TorchModel(ORIGIN, self._signature(), bench.stats())

    def _signature(self) -> Signature:
        inputs = tuple(
            TensorSpec(name, str(t.dtype).removeprefix("torch."), ("batch", *t.shape[1:]))
            for name, t in self.example.items()
        )
        return Signature(inputs, ())

    def _opened(self, model: TorchModel) -> InlineWorkshop:
        bench = workbench(self.make, self.example)
        if model.folder is not None:
            bench.restore(model.folder, model.structure)
        self.prepare(bench)
        stored = self.folder / "stored"
        stored.mkdir(parents=True, exist_ok=True)
        self.shop = InlineWorkshop(bench, self._signature(), stored)
        return self.shop

    def context(self) -> PassContext:
        """What the pass is given."""
        return PassContext(
            reads=frozenset(Input),
            log=self.log,
            seed=self.seed,
            workspace=self.folder,
            tuning_data=self.tuning,
            training_data=self.training,
            open_workshop=self._opened,
            unfinished=self.unfinished,
            folder=self.folder,
            choice=self.choice,
        )
