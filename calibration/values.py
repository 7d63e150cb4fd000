"""Sums over the values of models, streamed over the calibration samples in one worker.

What needs more of a value than its range (a mean for each channel, the products of a layer's
inputs) asks for it here, as plain data: which values of which models, and what to make of them.
Models run side by side on the same samples, each cut down to what computes those values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from optimc.calibration.checks import fixed_batch
from optimc.core.errors import InputError
from optimc.core.worker import Limits, Worker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Dataset
    from optimc.core.model import OnnxModel

    Arrays = Mapping[str, NDArray[np.generic]]

CHUNK_BYTES = 256 << 20
"""Bytes of values that one run may give, where more than one sample is run at a time."""

SERVICE = "optimc.calibration.values_service:ValuesService"
"""What runs in the worker where a pass brings no service of its own."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Sums come out the same whatever the number of cores is."""


@dataclass(frozen=True)
class Reduction:
    """What to make of values: a class of `optimc.calibration.reducers` with its options.

    `values` are pairs of a model's key and a value's name, in the order of the reducer's arguments.
    """

    kind: Literal["channel_moments", "channel_maximum", "products"]
    values: Sequence[tuple[str, str]]
    options: Mapping[str, Any] = field(default_factory=dict)


class ValueReader:
    """Reduces values of models over the first `samples` of `dataset`; a context manager.

    Memory is bounded by one sample's values, or by `chunk_bytes` where that is more, whatever the
    number of samples. `call` reaches the methods of `service`, a subclass of `ValuesService` that a
    pass brings along for the arithmetic on what was reduced.
    """

    def __init__(
        self,
        dataset: Dataset,
        limits: Limits,
        samples: int | None = None,
        service: str = SERVICE,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._dataset = dataset
        self._samples = samples
        self._chunk_bytes = chunk_bytes
        self._worker = Worker(service, name="calibration", limits=limits, environment=_ONE_THREAD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    def reduce(
        self,
        models: Mapping[str, OnnxModel],
        reductions: Mapping[str, Reduction],
        *,
        fetch: bool = True,
    ) -> dict[str, dict[str, NDArray[np.generic]]]:
        """The arrays that each reducer gives, by the key of its reduction.

        Without `fetch` they stay in the worker, for the service's own methods.

        Raises InputError where the samples do not fill one batch of the model, and WorkerError.
        """
        wanted = {
            key: sorted({v for r in reductions.values() for k, v in r.values if k == key})
            for key in models
        }
        plans = {
            key: {"kind": r.kind, "values": [list(v) for v in r.values], "options": dict(r.options)}
            for key, r in reductions.items()
        }
        with tempfile.TemporaryDirectory(prefix="optimc-values-") as folder:
            paths = {}
            for key, model in models.items():
                cut = _cut(model, wanted[key])
                if cut is not None:
                    paths[key] = str(Path(folder) / f"{key}.onnx")
                    cut.write_onnx(Path(paths[key]))
            self._worker.call("open", paths=paths, wanted=wanted, reductions=plans)
            self._stream(fixed_batch(next(iter(models.values())).signature))
        arrays = self._worker.call("results").arrays if fetch else {}
        return {
            key: {
                name.removeprefix(f"{key}/"): array
                for name, array in arrays.items()
                if name.startswith(f"{key}/")
            }
            for key in reductions
        }

    def call(self, method: str, arrays: Arrays, **data: Any) -> Arrays:
        """Calls a method of the service; the arrays it gives back."""
        return self._worker.call(method, arrays, **data).arrays

    def _stream(self, fixed: int | None) -> None:
        """Feeds the samples, as many at a time as fit into the bytes of a chunk."""
        size = fixed or 1
        first = next(self._dataset.batches(size))
        if first.size == size:
            reply = self._worker.call("measure", first.feeds, first=first.first_index)
            if fixed is None:
                size = max(1, min(32, self._chunk_bytes // max(1, reply.data)))
        count, seen = self._samples or len(self._dataset), 0
        for batch in self._dataset.batches(size):
            if fixed is not None and batch.size < fixed:
                break
            self._worker.call("feed", batch.feeds, first=batch.first_index)
            seen += batch.size
            if seen >= count:
                return
        if seen == 0:
            raise InputError(
                f"the samples do not fill one batch of {fixed}, which the model wants",
                where=self._dataset.where,
                fix="take more data",
            )


def _cut(model: OnnxModel, values: Sequence[str]) -> OnnxModel | None:
    """A copy that computes `values` (of the main graph) and nothing else; None where all of them
    are inputs."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    clone = model.clone()
    graph = clone.ir.graph
    named = {v.name: v for node in graph for v in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(named[name] for name in values if name in named)
    if not graph.outputs:
        return None
    RemoveUnusedNodesPass()(clone.ir)
    return clone.sealed()
