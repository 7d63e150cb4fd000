"""The base of all passes: what a pass declares, what it gets, and what it gives back.

A pass is a frozen pydantic model: its fields are its options in the recipe, its docstring is its
manual page (sections Rewrites, Refuses, Accuracy, Options). It lives in one file that is named
after it; nothing is registered.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from optimc.core.analyses import Analyses, Analysis
from optimc.core.descriptions import wanted
from optimc.core.errors import CellError, PreconditionError
from optimc.core.model import Level, Model, OnnxModel
from optimc.core.worker import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optimc.core.statistics import TensorStatistics
    from optimc.core.targets import TargetSpec
    from optimc.core.torch_model import TorchModel


Fact = TypeVar("Fact")


class Input(StrEnum):
    """What a pass may read besides the model; cells fork where these differ."""

    SPEC = "spec"
    DEVICE = "device"
    CALIBRATION = "calibration"
    TUNING = "tuning"
    TRAINING = "training"
    FLOAT = "float"
    """The float model that a pass before this one quantized."""


class EffectKind(StrEnum):
    """How far a pass may move the outputs."""

    EXACT = "exact"
    TOLERANCE = "tolerance"
    LOSSY = "lossy"


@dataclass(frozen=True, slots=True)
class Effect:
    """What a pass promises about the outputs.

    EXACT is bit-equal. TOLERANCE bounds ``max |difference| / max |reference|`` per output (the
    scale of the output). LOSSY is judged by the gate where the recipe limits a metric, else by the
    default bound: 1 % relative drop of the metric, or an output SQNR of at least `bound` dB.
    """

    kind: EffectKind
    bound: float = 0.0


EXACT = Effect(EffectKind.EXACT)


def tolerance(bound: float = 1e-5) -> Effect:
    """Equal up to `bound`, relative to each output's scale."""
    return Effect(EffectKind.TOLERANCE, bound)


def lossy(sqnr_db: float = 20.0) -> Effect:
    """May change the numbers; without a metric the outputs keep an SQNR of `sqnr_db` at least."""
    return Effect(EffectKind.LOSSY, sqnr_db)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One numbered change: which rule, and at which node or value."""

    number: int
    rule: str
    where: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A place where a rewrite did not apply, and why."""

    rule: str
    where: str
    reason: str


RewriteKey = tuple[str, str, int]
"""What a rewrite is known by when others are left out: its rule, its place, and the how manieth of
that rule at that place it is, from 1. Numbers alone would shift."""

_MOST_QUESTIONS = 10_000
"""How often a pass may ask for a rewrite that it was denied: one that never stops is broken."""


def rewrite_keys(rewrites: Iterable[Rewrite]) -> tuple[RewriteKey, ...]:
    """The keys of `rewrites`, which are all of one run in their order."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for rewrite in rewrites:
        seen[rewrite.rule, rewrite.where] += 1
        keys.append((rewrite.rule, rewrite.where, seen[rewrite.rule, rewrite.where]))
    return tuple(keys)


class RewriteLog:
    """Numbers the rewrites of one pass, and stops them after the limit (``--limit PASS=N``).

    With `only`, it allows these rewrites alone and no others, for bisection.
    """

    def __init__(
        self, limit: int | None = None, *, only: frozenset[RewriteKey] | None = None
    ) -> None:
        self._limit = limit
        self._only = only
        self._denied: Counter[tuple[str, str]] = Counter()
        self._done: Counter[tuple[str, str]] = Counter()
        self._rewrites: list[Rewrite] = []
        self._refusals: list[Refusal] = []

    def allow(self, rule: str, where: str) -> bool:
        """True when the rewrite may be done; it then has the next number, so it must be done.

        After False a pass may go on and ask for others, unless `stopped` says that none comes.
        """
        if self.stopped or not self._wanted(rule, where):
            return False
        self._rewrites.append(Rewrite(len(self._rewrites) + 1, rule, where))
        return True

    @property
    def stopped(self) -> bool:
        """Whether no further rewrite is allowed, whatever it is."""
        return self._limit is not None and len(self._rewrites) >= self._limit

    def _wanted(self, rule: str, where: str) -> bool:
        if self._only is None:
            return True
        place = (rule, where)
        if (*place, self._done[place] + 1) in self._only:
            self._done[place] += 1
            return True
        self._denied[place] += 1
        if self._denied[place] > _MOST_QUESTIONS:
            raise CellError(f"the pass does not end while `{rule}` at {where} is left out")
        return False

    def refuse(self, rule: str, where: str, reason: str) -> None:
        """Notes that a rewrite does not apply here."""
        refusal = Refusal(rule, where, reason)
        if refusal not in self._refusals:
            self._refusals.append(refusal)

    @property
    def rewrites(self) -> tuple[Rewrite, ...]:
        """What was done so far."""
        return tuple(self._rewrites)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What was not done, and why."""
        return tuple(self._refusals)


class ValueReader(Protocol):
    """Sums over values of models on the calibration samples; `optimc.calibration.values`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def reduce(
        self,
        models: Mapping[str, OnnxModel],
        reductions: Mapping[str, Any],
        *,
        fetch: bool = True,
    ) -> Mapping[str, Mapping[str, Any]]:
        """The arrays of each reduction (`optimc.calibration.values.Reduction`), by its key."""

    def call(self, method: str, arrays: Mapping[str, Any], **data: Any) -> Mapping[str, Any]:
        """Calls a method of the reader's service; the arrays it gives back."""


class Calibration(Protocol):
    """Statistics of a model's values over the calibration data."""

    @property
    def digest(self) -> str:
        """Names the data, the transform and the seed."""

    def statistics(self, model: Model, values: Sequence[str]) -> Mapping[str, TensorStatistics]:
        """Observed statistics of `values` of `model`; observed once per source value, then kept."""

    def reader(self, samples: int | None = None, service: str | None = None) -> ValueReader:
        """Reduces values over the first `samples`: see `optimc.calibration.values`."""

    def feeds(self, size: int, samples: int | None = None) -> Iterator[Mapping[str, Any]]:
        """The first `samples` themselves, in batches of `size`, for a library that runs the model
        on its own. Batches may be smaller: the last one, and where samples differ in shape."""


@dataclass(frozen=True, slots=True)
class Drop:
    """How much worse than the source a model is by the recipe's first metric, in its own unit.

    Positive where it is worse. `lower` and `upper` are the ends of one-sided 95 % intervals, paired
    over `samples` samples.
    """

    point: float
    lower: float
    upper: float
    samples: int


Runner: TypeAlias = "Callable[[Mapping[str, Any]], Mapping[str, Any]]"
"""Runs a model on the arrays of a feed; the named outputs."""


class Tuning(Protocol):
    """The recipe's first metric on the tuning split: all that a choice may see of quality."""

    @property
    def digest(self) -> str:
        """Names the data, the metric with its options, and the source."""

    @property
    def metric(self) -> str:
        """The metric's name."""

    def drop(self, model: Model) -> Drop:
        """The drop from the source to `model`, by ONNX Runtime with graph optimizations off."""

    def drop_of(self, run: Runner) -> Drop:
        """The drop from the source to what `run` computes, such as a `Workshop`'s module."""

    def sqnr_db(self, model: Model, reference: Model) -> float:
        """The SQNR of the outputs of `model` on a few samples, `reference` being the signal."""


class Training(Protocol):
    """The training split. Labels may be missing: distillation needs none."""

    @property
    def digest(self) -> str:
        """Names the data, the transform and the seed."""

    def stored(self) -> Path:
        """A folder that holds the samples as arrays to be mapped; see
        `optimc.calibration.sample_store.StoredSamples`. Made once, then kept."""


class WorkshopReply(Protocol):
    """What a function of a pass gave back: plain data and arrays by name."""

    @property
    def data(self) -> Any: ...

    @property
    def arrays(self) -> Mapping[str, Any]: ...


class Workshop(Protocol):
    """A torch model, open in a worker; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def call(
        self,
        function: Callable[..., Any],
        arrays: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **data: Any,
    ) -> WorkshopReply:
        """Calls ``function(workbench, arrays, **data)`` in the worker: see
        `optimc.core.workbench`.

        `function` is one of a module's own; it gives plain data, or that and arrays by name. What
        it reports by `optimc.core.progress` is the pass's progress. Raises what it raises of
        OptimcError, and WorkerError; after `timeout` seconds (the recipe's limit unless told,
        which a function that trains should not depend on) WorkerTimeoutError.
        """

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """The module's outputs in eval mode, by name: a `Runner`."""

    def model(self) -> TorchModel:
        """The module as it is now, stored in the pass's workspace."""


@dataclass(frozen=True, slots=True)
class Cost:
    """A difference of latencies in milliseconds, with its two-sided 95 % interval."""

    ms: float
    low: float
    high: float


class Device(Protocol):
    """Latencies on this machine."""

    @property
    def digest(self) -> str:
        """Names the machine's features and what is timed there."""

    @property
    def target(self) -> str:
        """The name of the target that engines are built for."""

    def costs(self, model: Model, others: Mapping[str, Model]) -> Mapping[str, Cost] | str:
        """By name: by how much `model` is slower than each of `others`; or why that is not known.

        All are timed in turns, in one run.
        """

    def speedups(self, model: Model, others: Mapping[str, Model]) -> Mapping[str, Ratio] | str:
        """By name: how many times as fast as `model` each of `others` is; or why that is not known.

        Models of the torch level are exported first. All are timed in turns, in one run.
        """


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of latencies with its two-sided 95 % interval."""

    point: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit that a pass worked to, and what it came to: a check of the gate."""

    name: str
    """As the gate names its checks: ``max_drop.top1``."""
    limit: float
    drop: Drop
    met: bool


class UndeclaredInputError(Exception):
    """A pass read what it does not declare in `reads`: a bug of the pass."""


@dataclass
class PassContext:
    """What a pass may use while it runs.

    `spec`, `calibration`, `tuning`, `device`: there only for passes that declare to read them.
    """

    reads: frozenset[Input]
    log: RewriteLog
    seed: int
    workspace: Path
    """An empty folder for the pass's own files, removed afterwards."""
    target_spec: TargetSpec | None = None
    calibration_data: Calibration | None = None
    progress: Callable[[float, str], None] = field(default=lambda share, text: None)
    """Called with the share that is done (0 to 1) and what is being done."""
    analyses: Analyses | None = None
    """What is known already of the model that the pass was given."""
    quantized_from: OnnxModel | None = None
    """The float model that a pass before this one quantized."""
    tuning_data: Tuning | None = None
    timed_device: Device | None = None
    choice: Any = None
    """What the pass chose by measuring when the lock was written (plain data), to be done again
    under ``--locked``; None where it is to choose itself."""
    training_data: Training | None = None
    open_workshop: Callable[[TorchModel], Workshop] | None = None
    unfinished: Path | None = None
    """A folder for checkpoints: it is there again when the same pass runs after it was killed, and
    goes when the result is kept. None where nothing outlives the build (``--no-cache``)."""
    folder: Path = Path()
    """The recipe's, which paths in options are relative to."""
    limits: Limits = field(default_factory=Limits)
    """What each worker that the pass starts may use."""

    def has(self, wanted: Input) -> bool:
        """Whether an input that the pass `wants` is there: TUNING, TRAINING or CALIBRATION."""
        there = {
            Input.TUNING: self.tuning_data,
            Input.TRAINING: self.training_data,
            Input.CALIBRATION: self.calibration_data,
        }
        return wanted in self.reads and there[wanted] is not None

    def workshop(self, model: TorchModel) -> Workshop:
        """`model` in a worker, for passes of the torch level. To be closed (``with``)."""
        assert self.open_workshop is not None
        return self.open_workshop(model)

    @property
    def training(self) -> Training:
        """The training split. Raises UndeclaredInputError unless TRAINING is declared."""
        self._declared(Input.TRAINING)
        assert self.training_data is not None
        return self.training_data

    @property
    def float_model(self) -> OnnxModel | None:
        """What was quantized before, or None. Raises UndeclaredInputError unless declared."""
        self._declared(Input.FLOAT)
        return self.quantized_from

    def analysis(self, kind: type[Analysis[Fact]], model: OnnxModel) -> Fact:
        """A fact about `model`, as the pass was given it: ask before the first change."""
        return (self.analyses or Analyses(model)).get(kind)

    @property
    def spec(self) -> TargetSpec:
        """The target's data. Raises UndeclaredInputError unless SPEC is declared."""
        self._declared(Input.SPEC)
        assert self.target_spec is not None
        return self.target_spec

    @property
    def calibration(self) -> Calibration:
        """The calibration. Raises UndeclaredInputError unless CALIBRATION is declared."""
        self._declared(Input.CALIBRATION)
        assert self.calibration_data is not None
        return self.calibration_data

    @property
    def tuning(self) -> Tuning:
        """The metric on the tuning split. Raises UndeclaredInputError unless TUNING is declared."""
        self._declared(Input.TUNING)
        assert self.tuning_data is not None
        return self.tuning_data

    @property
    def device(self) -> Device:
        """Latencies here. Raises UndeclaredInputError unless DEVICE is declared."""
        self._declared(Input.DEVICE)
        assert self.timed_device is not None
        return self.timed_device

    def _declared(self, wanted: Input) -> None:
        if wanted not in self.reads:
            raise UndeclaredInputError(f"the pass reads {wanted.name} but does not declare it")


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass gives back."""

    model: Model
    modified: bool
    stats: Mapping[str, int | float | str] = field(default_factory=dict)
    rewrites: tuple[Rewrite, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    choice: Any = None
    """What was chosen by measuring, as plain data: it goes into the lock."""
    budget: Budget | None = None
    """The limit that the pass worked to."""
    notes: tuple[str, ...] = ()
    """Lines for the report."""


class Pass(BaseModel, ABC):
    """Rewrites a model of one level; see the module docstring for how to write one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=wanted()
    )

    level: ClassVar[Level]
    also: ClassVar[frozenset[Level]] = frozenset()
    """Other levels that the pass works on; `run` tells them apart by the model's class."""
    reads: ClassVar[frozenset[Input]] = frozenset()
    """What every instance reads besides the model; see `needs`."""
    preserves: ClassVar[frozenset[type[Analysis[Any]]]] = frozenset()
    """The analyses whose results still hold after the pass changed the model."""
    quantizes: ClassVar[bool] = False
    """True for passes that quantize a float model: later ones may read what it was (FLOAT)."""
    required_by_default: ClassVar[bool] = False
    """True for precision and training passes: rolled back, they must not ship under their name."""
    tools: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version decides the result, for the cache key and the lock."""
    version: ClassVar[int] = 1
    """To be raised when the pass's results change within one release of optimc."""

    @classmethod
    def pass_name(cls) -> str:
        """The name in recipes: the class name in snake case (QuantizeInt8: quantize_int8)."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @property
    @abstractmethod
    def effect(self) -> Effect:
        """What this instance promises; options decide it."""

    @property
    def changes_dtypes(self) -> bool:
        """Whether inputs and outputs may become another float type; names and order never do."""
        return False

    @property
    def needs(self) -> frozenset[Input]:
        """What this instance reads besides the model: `reads`, and more if options ask for it."""
        return self.reads

    @property
    def wants(self) -> frozenset[Input]:
        """What this instance reads too where the recipe has it: see `PassContext.has`."""
        return frozenset()

    @classmethod
    def levels(cls) -> frozenset[Level]:
        """All levels that the pass works on."""
        return cls.also | {cls.level}

    def check_target(self, spec: TargetSpec) -> None:
        """Raises PreconditionError where the pass has nothing to do for a target, with the way out.

        Asked of each cell before any work, by `optimc check` too, also of passes that do not read
        the spec. Cheap: imports nothing heavy.
        """
        if Input.CALIBRATION in self.needs and spec.quantization is None:
            name = self.pass_name()
            raise PreconditionError(
                f"the target `{spec.runtime}` runs no INT8: {name} has nothing to place",
                fix=f"take {name} out of the variants of this target",
            )

    def check_extras(self) -> None:
        """Raises UnavailableError where the options ask for an extra that is not installed.

        Asked as `check_target` is, and as cheap.
        """

    def check(self, model: Model, context: PassContext) -> None:
        """Raises PreconditionError where the pass cannot run on `model`, with the way out."""

    @abstractmethod
    def run(self, model: Any, context: PassContext) -> PassResult:
        """Rewrites `model`, a clone of its own, and returns the result.

        `model` is an `OnnxModel` for passes of the ONNX level, a `TorchModel` (which is never
        changed: open it in a workshop) for those of the torch level. Raises PreconditionError
        where it finds out only now that it cannot run.
        """

    def files(self, folder: Path) -> list[Path]:
        """Files and user code's modules that options name, relative to the recipe's `folder`.

        Their contents are in the cache key and in the lock.
        """
        return []

    def module_patterns(self) -> Mapping[str, Sequence[str]]:
        """By option: patterns that have to name modules of the source, to be checked before any
        work. The pass itself says more when it runs."""
        return {}

    def functions(self) -> list[str]:
        """The user's functions that options name, as ``module:function``."""
        return []

    def options(self) -> dict[str, Any]:
        """The options as plain data, defaults included."""
        return self.model_dump(mode="json")
