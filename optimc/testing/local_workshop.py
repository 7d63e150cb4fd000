"""A workshop without a worker, for tests of torch passes: the bench is in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from optimc.core.model import Signature
from optimc.core.torch_model import TorchModel, write_header

if TYPE_CHECKING:
    from optimc.core.workbench import Workbench


@dataclass(frozen=True)
class LocalReply:
    """A `core.passes.WorkshopReply`."""

    data: Any
    arrays: Mapping[str, Any]


class LocalWorkshop:
    """A `core.passes.Workshop` around `bench`; `folder` takes the models that are stored."""

    def __init__(self, bench: Workbench, folder: Path) -> None:
        self.bench, self._folder = bench, folder
        self._stored = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to close."""

    def call(
        self,
        function: Callable[..., Any],
        arrays: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **data: Any,
    ) -> LocalReply:
        """See `core.passes.Workshop`."""
        answer = function(self.bench, arrays or {}, **data)
        self.bench.module.eval()
        return LocalReply(*(answer if isinstance(answer, tuple) else (answer, {})))

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `core.passes.Workshop`."""
        import torch

        self.bench.module.eval()
        with torch.no_grad():
            outputs = self.bench.forward({n: torch.as_tensor(a) for n, a in feeds.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def model(self) -> TorchModel:
        """See `core.passes.Workshop`."""
        self._stored += 1
        folder = self._folder / f"module-{self._stored}"
        folder.mkdir(parents=True)
        self.bench.write_tensors(folder)
        bench, nothing = self.bench, Signature((), ())
        write_header(folder, "test", nothing, bench.stats(), bench.structure())
        return TorchModel.load(folder)
