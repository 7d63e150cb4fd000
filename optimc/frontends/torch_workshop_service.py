"""The worker's side of `optimc.frontends.torch_workshop`: a module that passes work on."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimc.core.errors import CellError, OptimcError
from optimc.core.model import Signature
from optimc.core.torch_model import Structure, write_header
from optimc.core.workbench import OpenedModule, Workbench
from optimc.frontends._torch_sources import ModuleModel
from optimc.frontends.torch_service import Answer, TorchService, as_array, as_tensors, open_source


class WorkshopService(TorchService):
    """One model, as the source makes it or as an earlier pass left it."""

    def __init__(self, kind: str, options: Mapping[str, Any]) -> None:
        super().__init__(kind, options)
        assert isinstance(self._model, ModuleModel)
        self._source = (kind, dict(options))
        self._bench: Workbench | None = None

    def open(
        self, arrays: Mapping[str, Any], folder: str | None, structure: Mapping[str, Any] | None
    ) -> Answer:
        """Puts the module on a bench with the example `arrays`, in the state of `folder`."""
        assert isinstance(self._model, ModuleModel)
        self._bench = Workbench(self._model, as_tensors(arrays), self._another)
        if folder is not None and structure is not None:
            self._bench.restore(Path(folder), Structure.from_json(structure))
            self._model.module.eval()
        return None, {}

    def _another(self, kind: str, options: Mapping[str, Any]) -> OpenedModule:
        """The source once more, or another model: the recipe's kind and its options."""
        opened = open_source(kind, options) if kind else open_source(*self._source)
        assert isinstance(opened, ModuleModel)
        return opened

    @property
    def bench(self) -> Workbench:
        """What functions of passes get."""
        assert self._bench is not None
        return self._bench

    def stats(self, arrays: Mapping[str, Any]) -> Answer:
        """What a table shows of the module."""
        found = self.bench.stats()
        return {
            "nodes": found.nodes,
            "bytes": found.bytes,
            "parameters": found.parameters,
            "macs": found.macs,
        }, {}

    def apply(self, arrays: Mapping[str, Any], function: str, data: Mapping[str, Any]) -> Answer:
        """Calls a pass's function ``module:name`` on the bench."""
        module, _, name = function.partition(":")
        answer = getattr(importlib.import_module(module), name)(self.bench, arrays, **data)
        self.bench.module.eval()
        return answer if isinstance(answer, tuple) else (answer, {})

    def run(self, arrays: Mapping[str, Any]) -> Answer:
        """The named outputs in eval mode."""
        import torch

        self.bench.module.eval()
        try:
            with torch.no_grad():
                outputs = self.bench.forward(as_tensors(arrays))
        except OptimcError:
            raise
        except Exception as error:
            raise CellError(
                f"the module raised {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                fix="leave out the pass before, or name in its `keep` what it broke",
            ) from error
        return None, {name: as_array(tensor) for name, tensor in outputs.items()}

    def save(
        self, arrays: Mapping[str, Any], folder: str, origin: str, signature: Mapping[str, Any]
    ) -> Answer:
        """Writes the module's state to `folder`, which is empty."""
        place = Path(folder)
        self.bench.write_tensors(place)
        write_header(
            place,
            origin,
            Signature.from_json(signature),
            self.bench.stats(),
            self.bench.structure(),
        )
        return None, {}
