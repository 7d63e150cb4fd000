"""Metrics of engines on the evaluation data, remembered by engine, data and metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optimc.core.cpu import cpu_features
from optimc.core.digest import digest_of
from optimc.core.errors import InputError, unknown_name
from optimc.core.targets import Engine
from optimc.core.worker import Limits
from optimc.measure.metric import Direction, Metric, RegularMetric, SampleMetric
from optimc.measure.metrics import compare
from optimc.measure.sample_scores import SampleEvidence, evidence
from optimc.measure.statistics import Interval
from optimc.measure.user_metric import UserMetric
from optimc.pipeline.cache import Cache
from optimc.pipeline.ordering import Result, has_rows, in_order
from optimc.pipeline.versions import compiler_digest, tool_versions
from optimc.targets.client import EngineWorker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Batch, Dataset
    from optimc.core.model import Signature
    from optimc.measure.metric import Records
    from optimc.pipeline.recipe.schema import DimRange, Recipe

    Arrays = Mapping[str, NDArray[Any]]

SOURCE_RECORDS = "source"

_BATCH = 32
"""Samples in one run where the model's batch is free: enough to keep a call's overhead small."""


@dataclass(frozen=True)
class MetricResult:
    """One metric of a cell against the source's; a string is why there is no interval."""

    value: float
    source: float
    drop: Interval | str
    samples: int
    better: Direction
    evidence: SampleEvidence
    names: Mapping[int, str]
    """What the data source calls the worst samples."""


def loaded_metrics(recipe: Recipe) -> dict[str, Metric]:
    """The recipe's metrics; the user's own are imported, also from the recipe's folder.

    Raises InputError where that fails.
    """
    return {
        name: metric.load(recipe.folder) if isinstance(metric, UserMetric) else metric
        for name, metric in recipe.metrics.items()
    }


def check_metrics(recipe: Recipe, dataset: Dataset | None, signature: Signature) -> None:
    """Raises InputError before any work where a metric does not fit the model or the labels.

    Imports the user's own metrics.
    """
    from optimc.measure.classification import F1, Top1, Top5

    outputs = {spec.name: spec for spec in signature.outputs}
    for name, metric in loaded_metrics(recipe).items():
        if dataset is not None and metric.needs_labels and not dataset.has_labels:
            raise InputError(
                f"the metric `{name}` needs labels, and the evaluation data have none",
                where=recipe.where("metrics", name),
                fix="name them, or let the function of `call:` yield them",
            )
        if not isinstance(metric, SampleMetric):
            continue
        metric.check_installed()
        for option, output in metric.named_outputs().items():
            if output not in outputs:
                where = recipe.where("metrics", name, option)
                raise unknown_name("output", output, outputs, where=where)
        if dataset is None or not isinstance(metric, Top1 | Top5 | F1):
            continue
        shape = outputs[metric.output or next(iter(outputs))].shape
        if shape is None:
            continue
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        if len(sizes) < len(shape) - 1 or not isinstance(shape[0], str):
            continue
        _check_labels(name, metric, dataset, sizes)


def _check_labels(name: str, metric: RegularMetric, dataset: Dataset, sizes: list[int]) -> None:
    """Classifiers see all labels, with scores [n, *sizes] that mean nothing."""
    import numpy as np

    for labels in dataset.labels():
        if isinstance(labels, list):
            raise InputError(
                f"the metric `{name}` takes class numbers; these labels are of another kind",
                where=dataset.where,
                fix="name labels with one number a sample, or take another metric",
            )
        scores = np.zeros((len(labels), *sizes), np.float32)
        try:
            metric.record(scores, metric.regular(labels), None)
        except InputError as error:
            where = f"{dataset.where}: {error.where}"
            raise InputError(error.what, where=where, fix=error.fix) from error


class Runs(Protocol):
    """Something that computes a model's outputs."""

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs for `feeds`, by name."""


@dataclass
class Evaluator:
    """Runs engines over the evaluation data, each batch once for all metrics."""

    metrics: Mapping[str, Metric]
    dataset: Dataset
    """What the source takes."""
    raw: Dataset
    """The same samples as the cells' engines take them: without the steps that these hold."""
    dims: Mapping[str, DimRange]
    signature: Signature
    cache: Cache
    limits: Limits
    seed: int
    progress: Callable[[float, str], None]
    kept: dict[str, dict[str, Records]] = field(default_factory=dict)
    """By cell and metric: what was recorded, the source's under `SOURCE_RECORDS`."""
    _source: Engine | None = None
    _records: dict[str, Records] = field(default_factory=dict)

    def evaluate_source(self, engine: Engine) -> None:
        """Evaluates the source; has to come before `evaluate`."""
        self._source = engine
        self._records = self._run("the source", engine, self.dataset)
        self.kept[SOURCE_RECORDS] = self._records

    def source_values(self) -> dict[str, float]:
        """The source's value of every metric."""
        return {name: self.metrics[name].value(r) for name, r in self._records.items()}

    def evaluate(self, name: str, engine: Engine) -> dict[str, MetricResult]:
        """Every metric of `engine`, with its drop from the source.

        Raises InputError where data or labels do not fit a metric, WorkerError as engines die.
        """
        records = self._run(name, engine, self.raw)
        results = {}
        for key, metric in self.metrics.items():
            drop = compare(metric, self._records[key], records[key], seed=self.seed)
            found = evidence(self._records[key], records[key], metric.better)
            results[key] = MetricResult(
                value=metric.value(records[key]),
                source=metric.value(self._records[key]),
                drop=drop,
                samples=len(self.dataset) // self.dataset.samples_per_label,
                better=metric.better,
                evidence=found,
                names=self._names([sample.number for sample in found.worst]),
            )
        self.kept[name] = records
        return results

    def _names(self, numbers: Sequence[int]) -> dict[int, str]:
        """Of labelled samples; a pair is called by its first member."""
        per = self.dataset.samples_per_label
        return {number: self.dataset.name_of(number * per) for number in numbers}

    def _run(self, name: str, engine: Engine, dataset: Dataset) -> dict[str, Records]:
        """The records of every metric, from the cache where all are there."""
        keys = {key: self._key(metric, engine, dataset) for key, metric in self.metrics.items()}
        found = {key: self._remembered(known) for key, known in keys.items()}
        missing = [key for key, records in found.items() if records is None]
        fresh = self._measure(name, engine, missing, dataset) if missing else {}
        for key, records in fresh.items():
            known = keys[key]
            if known is not None:
                self._remember(known, records)
        return {key: fresh.get(key) or found[key] or {} for key in self.metrics}

    def _key(self, metric: Metric, engine: Engine, dataset: Dataset) -> str | None:
        """The cache key; None for the user's own code, which can change unseen."""
        if not isinstance(metric, SampleMetric):
            return None
        tools = ["onnxruntime", "openvino", *metric.tools]
        source = self._source.manifest["files"] if self._source and metric.needs_source else None
        return digest_of(
            ["evaluation", engine.manifest["files"], engine.manifest["session"], source],
            [
                self.dataset.digest,
                dataset.digest,
                metric.name,
                metric.model_dump(mode="json"),
                self._batch(),
            ],
            [compiler_digest(), sorted(cpu_features()), tool_versions(tools)],
        )

    def _remembered(self, key: str | None) -> Records | None:
        import numpy as np

        folder = self.cache.get("evaluation", key) if key else None
        if folder is None:
            return None
        with np.load(folder / "records.npz", allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def _remember(self, key: str, records: Records) -> None:
        import numpy as np

        def write(folder: Path) -> None:
            np.savez(folder / "records.npz", allow_pickle=False, **dict(records))

        self.cache.put("evaluation", key, write)

    def _measure(
        self, name: str, engine: Engine, wanted: list[str], dataset: Dataset
    ) -> dict[str, Records]:
        against_source = any(self.metrics[key].needs_source for key in wanted)
        with ExitStack() as stack:
            worker = stack.enter_context(
                EngineWorker(engine, name=f"the engine {name}", limits=self.limits)
            )
            worker.reopen()
            other: EngineWorker | None = None
            if against_source and self._source is not None:
                other = stack.enter_context(
                    EngineWorker(self._source, name="the source's engine", limits=self.limits)
                )
                other.reopen()
            return self.records(name, dataset, worker, other, wanted)

    def records(
        self, name: str, dataset: Dataset, worker: Runs, other: Runs | None, wanted: list[str]
    ) -> dict[str, Records]:
        """What the metrics `wanted` record of `worker` on `dataset`; `other` runs the source."""
        recorders = {key: self.metrics[key].recorder() for key in wanted}
        results = self._results(name, dataset, worker, other, self._judged(wanted))
        per_label, rows = self.dataset.samples_per_label, has_rows(self.signature)
        for result in in_order(results, per_label, rows=rows):
            for recorder in recorders.values():
                recorder.update(result.outputs, result.labels, result.source)
        return {key: recorder.records() for key, recorder in recorders.items()}

    def _judged(self, wanted: list[str]) -> set[str] | None:
        """Outputs of pairs that are put together: those that metrics judge; None for all."""
        metrics = [self.metrics[key] for key in wanted]
        if self.dataset.samples_per_label == 1:
            return None
        found: set[str] = set()
        for metric in metrics:
            if not isinstance(metric, SampleMetric):
                return None
            # A metric that names none takes the first output.
            found |= set(metric.named_outputs().values()) or {self.signature.outputs[0].name}
        return found

    def _results(
        self,
        name: str,
        dataset: Dataset,
        worker: Runs,
        other: Runs | None,
        judged: set[str] | None,
    ) -> Iterator[Result]:
        """What comes of each batch of `dataset`, in the order of batches."""
        done = 0
        # The source always gets what the transform makes of the samples, the engine maybe raw ones.
        references = self.batches(self.dataset) if other else repeat(None)
        for (count, feeds, batch), reference in zip(
            self.batches(dataset), references, strict=False
        ):
            outputs = _first(worker.run(feeds), count, feeds, judged)
            source = None
            if other and reference:
                source = _first(other.run(reference[1]), reference[0], reference[1], judged)
            yield Result(batch.numbers, outputs, source, batch.labels)
            done += count
            self.progress(done / len(self.dataset), f"{name}: {done} of {len(self.dataset)}")

    def _batch(self) -> int:
        """Samples in one run: what the model fixes, or its batch dim allows, up to `_BATCH`."""
        from optimc.calibration.checks import fixed_batch

        fixed = fixed_batch(self.signature)
        if fixed is not None:
            return fixed
        symbol = next(spec.shape[0] for spec in self.signature.inputs if spec.shape)
        dim = self.dims[str(symbol)]
        size = min(dim.max, max(_BATCH, dim.min))
        return max(size - size % dim.multiple_of, dim.min)

    def batches(self, dataset: Dataset) -> Iterator[tuple[int, Arrays, Batch]]:
        """Real samples in a batch, its feeds (filled up where the model takes no less), itself."""
        size = self._batch()
        for batch in dataset.batches(size):
            count = len(next(iter(batch.feeds.values())))
            feeds = batch.feeds if self._takes(count) else _filled(batch.feeds, size)
            yield count, feeds, batch

    def _takes(self, count: int) -> bool:
        from optimc.calibration.checks import fixed_batch

        if count == self._batch():
            return True
        if fixed_batch(self.signature) is not None:
            return False
        symbol = next(spec.shape[0] for spec in self.signature.inputs if spec.shape)
        dim = self.dims[str(symbol)]
        return count >= dim.min and count % dim.multiple_of == 0


def _filled(feeds: Arrays, size: int) -> Arrays:
    """The feeds with the last sample repeated up to `size` samples."""
    import numpy as np

    return {
        name: np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
        for name, array in feeds.items()
    }


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    """Metrics compute in float32 at least."""
    return array.astype("float32") if array.dtype.name == "float16" else array


def _first(outputs: Arrays, count: int, feeds: Arrays, judged: set[str] | None) -> Arrays:
    """The outputs that are `judged`, of the first `count` samples where the batch was filled up.

    Only outputs with a row for each sample are cut: others, such as a detector's boxes of all
    images in one list, belong to no sample by their place.
    """
    filled = {len(array) for array in feeds.values() if array.ndim}
    return {
        name: _widened(
            array[:count] if filled != {count} and array.ndim and len(array) in filled else array
        )
        for name, array in outputs.items()
        if judged is None or name in judged
    }
