"""The base of all targets: a runtime that builds engines, and the data that describes it.

A `TargetSpec` is data: passes read it instead of asking which target they work for. An `Engine` is
a folder with files that one runtime loads and a manifest that works without optimc. Sessions live
in worker processes, see `optimc.targets.service`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    Self,
    TypeAlias,
    runtime_checkable,
)

from pydantic import BaseModel, ConfigDict, field_serializer

from optimc.core.descriptions import wanted
from optimc.core.digest import digest_of
from optimc.core.errors import InputError
from optimc.core.files import file_sha256
from optimc.core.model import Model, Signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.core.lint import Finding

    Arrays = Mapping[str, NDArray[np.generic]]

OptionValue: TypeAlias = bool | int | float | str
"""What is tried for an option: it goes into the lock, as JSON."""


class SpecData(BaseModel):
    """Base of the frozen data that describes a target."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=wanted())


class OperatorRule(SpecData):
    """How one operator runs in INT8 on a target."""

    inputs: Literal["all", "first", "skip"] = "all"
    """Which of the activations get a Q/DQ pair: all, the first input alone (the others are shapes,
    axes and the like), or for a residual Add all but the branch that a Conv, Gemm or MatMul
    computes last, because the kernel of that operator takes the Add in."""
    weight: int | None = None
    """The input that holds the weight, which must be constant unless `dynamic_weight` (Conv: 1)."""
    weight_axis: int | None = None
    """The axis of per-channel weight scales (of Gemm's B as it stands without transB); None is one
    scale for the whole weight."""
    dynamic_weight: bool = False
    """Whether the weight may be an activation (a MatMul of two)."""
    bias: int | None = None
    """The input that holds the bias."""
    output: bool = True
    """Whether the output needs a Q as its only consumer for the INT8 kernel to be taken."""
    gives_floats: bool = False
    """Whether the kernel's own result is float, so that a Q behind it costs more than it brings to
    an operator that only runs between quantized ones (the residual Add of a transformer)."""
    absorbs: tuple[str, ...] = ()
    """Activations that the kernel takes in: the Q then stands behind them (Conv: Relu, Clip)."""
    same_scale: bool = False
    """Data movement and pooling: the output keeps the scale and zero point of the input."""
    on_integers: bool = False
    """Data movement that runs on the integers themselves, between Q and DQ."""
    only_with_quantized_input: bool = False
    """Quantized only where every activation comes from another quantized operator."""
    bias_apart: bool = False
    """Whether an Add of a constant behind it is written as Sum, because the runtime would make one
    float operator of both."""
    only_if_read: bool = False
    """Quantized only where another quantized operator reads the result (as data movement is)."""
    explicit_padding: bool = False
    """Whether padding that counts (AveragePool) is written as a Pad of integers, because the kernel
    would fill with the integer 0 instead of the zero point."""
    symmetric_input: bool = False
    """Whether the kernel wants a zero point of 0 at its input."""
    symmetric_product: bool = False
    """Whether it wants that only where its weight is an activation (`dynamic_weight`)."""
    least_size: int = 1
    """Weights (or second operands) with a smaller K or N are not worth an INT8 kernel."""
    least_rows: int = 1
    """Products with fewer rows (M, where it is fixed) are not: with one it is a matrix by a vector,
    and reading the weight takes all the time."""


class QuantizationSpec(SpecData):
    """Where Q and DQ go for a target, and of which types."""

    activation_dtype: Literal["uint8", "int8"]
    activation_symmetric: bool
    """Whether all zero points of activations are 0. Weights are int8 with a zero point of 0."""
    reduce_range: bool = False
    """7-bit weights: for CPUs whose INT8 multiply-add saturates in 16 bits (no VNNI)."""
    bias: Literal["int32", "float"]
    """`int32` is a DQ with the scale of the accumulator: the input's times the weight's."""
    global_average_pool: bool = False
    """Whether a ReduceMean over all space is written as GlobalAveragePool, for which there is an
    INT8 kernel."""
    dynamic: Literal["matmul_integer", "weights"] | None = None
    """What there is without calibration: `matmul_integer` where DynamicQuantizeLinear and
    MatMulInteger have kernels, `weights` where int8 weights behind a DequantizeLinear stay int8 in
    memory, None where neither is."""
    nncf_device: Literal["CPU"] | None = None
    """What NNCF calls this hardware, where its own placement is what the target's kernels take;
    None where it is not."""
    rules: Mapping[str, OperatorRule]
    """From the operator type (default domain) to its rule; what is not listed stays float."""


class TargetSpec(SpecData):
    """What passes may know of a target. Targets with equal digests share their passes' results."""

    runtime: str
    max_opset: int
    max_ir_version: int
    dtypes: frozenset[str]
    """Numpy names of the tensor types with kernels."""
    domains: frozenset[str] = frozenset({""})
    quantization: QuantizationSpec | None = None
    cpu_features: frozenset[str] = frozenset()
    """CPU features that decide the placement (a part of the digest)."""

    @field_serializer("dtypes", "domains", "cpu_features", when_used="json")
    def _sorted(self, names: frozenset[str]) -> list[str]:
        # A set has another order in every process.
        return sorted(names)

    @property
    def digest(self) -> str:
        """SHA-256 of the data."""
        return digest_of(self.model_dump(mode="json"))


@dataclass(frozen=True, slots=True)
class Unavailability:
    """Why a target cannot be built here, and what would change that."""

    reason: str
    remedy: str


class Bound(Protocol):
    """A session with its inputs in place: running it again costs no copies that it can avoid."""

    def run(self) -> None:
        """One inference; returns when the outputs are complete."""

    def outputs(self) -> Arrays:
        """The outputs of the last run, by name, as numpy arrays on the host."""


@runtime_checkable
class ClockedBound(Bound, Protocol):
    """One whose runtime keeps a clock around its own call: what Python adds is not in it."""

    def run_ns(self) -> int:
        """One inference, as `run`; the nanoseconds it took by the runtime's clock."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as the runtime really runs it, read back from the runtime."""

    name: str
    """The node's or value's name in the model, as far as the runtime keeps it."""
    operator: str
    """The runtime's name of the operation."""
    dtype: str
    """The numpy name of the type it computes in; int8 stands for signed and unsigned alike."""
    heavy: bool
    """Whether it is of the families that take the time: convolutions and matrix products."""
    reason: str | None = None
    """Why it is not in int8, where a heavy layer of a quantized model is not."""


@dataclass(frozen=True, slots=True)
class TimedLayer:
    """One layer with the time that the runtime itself says it took."""

    name: str
    operator: str
    """The runtime's name of the operation."""
    dtype: str
    """As in `Layer`."""
    ms: float
    """The median over the profiled runs."""
    parts: tuple[str, ...]
    """Names of nodes and values of the engine's graph that the layer is known to stand for."""


class Session(ABC):
    """An engine opened by its runtime, in this process. A context manager."""

    @abstractmethod
    def bind(self, feeds: Arrays) -> Bound:
        """Puts `feeds` (all inputs, by name) in place. Raises InputError for wrong ones."""

    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """What the runtime made of the model, in its order. Slow: it may open the engine again."""

    def profile(self, feeds: Arrays, warmup: int, runs: int) -> tuple[TimedLayer, ...] | None:
        """The time of each layer over `runs` runs, after `warmup` runs that do not count.

        By the runtime's own profiler, in a session of its own: profiling costs time, so that the
        sum is more than the latency. None where the runtime has no profiler.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Frees the runtime's objects."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Engine:
    """The files of one built cell. `folder` holds them and ``manifest.json``."""

    folder: Path
    manifest: Mapping[str, Any]

    MANIFEST: ClassVar[str] = "manifest.json"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The engine in `folder`. Raises InputError where its manifest is none."""
        path = folder / cls.MANIFEST
        fix = "name a folder that `optimc build` wrote, such as out/artifacts/int8/ort"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"the manifest cannot be read: {error}", where=str(path), fix=fix
            ) from error
        needed = ("runtime", "main", "files", "identity", "session", "signature")
        missing = [key for key in needed if not isinstance(manifest, dict) or key not in manifest]
        if missing:
            raise InputError(
                f"this is no engine's manifest: it has no {missing[0]}", where=str(path), fix=fix
            )
        return cls(folder, manifest)

    @classmethod
    def describe(
        cls,
        folder: Path,
        *,
        runtime: str,
        main: str,
        model: Model,
        session: Mapping[str, Any],
        load: str,
        versions: Mapping[str, str],
        deterministic: bool,
        notes: tuple[str, ...] = (),
    ) -> Self:
        """Writes the manifest for the files in `folder` and returns the engine.

        `main` is the file the runtime loads; `session` is what the runtime needs to know to open
        it as it was measured (threads, precision); `load` is the code (about four lines of Python,
        run inside the folder) that loads and runs the engine without optimc; `deterministic` says
        whether the same build gives the same bytes: if not, the model's digest is the identity.
        """
        files = {
            path.relative_to(folder).as_posix(): {
                "sha256": file_sha256(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != cls.MANIFEST
        }
        identity = digest_of(files) if deterministic else model.digest
        manifest = {
            "schema": 1,
            "runtime": runtime,
            "main": main,
            "files": files,
            "identity": {
                "sha256": identity,
                "of": "files" if deterministic else "the ONNX graph it was made from",
            },
            "model_sha256": model.digest,
            "signature": model.signature.to_json(),
            "session": dict(session),
            "versions": dict(versions),
            "load": load,
            "notes": list(notes),
        }
        text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
        (folder / cls.MANIFEST).write_text(text, encoding="utf-8")
        # As `read` gives it: tuples are lists in JSON.
        return cls(folder, json.loads(text))

    @property
    def runtime(self) -> str:
        """The runtime's name, as in recipes."""
        return str(self.manifest["runtime"])

    @property
    def main(self) -> Path:
        """The file that the runtime loads."""
        return self.folder / str(self.manifest["main"])

    @property
    def digest(self) -> str:
        """The identity: of the files, or of the ONNX graph where files are not deterministic."""
        return str(self.manifest["identity"]["sha256"])

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(int(file["bytes"]) for file in self.manifest["files"].values())

    @property
    def signature(self) -> Signature:
        """Inputs and outputs."""
        return Signature.from_json(self.manifest["signature"])


@dataclass(frozen=True, slots=True)
class DimSizes:
    """The sizes of a dynamic dim that an engine has to take."""

    min: int
    typical: int
    max: int


@dataclass
class BuildContext:
    """What a target may use while it legalizes and builds."""

    workspace: Path
    """An empty folder for temporary files."""
    seed: int = 0
    dims: Mapping[str, DimSizes] = field(default_factory=dict)
    """The recipe's sizes of the dynamic dims, where the target `reads_dims`."""
    notes: list[str] = field(default_factory=list)
    """Lines for the report."""
    timing_cache: bytes = b""
    """What earlier builds on this device measured, where the target `keeps_timings`; a build puts
    there what it knows now."""
    opened: Session | None = None
    """A build that opens the finished files anyway, as the manifest's session says, may leave here
    what it opened: the engine is then proved in that session, which saves opening it again."""


class Target(BaseModel, ABC):
    """A runtime with its options: the fields are what the recipe says under `targets`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=wanted()
    )

    runtime: str
    """Which runtime builds and runs the engine."""
    optional: bool = False
    """Whether a build is fine without this target where it cannot be built."""

    tools: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version decides the engine, for the cache key and the lock."""
    extra: ClassVar[str | None] = None
    """The extra that installs the runtime, None for the core."""
    reads_dims: ClassVar[bool] = False
    """Whether engines are built for certain sizes of the dynamic dims."""
    lints: ClassVar[bool] = False
    """Whether models are looked at before they are built, see `lint`."""
    keeps_timings: ClassVar[bool] = False
    """Whether builds measure kernels and a later build may use what an earlier one measured."""
    logs_builds: ClassVar[bool] = False
    """Whether the notes in an engine's manifest are what the runtime warned of while it built."""
    inexact_options: ClassVar[frozenset[str]] = frozenset()
    """Options whose values change the numbers: where they are open, what is tried for them has to
    prove itself first, and to hold the recipe's limit of its first metric on the tuning split."""
    times_on_device: ClassVar[bool] = False
    """Whether what a session binds has `times`, by the device's own clock, and the session
    `clocks_mhz`."""
    defers: ClassVar[bool] = False
    """Whether a build that cannot be done here leaves a kit: of a `DeferringTarget`."""

    @classmethod
    @abstractmethod
    def unavailable(cls) -> Unavailability | None:
        """Why this runtime cannot be used here, or None. Cheap: imports nothing heavy."""

    def hardware(self) -> Mapping[str, str]:
        """What of the device decides the engine beside the CPU, such as the GPU and its driver.

        A part of the engine's cache key; only asked where the target is not `unavailable`.
        """
        return {}

    def open_options(self) -> Mapping[str, tuple[OptionValue, ...]]:
        """The options that the recipe leaves open, each with the values to try on this machine.

        The first value is the usual one: it is taken where nothing is measured, and it must not
        depend on the machine. A later one is taken only where it is clearly faster than what is
        taken so far, so that what costs more stands behind. Options are tried in their order, each
        with what was chosen for those before. Cheap: imports nothing heavy.
        """
        return {}

    def not_tried(self) -> Mapping[str, str]:
        """By open option: what this machine rules out of its values, in words for the report."""
        return {}

    def settled(self, values: Mapping[str, OptionValue] | None = None) -> Self:
        """This target with `values` for options that are open, and the usual ones for the others.

        Raises ValueError (pydantic's) for values that the options do not take.
        """
        taken = {name: tried[0] for name, tried in self.open_options().items()} | dict(values or {})
        if not taken:
            return self
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**own, **taken})

    def libraries(self) -> tuple[Path, ...]:
        """Files of native code that the options name; their content decides the engine."""
        return ()

    @classmethod
    def preload(cls) -> None:
        """Imports the runtime, so that the time of `open` does not hold it."""

    @abstractmethod
    def spec(self) -> TargetSpec:
        """The data that passes read. Cheap: imports nothing heavy."""

    @property
    def legalization(self) -> Literal["never", "measured", "always"]:
        """Whether `legalize` is asked, and whether its result has to win by measuring."""
        return "never"

    def check(self, signature: Signature, dims: Mapping[str, DimSizes]) -> None:
        """Raises InputError where an option does not fit the model's interface; `where` is the
        option's name. Cheap."""
        return None

    def lint(self, model: Model) -> tuple[Finding, ...]:
        """What this runtime is known to refuse or get wrong in an ONNX model, found without it.

        Only for targets that `lints`; may import onnx_ir.
        """
        return ()

    def legalize(self, model: Model, context: BuildContext) -> Model:
        """Rewrites standard ONNX into what only this runtime knows, on a copy.

        Says in `context.notes` what it did; returns `model` itself where there is nothing to do.
        Raises CellError where it breaks: the cell then stays as it is.
        """
        return model

    @abstractmethod
    def build(self, model: Model, folder: Path, context: BuildContext) -> Engine:
        """Builds the engine into the empty `folder`, manifest included.

        Runs in a worker process, of a target that is `settled`. Raises CellError where the runtime
        refuses the model or does not take the precision that was asked for.
        """

    @classmethod
    @abstractmethod
    def open(cls, engine: Engine, **overrides: Any) -> Session:
        """Opens an engine in this process as its manifest's `session` says, `overrides` on top."""


class DeferringTarget(Target):
    """A target whose build leaves a kit where it cannot be done here."""

    defers: ClassVar[bool] = True

    @abstractmethod
    def defer(self, model: Model, folder: Path, context: BuildContext) -> None:
        """Writes into `folder`, beside ``model/model.onnx``, what builds the engine elsewhere.

        It has to work without optimc.
        """
