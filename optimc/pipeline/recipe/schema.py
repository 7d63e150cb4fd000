"""The recipe as typed, frozen objects. Field docstrings are what the JSON Schema says of a key."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    model_validator,
)

from optimc.calibration.sources import DataSource
from optimc.calibration.transforms import NumericDtype
from optimc.core.descriptions import wanted
from optimc.core.digest import digest_of
from optimc.core.passes import Pass
from optimc.core.targets import Target
from optimc.core.units import Seconds
from optimc.measure.metric import SampleMetric
from optimc.measure.user_metric import UserMetric
from optimc.pipeline.recipe.model_sources import ModelSource

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names of variants and targets: they become folder names."""

BEST = "best"

Dtype: TypeAlias = Literal[NumericDtype, "bfloat16"]


class Part(BaseModel):
    """Base of all parts of a recipe: frozen, strict, no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=wanted(),
    )


Percentile: TypeAlias = Literal["p50", "p90", "p99"]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Size: TypeAlias = Annotated[int, Field(ge=0)]
DimName: TypeAlias = Annotated[str, Field(min_length=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
ValueName: TypeAlias = Annotated[str, Field(min_length=1)]


class OutputOptions(Part):
    """What is done with an output that is kept."""

    rename: ValueName | None = None
    """Its name from here on: in metrics, reports and the delivered engine."""
    verify: Annotated[tuple[ValueName, ...], Field(min_length=1)] | None = None
    """Inner values of the model that are compared in its place, where it cannot be compared itself:
    behind NonMaxSuppression, TopK or ArgMax a difference in rounding chooses something else."""


class InputSpec(Part):
    """What the model itself does not say of an input."""

    shape: tuple[Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)], ...] | None = (
        None
    )
    """One entry an axis: a size, or the name of a dynamic dim. Read from the model by default."""
    dtype: Dtype | None = None
    """The numpy name of the element type. Read from the model by default."""
    range: tuple[float, float] | None = None
    """The least and the greatest value of a float input: probes stay inside."""
    values: tuple[int, int] | None = None
    """The least and the greatest value of an integer input, both included (ids, masks)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, bounds in (("range", self.range), ("values", self.values)):
            if bounds is not None and bounds[0] > bounds[1]:
                raise ValueError(
                    f"{name}: the first number is greater than the second\nswap the two numbers"
                )
        if self.range is not None and self.values is not None:
            raise ValueError("give `range` (floats) or `values` (integers), not both")
        if self.dtype is not None:
            is_float = "float" in self.dtype
            if is_float and self.values is not None:
                raise ValueError(f"`values` is for integers; for {self.dtype} write `range`")
            if not is_float and self.range is not None:
                raise ValueError(f"`range` is for floats; for {self.dtype} write `values`")
        return self


class DimRange(Part):
    """The sizes that a dynamic dim takes. Passes and engines are checked at the corners."""

    min: Count
    """The least size."""
    typical: Count
    """The size that benchmarks take by default."""
    max: Count
    """The greatest size."""
    multiple_of: Count = 1
    """Every size is a multiple of this."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.min <= self.typical <= self.max:
            raise ValueError(
                f"min <= typical <= max does not hold for {self.min}, {self.typical}, {self.max}"
                "\ngive the least size, the usual one and the greatest"
            )
        for name, size in (("min", self.min), ("typical", self.typical), ("max", self.max)):
            if size % self.multiple_of:
                raise ValueError(
                    f"{name} is {size}, which is no multiple of {self.multiple_of}"
                    f"\nround {name}, or change multiple_of"
                )
        return self


class Benchmark(Part):
    """How latency is measured."""

    cases: tuple[Annotated[Mapping[str, Count], Field(min_length=1)], ...] | Literal["data"] = ()
    """Sizes of the dims, one mapping a case; dims that are left out, and an empty list, mean the
    typical size. `data` draws the inputs from the evaluation data: real lengths and sizes."""
    until: Literal["decided", "time"] = "decided"
    """`decided` stops when every limit of the gate is decided, `time` when the time is up."""
    at_most: Seconds = Field(default=60.0, json_schema_extra={"default": "60 s"})
    """The most time for one cell, such as `60 s`. In seconds once it is read."""


class Gate(Part):
    """What a cell has to meet to ship. A limit whose value was not measured is not met."""

    ship: str | tuple[str, ...] = BEST
    """`best` asks for one cell that meets every limit; `variant/target` (with `*` and `?`), or a
    list of such, asks it of each of these cells."""
    drop: Mapping[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """How much worse than the source a metric may be, in the metric's own unit."""
    metrics: Mapping[str, float] = Field(default_factory=dict)
    """The worst value a metric may have: the least where higher is better, else the greatest."""
    speedup: Positive | None = None
    """The least speed-up over the source on ONNX Runtime, for the first benchmark case."""
    latency_ms: Mapping[Percentile, Positive] = Field(default_factory=dict)
    """The greatest latency in milliseconds by percentile (p50, p90, p99), for the first case."""
    throughput_per_s: Positive | None = None
    """The least throughput in samples per second."""
    size_mb: Positive | None = None
    """The greatest size of all files of the engine, in MB (10^6 bytes)."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """What `ship` names, as a tuple; ``("best",)`` for the best cell."""
        return (self.ship,) if isinstance(self.ship, str) else self.ship


class Preprocess(Part):
    """What of the preprocessing becomes a part of the model."""

    embed: bool = False
    """Put the last steps of the data's `transform` into the model, so that engines take what these
    start from, such as uint8 pixels; steps that ONNX cannot do stay outside. The pass
    `fold_preprocess` then folds the arithmetic into the first convolution."""


class WorkerLimits(Part):
    """What each worker process (one engine, one model load) may use."""

    memory_mb: Positive | None = None
    """Memory in MB (10^6 bytes). No limit by default."""
    seconds: Positive = 600.0
    """Seconds for one call, such as building an engine."""


SPLITS = ("calibration", "tuning", "training", "evaluation")


class Data(Part):
    """The data splits: pairwise disjoint."""

    calibration: DataSource | None = None
    """What ranges are taken from."""
    calibration_table: Annotated[str, Field(min_length=1)] | None = None
    """The `calibration/table.json` that an earlier build of the same model left, in place of
    `calibration`: ranges are taken from it, and nothing is observed."""
    tuning: DataSource | None = None
    """All that choices may see."""
    training: DataSource | None = None
    """For passes that train."""
    evaluation: DataSource | None = None
    """What every engine is judged by."""
    allow_overlap: bool = False
    """Whether the same whole sample may stand in two splits."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.calibration is not None and self.calibration_table is not None:
            raise ValueError("names both `calibration` and `calibration_table`\nkeep one of them")
        return self

    @property
    def splits(self) -> dict[str, DataSource]:
        """The splits that are there, by name."""
        named = {name: getattr(self, name) for name in SPLITS}
        return {name: source for name, source in named.items() if source is not None}


class Sections(Part):
    """The sections of a recipe whose keys are the same whatever is installed."""

    model: ModelSource
    """The model to compile: `{onnx: model.onnx}`, `{exported: model.pt2}`, `{factory: ...}` or
    `{hf: ./folder, task: ...}`."""
    outputs: Mapping[str, OutputOptions | Literal["drop"]] = Field(default_factory=dict)
    """By output name: `drop` leaves an output out, `{}` keeps it; `rename` gives it another name,
    `verify` has it judged by inner values. All are kept by default."""
    inputs: Mapping[str, InputSpec] = Field(default_factory=dict)
    """By input name: what the model does not say itself."""
    dims: Mapping[str, DimRange] = Field(default_factory=dict)
    """By the name of a dynamic dim: the sizes it takes."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Where every random choice starts from."""
    data: Data | None = None
    """The data splits. Without them, inputs are drawn by the seed, and figures say so."""
    preprocess: Preprocess = Field(default_factory=Preprocess)
    """What of the preprocessing becomes a part of the model."""
    benchmark: Benchmark = Field(default_factory=Benchmark)
    """How latency is measured."""
    gate: Gate | None = None
    """What has to hold for the build to pass. Without it the verdict is `none`."""
    limits: WorkerLimits = Field(default_factory=WorkerLimits)
    """What each worker process may use."""


class PassEntry(Part):
    """One pass of a variant with its options."""

    name: str
    """The name in the recipe."""
    pass_: InstanceOf[Pass]
    """The pass with its options."""
    required: bool
    """Whether the cell fails where the pass is rolled back."""


class Variant(Part):
    """A list of passes, and the targets it is built for."""

    passes: tuple[PassEntry, ...]
    """In the order in which they run."""
    targets: tuple[str, ...] | None = None
    """Names of targets, None for every target."""


RecipeMetric: TypeAlias = InstanceOf[SampleMetric] | InstanceOf[UserMetric]


class Recipe(Sections):
    """A whole recipe. Paths are absolute; `path` is the file as it was named."""

    path: Path
    """The recipe's file."""
    sha256: str
    """SHA-256 of the file's bytes."""
    metrics: Mapping[str, RecipeMetric] = Field(default_factory=dict)
    """By name, with options; the first is the one that choices and limits use."""
    variants: Mapping[str, Variant]
    """By name: the passes of each variant."""
    targets: Mapping[str, InstanceOf[Target]]
    """By name: a runtime with its options."""

    _places: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)

    def remember_places(self, places: Mapping[tuple[str | int, ...], str]) -> None:
        """Called once by the loader: where each key of the recipe stands."""
        self._places.update(places)

    def where(self, *location: str | int) -> str:
        """``file:line:column`` of a key, or of the nearest one above it that is in the file.

        For errors that are found only with the model or the data at hand:
        ``recipe.where("inputs", "image", "shape")``.
        """
        for length in range(len(location), 0, -1):
            if (place := self._places.get(location[:length])) is not None:
                return place
        return str(self.path)

    @property
    def folder(self) -> Path:
        """The folder that paths are relative to (absolute)."""
        return self.path.absolute().parent

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """Every (variant, target) that the recipe asks for, in its order."""
        return tuple(
            (name, target)
            for name, variant in self.variants.items()
            for target in self.targets
            if variant.targets is None or target in variant.targets
        )

    @property
    def digest(self) -> str:
        """SHA-256 of what the recipe means, defaults and overrides included.

        Layout, comments and the order of keys do not count, except for metrics (the first is the
        main one). Paths count as they stand relative to the recipe's folder; the contents of the
        files do not count.
        """
        from optimc.pipeline.recipe.meaning import meaning

        return digest_of(meaning(self))


def cells_matching(pattern: str, cells: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """The cells that a pattern such as ``int8/*`` names."""
    variant, _, target = pattern.partition("/")
    return [
        cell
        for cell in cells
        if fnmatch.fnmatchcase(cell[0], variant) and fnmatch.fnmatchcase(cell[1], target)
    ]


def is_name(text: str) -> bool:
    """Whether a variant or target may have this name."""
    return re.fullmatch(NAME_PATTERN.rstrip("$"), text) is not None
