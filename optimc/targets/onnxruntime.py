"""ONNX Runtime on the CPU: the artifact is a portable ONNX file."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from optimc.core.cpu import cpu_features
from optimc.core.descriptions import wanted
from optimc.core.errors import CellError
from optimc.core.model import EXTERNAL_DATA_THRESHOLD, Model, OnnxModel
from optimc.core.targets import (
    BuildContext,
    Engine,
    Layer,
    OptionValue,
    Session,
    Target,
    TargetSpec,
    TimedLayer,
    Unavailability,
)
from optimc.targets.artifacts import feeds_as_text, place_onnx, session_settings
from optimc.targets.feeds import NUMBERS, check_exchange, checked_feeds
from optimc.targets.native import refusal
from optimc.targets.onnxruntime_releases import make_readable
from optimc.targets.threads import Threads, thread_counts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.core.targets import Arrays

NAME = "ONNX Runtime"
MODEL = "model.onnx"
OPTIMIZED = "model.optimized.onnx"
_MOST_INSIDE = 10**9
"""Bytes of weights: an ONNX file holds less than two of these."""

Release: TypeAlias = Literal[
    "1.10",
    "1.11",
    "1.12",
    "1.13",
    "1.14",
    "1.15",
    "1.16",
    "1.17",
    "1.18",
    "1.19",
    "1.20",
    "1.21",
    "1.22",
]

LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}
"""A manifest's `graph_optimization` in the runtime's own words, in Python as in C++."""
_LOAD = """\
import onnxruntime
# feeds = {feeds}
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.{level}{libraries}
session = onnxruntime.InferenceSession({main!r}, options, providers=["CPUExecutionProvider"])
outputs = dict(zip({outputs}, session.run({outputs}, feeds)))
"""


class Portable(BaseModel):
    """Where the artifact has to run besides this machine."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=wanted()
    )

    oldest_runtime: Release
    """The oldest release of ONNX Runtime that has to read the file: its opset and IR version are
    kept low enough."""


class OnnxRuntime(Target):
    """ONNX Runtime's CPU provider."""

    runtime: Literal["onnxruntime"] = "onnxruntime"
    """The runtime's name in recipes."""
    threads: Threads = 1
    """Threads of one inference; 0 takes all physical cores. `auto` tries 1, half of the physical
    cores and all of them in each cell, and takes more only where that is faster on this machine
    (1 under `--no-measure`)."""
    optimized: bool = False
    """Save the graph as the runtime's optimizer leaves it beside the portable file, and run that:
    it opens faster, but only a CPU with the same features can run it."""
    portable: Portable | None = None
    """`{oldest_runtime: "1.17"}` keeps the file readable for that release. Operators that only this
    runtime has are then left out."""
    graph_optimization: Literal["all", "extended", "basic", "disabled", "auto"] = "all"
    """How far the runtime rewrites the graph when it opens it. `auto` tries `all`, `extended` and
    `basic` in each cell, and takes a lower level only where it is faster on this machine (`all`
    under `--no-measure`)."""

    fusions: bool | Literal["auto"] = "auto"
    """Attention, integer products with a bias and residual norms in the form that this runtime runs
    fastest, mostly as operators that only it has: `auto` keeps them where they verify and measuring
    says that they are faster on this machine (never under `--no-measure`), `true` where they
    verify."""

    tools: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    @classmethod
    def unavailable(cls) -> Unavailability | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return Unavailability(f"{NAME} is not installed", "pip install onnxruntime")
        return None

    @classmethod
    def preload(cls) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()

    def spec(self) -> TargetSpec:
        from optimc.targets.quantization_specs import onnxruntime_cpu

        features = cpu_features()
        return TargetSpec(
            runtime=self.runtime,
            # What release 1.31, the oldest that we take, supports officially.
            max_opset=26,
            max_ir_version=13,
            dtypes=NUMBERS | {"string", "int4", "uint4"},
            domains=frozenset({"", "ai.onnx.ml", "com.microsoft"}),
            quantization=onnxruntime_cpu(features),
            cpu_features=features,
        )

    def open_options(self) -> Mapping[str, tuple[OptionValue, ...]]:
        found: dict[str, tuple[OptionValue, ...]] = {}
        if self.threads == "auto":
            found["threads"] = thread_counts()
        if self.graph_optimization == "auto":
            found["graph_optimization"] = ("all", "extended", "basic")
        return found

    @property
    def legalization(self) -> Literal["never", "measured", "always"]:
        if self.portable is not None:
            return "never"
        if self.fusions == "auto":
            return "measured"
        return "always" if self.fusions else "never"

    def legalize(self, model: Model, context: BuildContext) -> Model:
        from optimc.targets.onnxruntime_fusions import fused

        assert isinstance(model, OnnxModel)
        found = fused(model)
        if found is None:
            return model
        legal, added = found
        listed = ", ".join(f"{count} {name}" for name, count in sorted(added.items()))
        context.notes.append(f"wrote {listed} ({model.stats.nodes} -> {legal.stats.nodes} nodes)")
        return legal

    def build(self, model: Model, folder: Path, context: BuildContext) -> Engine:
        assert isinstance(model, OnnxModel)
        check_exchange(model.signature, NUMBERS | {"string"}, NAME)
        place_onnx(model, folder / MODEL)
        lowered = None
        if self.portable is not None:
            lowered = make_readable(folder / MODEL, self.portable.oldest_runtime)
        session: dict[str, Any] = {
            "threads": self.threads,
            "graph_optimization": self.graph_optimization,
            "precision": _float_type(folder / MODEL),
        }
        libraries = _place_libraries(folder)
        if libraries:
            session["custom_ops"] = libraries
        main, notes = MODEL, [*context.notes, *_own_operators(folder / MODEL)]
        notes += [lowered] if lowered else []
        options = session_options(session, folder)
        if self.optimized:
            large = model.stats.bytes > EXTERNAL_DATA_THRESHOLD
            _save_optimized(options, folder / OPTIMIZED, weights_apart=large)
        native = open_native(folder / MODEL, options)
        if self.optimized:
            main = OPTIMIZED
            session |= {"graph_optimization": "disabled", "cpu_features": sorted(cpu_features())}
            notes.append(
                f"{OPTIMIZED} is bound to this CPU and to this release of {NAME}; "
                f"{MODEL} is the portable form"
            )
        engine = Engine.describe(
            folder,
            runtime=self.runtime,
            main=main,
            model=model,
            session=session,
            load=_LOAD.format(
                feeds=feeds_as_text(model.signature.inputs),
                threads=self.threads,
                level=LEVELS[str(session["graph_optimization"])],
                main=main,
                libraries="".join(
                    f"\noptions.register_custom_ops_library({f'./{name}'!r})" for name in libraries
                ),
                outputs=[spec.name for spec in model.signature.outputs],
            ),
            versions={"onnxruntime": version("onnxruntime")},
            # The optimizer at its highest level does not write the same bytes in every run.
            deterministic=not self.optimized,
            notes=tuple(notes),
        )
        if not self.optimized:
            context.opened = OnnxRuntimeSession(engine, session_settings(engine, {}), native)
        return engine

    @classmethod
    def open(cls, engine: Engine, **overrides: Any) -> OnnxRuntimeSession:
        settings = session_settings(engine, overrides)
        missing = set(settings.get("cpu_features", ())) - cpu_features()
        if missing:
            raise CellError(
                f"{engine.main.name} was made for a CPU with {', '.join(sorted(missing))}",
                where=str(engine.folder),
                fix=f"run {MODEL} in the same folder, the portable form",
            )
        return OnnxRuntimeSession(engine, settings)


def session_options(settings: dict[str, Any], folder: Path) -> Any:
    """The `onnxruntime.SessionOptions` for the manifest's `session` of the engine in `folder`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(settings["threads"])
    # One operator at a time: operators side by side would only share the same cores.
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    level = LEVELS[str(settings["graph_optimization"])]
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    # Fatal only: whatever goes wrong comes as an exception, whose message we pass on.
    options.log_severity_level = 4
    for name in settings.get("custom_ops", ()):
        # Of the engine's own folder and nowhere else, whatever the manifest says.
        options.register_custom_ops_library(str(folder.absolute() / Path(name).name))
    return options


def _place_libraries(folder: Path) -> list[str]:
    """Copies the libraries of custom operators beside the model; their names."""
    from optimc.core import custom_ops

    for path in custom_ops.provided():
        shutil.copyfile(path, folder / path.name)
    return [path.name for path in custom_ops.provided()]


def open_native(path: Path, options: Any) -> Any:
    """An `onnxruntime.InferenceSession`. Raises CellError where the runtime refuses."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has some ten types, without a common base
        raise refusal(error, NAME, f"opening {path.name}") from error


def _save_optimized(options: Any, path: Path, *, weights_apart: bool) -> None:
    """Makes the session that is opened next write its graph to `path`."""
    options.optimized_model_filepath = str(path)
    if weights_apart:
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{prefix}_file_name", f"{path.name}.data")
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")


def _refers_to_weights(path: Path) -> bool:
    """Whether the model's weights lie beside it, and are few enough to be in it if they change."""
    data = path.with_name(f"{path.name}.data")
    return data.is_file() and data.stat().st_size < _MOST_INSIDE


def _float_type(path: Path) -> str:
    """`f16` where the model holds float16 weights, else `f32`."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    return "f16" if half else "f32"


def _own_operators(path: Path) -> list[str]:
    """A note where the model holds operators that no other runtime has."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    own = sorted({node.op_type for node in model.graph.node if node.domain == "com.microsoft"})
    if not own:
        return []
    return [f"holds {', '.join(own)} of the domain com.microsoft, which only {NAME} runs"]


class OnnxRuntimeSession(Session):
    """One `onnxruntime.InferenceSession`."""

    def __init__(self, engine: Engine, settings: dict[str, Any], native: Any = None) -> None:
        """`native` is the runtime's session, where it is open."""
        self._engine = engine
        self._settings = settings
        if native is None:
            native = open_native(engine.main, session_options(settings, engine.folder))
        self._native: Any = native
        self._bounds: weakref.WeakSet[_Bound] = weakref.WeakSet()

    def bind(self, feeds: Arrays) -> _Bound:
        signature = self._engine.signature
        arrays = checked_feeds(signature, feeds)
        names = [spec.name for spec in signature.outputs]
        strings = any(s.dtype == "string" for s in (*signature.inputs, *signature.outputs))
        bound = (_Bound if strings else _IOBound)(self._native, arrays, names)
        self._bounds.add(bound)
        return bound

    def layers(self) -> tuple[Layer, ...]:
        from optimc.targets.onnxruntime_layers import read_layers

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / OPTIMIZED
            options = session_options(self._settings, self._engine.folder)
            # Weights are not read back: kept apart, they are not parsed either. Those that lie in
            # a file of their own are only referred to, which saves writing them all.
            _save_optimized(options, path, weights_apart=not _refers_to_weights(self._engine.main))
            open_native(self._engine.main, options)
            return read_layers(path)

    def profile(self, feeds: Arrays, warmup: int, runs: int) -> tuple[TimedLayer, ...]:
        from optimc.targets.onnxruntime_layers import timed_layers

        with tempfile.TemporaryDirectory() as folder:
            options = session_options(self._settings, self._engine.folder)
            _save_optimized(options, Path(folder) / OPTIMIZED, weights_apart=True)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            native = open_native(self._engine.main, options)
            arrays = checked_feeds(self._engine.signature, feeds)
            bound = _Bound(native, arrays, [spec.name for spec in self._engine.signature.outputs])
            for _ in range(warmup + runs):
                bound.run()
            events = Path(native.end_profiling())
            return timed_layers(Path(folder) / OPTIMIZED, events, warmup)

    def close(self) -> None:
        self._native = None
        for bound in self._bounds:
            bound.release()


class _Bound:
    """Inputs in place for `InferenceSession.run`: the way that also takes strings."""

    def __init__(
        self, native: Any, feeds: dict[str, NDArray[np.generic]], names: list[str]
    ) -> None:
        self._native = native
        self._feeds = feeds
        self._names = names
        self._values: list[Any] = []

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # see open_native
            if self._native is None:
                raise ValueError("the session is closed") from error
            raise refusal(error, NAME, "running the engine") from error

    def _run(self) -> None:
        self._values = self._native.run(self._names, self._feeds)

    def outputs(self) -> dict[str, NDArray[np.generic]]:
        return dict(zip(self._names, self._values, strict=True))

    def release(self) -> None:
        """Lets go of the runtime's objects: the session is closed."""
        self._native = None


class _IOBound(_Bound):
    """The same by `IOBinding`: a run copies nothing and looks up no names."""

    def __init__(
        self, native: Any, feeds: dict[str, NDArray[np.generic]], names: list[str]
    ) -> None:
        from onnxruntime import OrtValue

        super().__init__(native, feeds, names)
        self._binding = native.io_binding()
        for name, array in feeds.items():
            # The value points into the array, which this object keeps.
            self._binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        for name in names:
            # Of whatever shape: the runtime allocates it from its own arena.
            self._binding.bind_output(name, "cpu")

    def _run(self) -> None:
        self._native.run_with_iobinding(self._binding)

    def outputs(self) -> dict[str, NDArray[np.generic]]:
        values = self._binding.get_outputs()
        # numpy() is a view of memory that the next run may take.
        return {n: v.numpy().copy() for n, v in zip(self._names, values, strict=True)}

    def release(self) -> None:
        super().release()
        self._binding = None


TARGET = OnnxRuntime
