"""What a quality metric is: options, records gathered batch by batch, a value and a drop.

A metric turns each batch of a model's outputs into small arrays with one entry a sample. These
records, not the outputs, are what is kept, and what source and candidate are compared by.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from optimc.core.descriptions import wanted
from optimc.core.errors import InputError, unknown_name
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Outputs = Mapping[str, NDArray[Any]]
    Records = Mapping[str, NDArray[Any]]
    """One entry a sample along the first axis, in the order of the evaluation data."""
    Indices = NDArray[np.intp]

Direction = Literal["higher", "lower"]


class Recorder(Protocol):
    """Gathers the records of one model over the batches of the evaluation data."""

    def update(self, outputs: Outputs, labels: Any, source: Outputs | None = None) -> None:
        """Takes one batch: the model's outputs in its order, the batch's labels (None where the
        data have none), and the source's outputs on it for metrics that need them.

        Raises InputError where they do not fit the metric.
        """

    def records(self) -> Records:
        """What was gathered."""


class Metric(Protocol):
    """A figure of quality that a recipe names, with its options."""

    @property
    def name(self) -> str:
        """The recipe's name for it."""

    @property
    def better(self) -> Direction:
        """Which way is better."""

    @property
    def unit(self) -> str:
        """``fraction`` for shares from 0 to 1; empty where the value has no unit."""

    @property
    def needs_labels(self) -> bool:
        """Whether the evaluation data must have labels."""

    @property
    def needs_source(self) -> bool:
        """Whether `Recorder.update` needs the source's outputs."""

    def recorder(self) -> Recorder:
        """A new, empty recorder."""

    def value(self, records: Records) -> float:
        """The metric over all samples."""

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `optimc.measure.metrics.compare`."""


class MetricOptions(BaseModel):
    """Base of the options of all metrics: the fields are what a recipe may write."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=wanted())


class SampleMetric(MetricOptions):
    """Base of the built-in metrics: each batch gives arrays with one entry a sample."""

    name: ClassVar[str]
    better: ClassVar[Direction]
    unit: ClassVar[str] = ""

    output: str | None = None
    """The output to judge; the model's first where it is not named."""

    @property
    def where(self) -> str:
        """The place in the recipe, for messages."""
        return f"metrics.{self.name}"

    @property
    def needs_labels(self) -> bool:
        """See `Metric`."""
        return True

    @property
    def needs_source(self) -> bool:
        """See `Metric`."""
        return False

    def recorder(self) -> Recorder:
        """See `Metric`."""
        return _ArrayRecorder(self)

    @abstractmethod
    def record(self, output: Array, labels: Array | None, source: Array | None) -> Records:
        """The records of one batch from the judged output; raises InputError."""

    @abstractmethod
    def value(self, records: Records, indices: Indices | None = None) -> float:
        """The metric over the samples `indices` [m] (with repeats), or over all."""

    @abstractmethod
    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`."""

    def select(self, outputs: Outputs) -> Array:
        """The judged output, in a dtype that numpy computes with."""
        import numpy as np

        name = self.output if self.output is not None else next(iter(outputs))
        if name not in outputs:
            raise unknown_name("output", name, outputs, where=f"{self.where}.output")
        array = np.asarray(outputs[name])
        # bfloat16 and the like are of kind V.
        return array.astype(np.float32) if array.dtype.kind == "V" else array

    def fail(self, what: str, fix: str) -> InputError:
        """An error with this metric's place in the recipe."""
        return InputError(what, where=self.where, fix=fix)


class _ArrayRecorder:
    """Gathers what `SampleMetric.record` gives and joins it along the first axis."""

    def __init__(self, metric: SampleMetric) -> None:
        self._metric = metric
        self._batches: list[Records] = []

    def update(self, outputs: Outputs, labels: Any, source: Outputs | None = None) -> None:

        metric = self._metric
        if labels is None and metric.needs_labels:
            raise metric.fail(
                "the evaluation data have no labels", "name them: data.evaluation.labels"
            )
        if source is None and metric.needs_source:
            raise ValueError(f"{metric.name} needs the source's outputs")
        self._batches.append(
            metric.record(
                metric.select(outputs),
                None if labels is None else self._regular(labels),
                None if source is None else metric.select(source),
            )
        )

    def _regular(self, labels: Any) -> Array:
        import numpy as np

        if isinstance(labels, np.ndarray) or all(isinstance(x, int | float) for x in labels):
            return np.asarray(labels)
        raise self._metric.fail(
            "labels differ in shape from sample to sample, or are arrays by name",
            "take a metric for such labels, or labels with one array of one shape a sample",
        )

    def records(self) -> Records:
        import numpy as np

        if not self._batches:
            raise self._metric.fail("the evaluation data hold no sample", "add samples")
        names = self._batches[0]
        return {name: np.concatenate([batch[name] for batch in self._batches]) for name in names}
