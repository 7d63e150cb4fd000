"""A torch model in a worker, for passes that change the module; a `core.passes.Workshop`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimc.core.torch_model import TorchModel, TorchStats
from optimc.core.worker import Limits, Reply
from optimc.frontends.torch_frontend import TorchFrontEnd


class TorchWorkshop(TorchFrontEnd):
    """See `core.passes.Workshop`. Methods raise what passes raise, and WorkerError.

    `example` are feeds of one small batch; `folder` is where `model` stores its results.
    """

    service = "optimc.frontends.torch_workshop_service:WorkshopService"

    def __init__(
        self,
        kind: str,
        options: Mapping[str, Any],
        *,
        where: str,
        limits: Limits,
        example: Mapping[str, Any],
    ) -> None:
        super().__init__(kind, options, where=where, limits=limits)
        self._example = example
        self._stored = 0

    def open(
        self,
        model: TorchModel,
        folder: Path,
        progress: Callable[[float, str], None] | None = None,
    ) -> None:
        """Brings the module into the state of `model`, once, before anything else."""
        state = None if model.folder is None else str(model.folder)
        structure = None if state is None else model.structure.to_json()
        self._origin, self._signature, self._folder = model.origin, model.signature, folder
        self._worker.call("open", self._example, folder=state, structure=structure)
        self._worker.on_progress = progress

    def call(
        self,
        function: Callable[..., Any],
        arrays: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **data: Any,
    ) -> Reply:
        """See `core.passes.Workshop`."""
        named = f"{function.__module__}:{function.__qualname__}"
        return self._worker.call("apply", arrays, timeout=timeout, function=named, data=data)

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `core.passes.Workshop`."""
        return self._worker.call("run", feeds).arrays

    def stats(self) -> TorchStats:
        """What a table shows of the module."""
        return TorchStats(**self._worker.call("stats").data)

    def model(self) -> TorchModel:
        """See `core.passes.Workshop`."""
        self._stored += 1
        target = self._folder / f"module-{self._stored}"
        target.mkdir()
        self._worker.call(
            "save",
            folder=str(target),
            origin=self._origin,
            signature=self._signature.to_json(),
        )
        return TorchModel.load(target)
