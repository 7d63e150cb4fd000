"""What a quality metric is: options, records gathered batch by batch, a value and a drop.

A metric turns each batch of a model's outputs into small arrays with one entry a sample. These
records, not the outputs, are what is kept, and what source and candidate are compared by.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
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
    """Base of the built-in metrics: each batch gives arrays, as a rule with one entry a sample."""

    name: ClassVar[str]
    better: ClassVar[Direction]
    unit: ClassVar[str] = ""
    extra: ClassVar[tuple[str, str] | None] = None
    """A module that it needs beyond the core, and the extra of optimc that installs it."""
    tools: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version decides the value, for the cache key."""

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
    def named_outputs(self) -> dict[str, str]:
        """By option: the outputs that the recipe names, or that have a name by default."""

    @abstractmethod
    def observe(self, outputs: Outputs, labels: Any, source: Outputs | None) -> Records:
        """The records of one batch; raises InputError.

        `labels` are the batch's: an array, a list with one entry a sample where samples differ in
        shape, or None.
        """

    @abstractmethod
    def value(self, records: Records, indices: Indices | None = None) -> float:
        """The metric over the samples `indices` [m] (with repeats), or over all."""

    @abstractmethod
    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`."""

    def samples(self, records: Records) -> int:
        """How many samples the records are of."""
        return len(next(iter(records.values())))

    def join(self, batches: Sequence[Records]) -> Records:
        """The records of all batches as one."""
        import numpy as np

        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def check_installed(self) -> None:
        """Raises InputError where the library that it needs is not installed."""
        from importlib.util import find_spec

        if self.extra is not None and find_spec(self.extra[0]) is None:
            module, extra = self.extra
            raise self.fail(f"{module} is not installed", f"pip install 'optimc[{extra}]'")

    def select(self, outputs: Outputs, option: str) -> Array:
        """The output that `option` names (the first without it), in a dtype numpy computes with."""
        import numpy as np

        named = getattr(self, option)
        name = str(named) if named is not None else next(iter(outputs))
        if name not in outputs:
            raise unknown_name("output", name, outputs, where=f"{self.where}.{option}")
        array = np.asarray(outputs[name])
        # bfloat16 and the like are of kind V.
        return array.astype(np.float32) if array.dtype.kind == "V" else array

    def regular(self, labels: Any) -> Array:
        """The batch's labels as one array; raises InputError where samples differ in shape."""
        import numpy as np

        try:
            array = np.asarray(labels)
        except ValueError:
            array = np.empty(0, dtype=object)
        if array.dtype.kind == "O":
            raise self.fail(
                "the labels of the samples are mappings, or differ in shape",
                f"{self.name} takes the same number of values for each sample: "
                "point data.evaluation.labels at such",
            )
        return array

    def fail(self, what: str, fix: str) -> InputError:
        """An error with this metric's place in the recipe."""
        return InputError(what, where=self.where, fix=fix)


class OutputMetric(SampleMetric):
    """Base of metrics that judge one output."""

    output: str | None = None
    """The output to judge; the model's first where it is not named."""

    def named_outputs(self) -> dict[str, str]:
        """See `SampleMetric`."""
        return {} if self.output is None else {"output": self.output}


class RegularMetric(OutputMetric):
    """Base of metrics whose labels are one array, with an entry of the same shape a sample."""

    def observe(self, outputs: Outputs, labels: Any, source: Outputs | None) -> Records:
        """See `SampleMetric`."""
        return self.record(
            self.select(outputs, "output"),
            None if labels is None else self.regular(labels),
            None if source is None else self.select(source, "output"),
        )

    @abstractmethod
    def record(self, output: Array, labels: Array | None, source: Array | None) -> Records:
        """The records of one batch from the judged output; raises InputError."""


class _ArrayRecorder:
    """Gathers what `SampleMetric.observe` gives."""

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
        self._batches.append(metric.observe(outputs, labels, source))

    def records(self) -> Records:
        if not self._batches:
            raise self._metric.fail("the evaluation data hold no sample", "add samples")
        return self._metric.join(self._batches)
