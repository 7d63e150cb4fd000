"""Observes a model's float values over the calibration data: once, for all targets and variants.

Ranges belong to tensors and Q/DQ to a target, so what is observed is the *source* model. A pass
asks for values of its own model; those that stand for a value of the source (its provenance says
which) are answered from one sweep over the source, whatever passes ran in between.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.calibration.checks import fixed_batch
from optimc.calibration.table import read_table, write_table
from optimc.core.digest import digest_of
from optimc.core.errors import InputError
from optimc.core.leftovers import temporary_prefix
from optimc.core.statistics import TensorStatistics
from optimc.core.worker import Limits, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Dataset
    from optimc.calibration.values import ValueReader
    from optimc.core.model import Model, OnnxModel, TensorSpec
    from optimc.core.store import Store

CHUNK_BYTES = 256 << 20
"""Bytes of values that one run may return."""

_VERSION = 2  # raised when the same data gives other statistics
_SERVICE = "optimc.calibration.observe_service:ObserverService"
_TOOLS = ("onnxruntime", "numpy")


@dataclass
class _Known:
    """What is known of one model's values."""

    table: dict[str, TensorStatistics] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    """The values that were looked for; those that are not floating-point are not in the table."""
    sweeps: int = 0

    def take(self, folder: Path) -> None:
        """Adds one sweep's table."""
        table, about = read_table(folder)
        self.table.update(table)
        self.asked.update(table, about["left_out"])
        self.sweeps += 1


class ActivationCalibration:
    """Statistics of a model's values, observed by source name; a `core.passes.Calibration`.

    `sweeps` counts the runs over the data that this object had to make (what the store knew already
    costs none). Raises InputError and WorkerError from `statistics`.
    """

    def __init__(
        self,
        source: OnnxModel,
        dataset: Dataset,
        seed: int,
        store: Store,
        limits: Limits | None = None,
        progress: Callable[[float, str], None] = lambda share, text: None,
        max_batch: int | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._source = source
        self._dataset = dataset
        self._seed = seed
        self._store = store
        self._limits = limits or Limits()
        self._progress = progress
        self._max_batch = max_batch
        self._chunk_bytes = chunk_bytes
        self._known: dict[str, _Known] = {}
        self.sweeps = 0

    @property
    def digest(self) -> str:
        """Names the data, its transform and order, the seed and the way of observing."""
        return digest_of("calibration", _VERSION, self._dataset.digest, self._seed)

    def statistics(self, model: Model, values: Sequence[str]) -> dict[str, TensorStatistics]:
        """Statistics of `values` of `model`, an `OnnxModel`.

        Values without a source name are observed on `model` itself, in a sweep of their own. Values
        that are not floating-point, or that only a subgraph knows, are left out.
        """
        provenance = model.provenance
        asked = {value: self._source_values.get(provenance.get(value, "")) for value in values}
        of_source = [name for name in asked.values() if name is not None]
        table = self._observed(self._source, of_source, everything=True) if of_source else {}
        found = {v: table[name] for v, name in asked.items() if name is not None and name in table}
        own = [value for value, name in asked.items() if name is None]
        if own:
            found |= self._observed(_onnx_model(model), own, everything=False)
        return {value: found[value] for value in values if value in found}

    def reader(self, samples: int | None = None, service: str | None = None) -> ValueReader:
        """Sums over values of any model, streamed over the first `samples` in a worker."""
        from optimc.calibration.values import SERVICE, ValueReader

        return ValueReader(self._dataset, self._limits, samples, service or SERVICE)

    def feeds(self, size: int, samples: int | None = None) -> Iterator[Mapping[str, Any]]:
        """See `core.passes.Calibration`; memory is bounded as that of the data set's batches is."""
        left = len(self._dataset) if samples is None else samples
        for batch in self._dataset.batches(size):
            if left <= 0:
                return
            yield batch.feeds
            left -= batch.size

    @cached_property
    def _source_values(self) -> dict[str, str]:
        """From a source name to the value of the source model that has it."""
        from optimc.calibration.observable import float_values

        provenance = self._source.provenance
        names = float_values(self._source.ir)
        return {provenance.get(name, name): name for name in names}

    def exported(self) -> tuple[dict[str, TensorStatistics], dict[str, Any]] | None:
        """All that is known of the source by source name, and what was observed; observes nothing.

        None where nothing is known.
        """
        known = self._loaded(self._source)
        table = known.table
        if not table:
            return None
        names = {value: name for name, value in self._source_values.items()}
        left_out = sorted(names.get(v, v) for v in known.asked - table.keys())
        about = {**self._about(self._source), "left_out": left_out}
        return {names.get(v, v): seen for v, seen in table.items()}, about

    def _observed(
        self, model: OnnxModel, wanted: Sequence[str], *, everything: bool
    ) -> Mapping[str, TensorStatistics]:
        """A table with at least the `wanted` values, out of memory, the store, or a sweep.

        With `everything`, the first sweep takes in all that any placement may ask for.
        """
        known = self._loaded(model)
        missing = set(wanted) - known.asked
        if missing and everything and not known.asked:
            from optimc.calibration.observable import likely_values

            missing.update(likely_values(model.ir))
        if missing:
            self._swept(model, known, sorted(missing))
        return known.table

    def _loaded(self, model: OnnxModel) -> _Known:
        """What is known of `model`, with all that the store has: its sweeps are numbered there."""
        key = model.digest + model.names_digest
        if key not in self._known:
            self._known[key] = known = _Known()
            while (folder := self._store.get("calibration", self._key(model, known))) is not None:
                known.take(folder)
        return self._known[key]

    def _key(self, model: OnnxModel, known: _Known) -> str:
        return digest_of(
            [model.digest, model.names_digest, self.digest, known.sweeps],
            {tool: version(tool) for tool in _TOOLS},
        )

    def _about(self, model: OnnxModel) -> dict[str, Any]:
        about = {"model": model.digest, "data": self.digest, "samples": len(self._dataset)}
        return {**about, **{tool: version(tool) for tool in _TOOLS}}

    def _swept(self, model: OnnxModel, known: _Known, names: Sequence[str]) -> None:
        observed = self._sweep(model, names)
        about = {**self._about(model), "left_out": sorted(set(names) - observed.keys())}
        while not known.asked.issuperset(names):
            # Where another process was faster, its sweep has the number, and this one the next.
            known.take(
                self._store.put(
                    "calibration",
                    self._key(model, known),
                    lambda target: write_table(target, observed, about),
                )
            )

    def _sweep(self, model: OnnxModel, names: Sequence[str]) -> dict[str, TensorStatistics]:
        self.sweeps += 1
        table: dict[str, TensorStatistics] = {}
        options = {"chunk_bytes": self._chunk_bytes}
        with (
            _file_of(model) as path,
            Worker(
                _SERVICE, {**options, "path": str(path)}, name="calibration", limits=self._limits
            ) as worker,
        ):
            fixed = fixed_batch(model.signature)
            sample = self._largest(fixed or 1)
            plan = worker.call("plan", sample, values=list(names)).data
            size = fixed or min(plan["samples"], self._max_batch or plan["samples"])
            for number, chunk in enumerate(plan["chunks"]):
                worker.call("open", values=chunk)
                self._feed(worker, size, fixed, number, len(plan["chunks"]))
                reply = worker.call("statistics")
                for name, scalars in reply.data.items():
                    histogram = reply.arrays[name].astype("int64")
                    table[name] = TensorStatistics(histogram=histogram, **scalars)
        return table

    def _largest(self, size: int) -> Mapping[str, NDArray[np.generic]]:
        """A feed of `size` samples as large as the data have any: memory is planned for it."""
        import numpy as np

        every = self._dataset.all_sample_specs()
        if len(every) == 1:
            return next(self._dataset.batches(size)).feeds
        specs = max(every, key=lambda s: sum(math.prod(_sizes(spec)) for spec in s.values()))
        return {name: np.zeros((size, *_sizes(spec)), spec.dtype) for name, spec in specs.items()}

    def _feed(self, worker: Worker, size: int, fixed: int | None, chunk: int, chunks: int) -> None:
        total, seen = len(self._dataset), 0
        for batch in self._dataset.batches(size):
            if fixed and batch.size < fixed:
                alike = len(self._dataset.all_sample_specs()) == 1
                raise InputError(
                    f"{total} samples do not fill batches of {fixed}, which the model wants",
                    where=self._dataset.where,
                    fix=_fill_fix(total - batch.size) if alike else "give all samples one shape",
                )
            worker.call("observe", batch.feeds, first=batch.first_index)
            seen += batch.size
            done = seen / total
            self._progress((chunk + done) / chunks, "observing the calibration data")


def _fill_fix(whole: int) -> str:
    return f"take: {whole}" if whole else "take more data"


def _sizes(spec: TensorSpec) -> list[int]:
    """The shape of a sample, which data know in numbers."""
    return [int(size) for size in spec.shape or ()]


@contextmanager
def _file_of(model: OnnxModel) -> Iterator[Path]:
    """The model's file, written into a temporary folder where it has none."""
    if model.path is not None:
        yield model.path
        return
    with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
        path = Path(folder) / "model.onnx"
        model.write_onnx(path)
        yield path


def _onnx_model(model: Model) -> OnnxModel:
    from optimc.core.model import OnnxModel

    if not isinstance(model, OnnxModel):
        raise TypeError(f"calibration observes ONNX models, not the level {model.level}")
    return model
