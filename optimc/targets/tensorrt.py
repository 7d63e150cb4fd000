"""TensorRT 10.12 and newer on NVIDIA GPUs: the artifact is a serialized engine, a plan.

Networks are strongly typed: the precision is the graph's, from `float16` and from the Q and DQ that
`quantize_int8` places by this target's specification. Plans are not bit-identical between builds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from optimc.core.errors import CellError, UnavailableError
from optimc.core.model import Model, OnnxModel
from optimc.core.targets import (
    BuildContext,
    DeferringTarget,
    Engine,
    Session,
    TargetSpec,
    Unavailability,
)
from optimc.targets.artifacts import feeds_as_text, place_onnx, session_settings
from optimc.targets.feeds import check_exchange, lint_exchange

if TYPE_CHECKING:
    from optimc.core.lint import Finding
    from optimc.core.model import Signature
    from optimc.core.targets import DimSizes
    from optimc.targets.tensorrt_build import PlanOptions

NAME = "TensorRT"
PLAN = "model.plan"
WEIGHTS = "model.onnx"
"""Beside a stripped plan: the model that its weights come from."""
LEAST_VERSION = (10, 12)
EXCHANGED = frozenset({"float32", "float16", "int8", "uint8", "int32", "int64", "bool"})
"""Types of inputs and outputs that both numpy and TensorRT have."""

_LIBRARIES_FIX = (
    "pip install 'optimc[tensorrt]' on a machine with an NVIDIA GPU (its libraries come from "
    "NVIDIA's package index), or set `optional: true` on this target"
)
_LOAD = """\
import tensorrt
# feeds = {feeds}
logger = tensorrt.Logger()
runtime = tensorrt.Runtime(logger)
{before}engine = runtime.deserialize_cuda_engine(open({main!r}, "rb").read())
{after}context = engine.create_execution_context()
# then set_input_shape and set_tensor_address of each tensor, and execute_async_v3
"""
_REFIT = """\
refitter = tensorrt.Refitter(engine, logger)  # the plan is stripped
tensorrt.OnnxParserRefitter(refitter, logger).refit_from_file({weights!r})
refitter.refit_cuda_engine()
"""


class TensorRT(DeferringTarget):
    """TensorRT 10.12 and newer, with strongly typed networks: the precision is the graph's."""

    runtime: Literal["tensorrt"] = "tensorrt"
    """The runtime's name in recipes."""
    profiles: list[dict[str, tuple[int, int, int]]] = Field(default=[])
    """Optimization profiles: of each dim its least, usual and greatest size. Without any there is
    one, of the recipe's `dims`; a dim that a profile leaves out is the recipe's, too."""
    optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    """How long the builder searches, 0 to 5. At 0 it uses no timing cache."""
    workspace_mb: Annotated[int, Field(ge=1)] | None = None
    """Scratch memory that kernels may take, in MB; all of the GPU's where it is left out."""
    shared_memory_kb: Annotated[int, Field(ge=1)] | None = None
    """Shared memory that one kernel may take, in kB; the GPU's own limit where it is left out."""
    tf32: bool = False
    """Whether float32 layers may compute with 10 bits of mantissa."""
    sparse_weights: bool = False
    """Whether kernels for 2:4 sparse weights are tried. Needs weights pruned to that pattern."""
    version_compatible: bool = False
    """Whether later minor versions of TensorRT may load the plan."""
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    """Which other GPUs may run the plan."""
    refit: bool = False
    """Whether weights can be exchanged in the plan later."""
    strip_plan: bool = False
    """Whether the plan leaves out the weights. The ONNX file then lies beside it, and they are
    refitted from there when the engine is opened."""
    weight_streaming_mb: Annotated[int, Field(ge=0)] | None = None
    """Memory on the GPU that weights may take, in MB: what does not fit is streamed in with every
    run. All weights stay on the GPU where it is left out."""
    plugins: list[Path] = Field(default=[])
    """Plugin libraries, loaded when the engine is built and when it is opened."""
    device: Annotated[int, Field(ge=0)] = 0
    """The number of the GPU."""
    release: Annotated[str, Field(pattern=r"^[0-9]{2}\.[0-9]{1,2}$")] | None = None
    """The TensorRT release that the engine is for, such as "11.4": the model is checked for what
    this one takes, and an older one refuses to build it. Where it is left out, the model is checked
    for the installed release, or for 10.12 where there is none."""
    evaluation_in_kit: bool = False
    """Whether a kit holds the evaluation data, so that `optimc finish` can measure the metrics.
    Only for samples of one shape."""

    @field_validator("optimization_level", mode="before")
    @classmethod
    def _given(cls, level: object) -> object:
        if level == "auto":
            raise ValueError(
                "levels are not measured for TensorRT\n"
                "write a number, 0 to 5, or one target for each level to compare"
            )
        return level

    @field_validator("release", mode="before")
    @classmethod
    def _text(cls, release: object) -> object:
        if isinstance(release, (int, float)):  # 10.10 would be 10.1
            raise ValueError(f'{release} is a number\nput the release in quotes: "11.4"')
        return release

    @field_validator("release")
    @classmethod
    def _taken(cls, release: str | None) -> str | None:
        least = ".".join(map(str, LEAST_VERSION))
        if release is not None and _parts(release) < LEAST_VERSION:
            raise ValueError(f"TensorRT {release} is too old\noptimc takes {least} and newer")
        return release

    @field_validator("profiles")
    @classmethod
    def _ordered(
        cls, profiles: list[dict[str, tuple[int, int, int]]]
    ) -> list[dict[str, tuple[int, int, int]]]:
        from optimc.targets.tensorrt_profiles import check_order

        check_order(profiles)
        return profiles

    tools: ClassVar[tuple[str, ...]] = ("tensorrt",)
    extra: ClassVar[str | None] = "tensorrt"
    reads_dims: ClassVar[bool] = True
    lints: ClassVar[bool] = True
    keeps_timings: ClassVar[bool] = True
    logs_builds: ClassVar[bool] = True
    times_on_device: ClassVar[bool] = True

    @classmethod
    def unavailable(cls) -> Unavailability | None:
        missing = [m for m in ("tensorrt", "cuda") if importlib.util.find_spec(m) is None]
        if missing:
            return Unavailability(f"{NAME} is not installed (extra `{cls.extra}`)", _LIBRARIES_FIX)
        found = _release()
        if found is None or found < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            shown = "of an unknown version" if found is None else ".".join(map(str, found))
            return Unavailability(
                f"{NAME} {shown} is installed, optimc takes {least} and newer",
                f"pip install 'tensorrt>={least}'",
            )
        return _no_gpu()

    @classmethod
    def preload(cls) -> None:
        import tensorrt  # noqa: F401

    def hardware(self) -> Mapping[str, str]:
        from optimc.targets.tensorrt_cuda import describe_device

        return describe_device(self.device)

    def libraries(self) -> tuple[Path, ...]:
        return tuple(self.plugins)

    def spec(self) -> TargetSpec:
        from optimc.targets.quantization_specs import tensorrt

        return TargetSpec(
            runtime=self.runtime,
            # float16 scales need opset 19; the parser of 10.12 reads up to 22.
            max_opset=22,
            max_ir_version=10,
            dtypes=frozenset(
                {"float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"}
            ),
            quantization=tensorrt(),
        )

    def lint(self, model: Model) -> tuple[Finding, ...]:
        from optimc.targets.tensorrt_lint import lint
        from optimc.targets.tensorrt_sparsity import lint_sparsity
        from optimc.targets.tensorrt_support import parser_of

        assert isinstance(model, OnnxModel)
        exchange = lint_exchange(model.signature, EXCHANGED, NAME)
        release = _parts(self.release) if self.release else _release()
        found = (*exchange, *lint(model, parser_of(release), plugins=bool(self.plugins)))
        return (*found, *lint_sparsity(model)) if self.sparse_weights else found

    def check(self, signature: Signature, dims: Mapping[str, DimSizes]) -> None:
        from optimc.targets.tensorrt_profiles import check_profiles

        check_profiles(self.profiles, signature, dims)

    def build(self, model: Model, folder: Path, context: BuildContext) -> Engine:
        from optimc.targets.tensorrt_build import Console, Log, build_plan
        from optimc.targets.tensorrt_cuda import call

        missing = self.unavailable()
        if missing is not None:
            raise UnavailableError(missing.reason, fix=missing.remedy)
        self._check_release()
        assert isinstance(model, OnnxModel)
        check_exchange(model.signature, EXCHANGED, NAME)
        path = model.path
        if path is None:
            path = context.workspace / "model.onnx"
            place_onnx(model, path)
        call("cudaSetDevice", self.device)
        options = self.plan_options(model.signature, context.dims)
        options = replace(options, timing_cache=context.timing_cache)
        log = Log()
        plan = build_plan(path, options, Console(log.take, log.show))
        context.timing_cache = plan.timing_cache
        context.notes += log.warnings
        (folder / PLAN).write_bytes(plan.engine)
        if self.strip_plan:
            place_onnx(model, folder / WEIGHTS)
        return Engine.describe(
            folder,
            runtime=self.runtime,
            main=PLAN,
            model=model,
            session={
                "device": self.device,
                "plugins": [str(path) for path in self.plugins],
                "weights": WEIGHTS if self.strip_plan else None,
                "weight_streaming_mb": self.weight_streaming_mb,
            },
            load=self._load(feeds_as_text(model.signature.inputs)),
            versions={"tensorrt": version("tensorrt")},
            deterministic=False,
            notes=tuple(context.notes),
        )

    def _check_release(self) -> None:
        """Raises CellError where a newer TensorRT was asked for than there is."""
        found = _release()
        if self.release and found is not None and found < _parts(self.release):
            shown = ".".join(map(str, found))
            raise CellError(
                f"TensorRT {shown} is installed, the recipe's `release` is {self.release}",
                fix=f"pip install 'tensorrt>={self.release}'",
            )

    def _load(self, feeds: str) -> str:
        """The manifest's code that opens the plan."""
        before = "".join(
            f"runtime.get_plugin_registry().load_library({str(path)!r})\n" for path in self.plugins
        )
        if self.version_compatible:
            before += "runtime.engine_host_code_allowed = True  # the plan brings a runtime\n"
        after = _REFIT.format(weights=WEIGHTS) if self.strip_plan else ""
        return _LOAD.format(feeds=feeds, main=PLAN, before=before, after=after)

    def defer(self, model: Model, folder: Path, context: BuildContext) -> None:
        from optimc.targets.tensorrt_kit import write_scripts

        check_exchange(model.signature, EXCHANGED, NAME)
        release = self.release or ".".join(map(str, LEAST_VERSION))
        write_scripts(folder, self.plan_options(model.signature, context.dims), release)

    def plan_options(self, signature: Signature, dims: Mapping[str, DimSizes]) -> PlanOptions:
        """What the builder is told for a model, with the recipe's sizes of its dims."""
        from optimc.targets.tensorrt_build import PlanOptions
        from optimc.targets.tensorrt_profiles import profile_shapes

        flags = {
            "TF32": self.tf32,
            "SPARSE_WEIGHTS": self.sparse_weights,
            "VERSION_COMPATIBLE": self.version_compatible,
            "REFIT": self.refit,
            "STRIP_PLAN": self.strip_plan,
            "WEIGHT_STREAMING": self.weight_streaming_mb is not None,
        }
        return PlanOptions(
            profiles=tuple(
                shapes for shapes in profile_shapes(self.profiles, signature.inputs, dims) if shapes
            ),
            optimization_level=self.optimization_level,
            workspace_mb=self.workspace_mb,
            shared_memory_kb=self.shared_memory_kb,
            flags=frozenset(name for name, on in flags.items() if on),
            hardware_compatibility=self.hardware_compatibility.upper(),
            plugins=tuple(self.plugins),
            weight_streaming_mb=self.weight_streaming_mb,
        )

    @classmethod
    def open(cls, engine: Engine, **overrides: Any) -> Session:
        from optimc.targets.tensorrt_session import TensorRTSession

        return TensorRTSession(engine, session_settings(engine, overrides))


def _release() -> tuple[int, int] | None:
    """The installed release of TensorRT, None where there is none."""
    try:
        found = version("tensorrt")
    except PackageNotFoundError:
        return None
    return _parts(found)


def _parts(version: str) -> tuple[int, int]:
    """Major and minor."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return major, minor


def _no_gpu() -> Unavailability | None:
    """Why there is no GPU to build for; None where there is one."""
    from optimc.targets.tensorrt_cuda import call

    try:
        devices = call("cudaGetDeviceCount")
    except CellError as error:
        return Unavailability(f"{NAME} finds no GPU: {error}", _LIBRARIES_FIX)
    if not devices:
        return Unavailability(f"{NAME} finds no GPU", _LIBRARIES_FIX)
    return None


TARGET = TensorRT
