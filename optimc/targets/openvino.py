"""OpenVINO on the CPU: the artifact is its intermediate representation, an xml and a bin file.

Three habits of OpenVINO (seen with 2026.4) shape this module. Its default precision is the CPU's
fastest, so that float32 must be asked for. A precision that the CPU lacks is replaced without a
word, so that it must be read back. And with one thread, `infer()` loses errors of models with
dynamic shapes and returns whatever the memory holds: only `start_async()` and `wait()` tell them.
They hand each run over to another thread, though, which took 0.09 ms of ResNet-20's 0.87: feeds
that ran once without an error go on by `infer()`, as they do in OpenVINO's own benchmark_app, and
are timed by the same clock: its Python API adds 0.01 ms to a run, which is 4 % of small engines.
"""

from __future__ import annotations

import importlib.util
import time
import weakref
from collections.abc import Mapping
from importlib.metadata import version
from operator import contains
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from optimc.core import telemetry
from optimc.core.cpu import BF16_FEATURES, cpu_features
from optimc.core.errors import CellError
from optimc.core.model import Model, OnnxModel
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
from optimc.targets.artifacts import feeds_as_text, session_settings
from optimc.targets.feeds import NUMBERS, check_exchange, checked_feeds
from optimc.targets.layers import SHORT
from optimc.targets.native import refusal
from optimc.targets.openvino_empty import holds_empty, place_readable
from optimc.targets.threads import Threads, thread_counts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.core.model import Signature
    from optimc.core.targets import Arrays

NAME = "OpenVINO"
MODEL = "model.xml"

_WIDE = frozenset({"int64", "uint64", "float64"})
_LOAD = """\
import openvino
# feeds = {feeds}
request = openvino.Core().compile_model({main!r}, "CPU", {config}).create_infer_request()
# Not infer(): with one thread and dynamic shapes it loses errors. It is faster by a change of
# threads (about 0.1 ms), and what optimc times: use it where feeds cannot be wrong.
request.start_async(feeds)
request.wait()
outputs = {{name: request.get_output_tensor(i).data for i, name in enumerate({outputs})}}
"""


class OpenVino(Target):
    """OpenVINO's CPU plugin."""

    runtime: Literal["openvino"] = "openvino"
    """The runtime's name in recipes."""
    threads: Threads = 1
    """Threads of one inference; 0 takes all physical cores. `auto` tries 1, half of the physical
    cores and all of them in each cell, and takes more only where that is faster on this machine
    (1 under `--no-measure`)."""
    precision: Literal["f32", "bf16", "f16", "auto"] = "f32"
    """What float layers compute in. bf16 and f16 are refused where the CPU does not take them.
    `auto` tries bf16 beside f32 in each cell where the CPU has instructions for it, and takes it
    where it is faster on this machine, proves itself, and the first metric drops on `data.tuning`
    by no more than the gate or a pass's `max_drop` allows (f32 under `--no-measure`)."""

    tools: ClassVar[tuple[str, ...]] = ("openvino",)
    extra: ClassVar[str | None] = "openvino"
    logs_builds: ClassVar[bool] = True
    inexact_options: ClassVar[frozenset[str]] = frozenset({"precision"})

    @classmethod
    def unavailable(cls) -> Unavailability | None:
        if importlib.util.find_spec("openvino") is None:
            return Unavailability(
                f"{NAME} is not installed (extra `{cls.extra}`)",
                f"pip install 'optimc[{cls.extra}]'",
            )
        return None

    @classmethod
    def preload(cls) -> None:
        telemetry.switch_off()
        import openvino  # noqa: F401

    def spec(self) -> TargetSpec:
        from optimc.targets.quantization_specs import openvino_cpu

        features = cpu_features()
        return TargetSpec(
            runtime=self.runtime,
            # Newer operators are read as their newest version that the front end knows.
            max_opset=26,
            max_ir_version=13,
            dtypes=NUMBERS | {"bfloat16", "int4", "uint4"},
            domains=frozenset({"", "com.microsoft", "org.openvinotoolkit"}),
            quantization=openvino_cpu(features),
            cpu_features=features,
        )

    def open_options(self) -> Mapping[str, tuple[OptionValue, ...]]:
        found: dict[str, tuple[OptionValue, ...]] = {}
        if self.precision == "auto":
            found["precision"] = ("f32", "bf16") if BF16_FEATURES & cpu_features() else ("f32",)
        if self.threads == "auto":
            found["threads"] = thread_counts()
        return found

    def not_tried(self) -> Mapping[str, str]:
        return (
            {}
            if BF16_FEATURES & cpu_features()
            else {"precision": "this CPU has no bf16 instructions"}
        )

    def build(self, model: Model, folder: Path, context: BuildContext) -> Engine:
        assert isinstance(model, OnnxModel)
        check_exchange(model.signature, NUMBERS, NAME)
        path = model.path
        if path is None or holds_empty(model):
            path = context.workspace / "model.onnx"
            place_readable(model, path)
        _check_domains(model, self.spec().domains)
        session = {"threads": self.threads, "precision": self.precision}
        _write_ir(path, folder / MODEL, model.signature, half=self.precision == "f16")
        notes = [*context.notes, *_notes(model.signature)]
        compiled = _compile(folder / MODEL, session)
        notes += _check_layers(compiled, self.precision)
        engine = Engine.describe(
            folder,
            runtime=self.runtime,
            main=MODEL,
            model=model,
            session=session,
            load=_LOAD.format(
                feeds=feeds_as_text(model.signature.inputs),
                main=MODEL,
                config=_config(session),
                outputs=[spec.name for spec in model.signature.outputs],
            ),
            versions={"openvino": version("openvino")},
            deterministic=True,
            notes=tuple(notes),
        )
        context.opened = OpenVinoSession(engine, session_settings(engine, {}), compiled)
        return engine

    @classmethod
    def open(cls, engine: Engine, **overrides: Any) -> OpenVinoSession:
        return OpenVinoSession(engine, session_settings(engine, overrides))


def _check_domains(model: OnnxModel, known: frozenset[str]) -> None:
    """Raises CellError for an operator of a domain that only a library for another runtime has."""
    for node in model.ir.graph.all_nodes():
        if node.domain not in known | {"ai.onnx", "ai.onnx.ml"}:
            raise CellError(
                f"{NAME} does not know the operator `{node.op_type}` of the domain `{node.domain}`",
                where=f"node `{node.name}`",
                fix="custom_ops are libraries for ONNX Runtime: leave this target out of the "
                "variant",
            )


def _write_ir(onnx_path: Path, xml: Path, signature: Signature, *, half: bool) -> None:
    """Converts the ONNX file; `half` stores float weights as float16."""
    OpenVino.preload()
    import openvino

    from optimc.targets.openvino_ir import number_names, onnx_names

    try:
        converted = openvino.Core().read_model(str(onnx_path))
        openvino.save_model(converted, str(xml), compress_to_fp16=half)
    except Exception as error:  # it throws RuntimeError and its own types
        raise refusal(error, NAME, "converting the model") from error
    number_names(xml, onnx_names(onnx_path))
    for ports, specs in (
        (converted.inputs, signature.inputs),
        (converted.outputs, signature.outputs),
    ):
        given, wanted = [port.get_names() for port in ports], [spec.name for spec in specs]
        if len(given) != len(wanted) or not all(map(contains, given, wanted)):
            raise CellError(f"{NAME} changed the model's interface: {wanted} became {given}")


def _notes(signature: Signature) -> list[str]:
    specs = (*signature.inputs, *signature.outputs)
    wide = sorted({spec.dtype for spec in specs} & _WIDE)
    return [f"{NAME}'s CPU plugin computes {', '.join(wide)} in 32 bits"] if wide else []


def _config(settings: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": settings["precision"],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # Where a thread may run is for whoever starts the process to say: pinned to the first
        # core, engines that are measured in turns would share it.
        "ENABLE_CPU_PINNING": False,
    }
    if settings["threads"]:
        config["INFERENCE_NUM_THREADS"] = settings["threads"]
    return config


def _compile(xml: Path, settings: dict[str, Any], *, profiled: bool = False) -> Any:
    """An `openvino.CompiledModel`, with its profiler on where `profiled`.

    Raises CellError where it refuses or takes another type.
    """
    OpenVino.preload()
    import openvino

    try:
        config = {**_config(settings), **({"PERF_COUNT": True} if profiled else {})}
        compiled = openvino.Core().compile_model(str(xml), "CPU", config)
        taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    except Exception as error:  # see _write_ir
        raise refusal(error, NAME, f"compiling {xml.name}") from error
    if taken != settings["precision"]:
        raise _not_taken(settings["precision"], taken)
    return compiled


def _not_taken(asked: str, taken: str) -> CellError:
    return CellError(
        f"{NAME} was asked for {asked} but computes in {taken} on this CPU",
        fix=f"set `precision: {taken}` for this target, or build where the CPU has {asked}",
    )


def _check_layers(compiled: Any, asked: str) -> list[str]:
    """Holds the execution graph against the precision `asked`; returns notes."""
    import openvino

    from optimc.targets.openvino_layers import read_layers

    heavy = [layer for layer in read_layers(compiled) if layer.heavy]
    floats = [layer for layer in heavy if layer.dtype in SHORT]
    others = [layer for layer in floats if SHORT[layer.dtype] != asked]
    if others and (asked == "f32" or len(others) == len(floats)):
        raise _not_taken(asked, SHORT[others[0].dtype])
    notes = []
    if others:
        listed = ", ".join(f"{layer.name} ({SHORT[layer.dtype]})" for layer in others[:5])
        notes.append(f"{len(others)} of {len(floats)} float layers do not run in {asked}: {listed}")
    if asked != "f32" and asked.upper() not in openvino.Core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        notes.append(f"this CPU has no {asked} instructions: {NAME} emulates them, which is slow")
    return notes


class OpenVinoSession(Session):
    """One `openvino.CompiledModel`."""

    def __init__(self, engine: Engine, settings: dict[str, Any], compiled: Any = None) -> None:
        """`compiled` is the `openvino.CompiledModel`, where there is one."""
        self._signature = engine.signature
        self._main = engine.main
        self._settings = settings
        self._native: Any = _compile(engine.main, settings) if compiled is None else compiled
        self._failed: CellError | None = None
        self._bounds: weakref.WeakSet[_Bound] = weakref.WeakSet()

    def bind(self, feeds: Arrays) -> _Bound:
        bound = _Bound(self, checked_feeds(self._signature, feeds))
        self._bounds.add(bound)
        return bound

    def layers(self) -> tuple[Layer, ...]:
        from optimc.targets.openvino_layers import read_layers

        return read_layers(self.native)

    def profile(self, feeds: Arrays, warmup: int, runs: int) -> tuple[TimedLayer, ...]:
        from optimc.targets.openvino_layers import timed_layers

        compiled = _compile(self._main, self._settings, profiled=True)
        request = _filled_request(compiled, checked_feeds(self._signature, feeds))
        times = []
        try:
            for _ in range(warmup + runs):
                request.infer()
                times.append(request.get_profiling_info())
        except Exception as error:  # see _write_ir
            raise refusal(error, NAME, "profiling the engine") from error
        return timed_layers(compiled, times[warmup:])

    def close(self) -> None:
        self._native = None
        for bound in self._bounds:
            bound.release()

    @property
    def native(self) -> Any:
        """The compiled model. Raises CellError after a failed run: from then on it gives wrong
        results for good inputs, too."""
        if self._failed is not None:
            raise self._failed
        if self._native is None:
            raise ValueError("the session is closed")
        return self._native

    @property
    def output_names(self) -> list[str]:
        """The outputs in the order of the model."""
        return [spec.name for spec in self._signature.outputs]

    def fail(self, error: Exception) -> Exception:
        """Remembers that a run failed with `error`, and gives the error to raise."""
        if self._native is None:
            return ValueError("the session is closed")
        self._failed = refusal(error, NAME, "running the engine")
        return self._failed


def _filled_request(compiled: Any, feeds: dict[str, NDArray[np.generic]]) -> Any:
    """An `openvino.InferRequest` with `feeds` in its own tensors."""
    request = compiled.create_infer_request()
    # The build made sure that the ports stand in the order of the signature.
    for index, array in enumerate(feeds.values()):
        tensor = request.get_input_tensor(index)
        tensor.shape = array.shape
        tensor.data[...] = array
    return request


class _Bound:
    """An infer request with the inputs in its own tensors: a run copies nothing.

    Its first run is the one that tells errors, see above.
    """

    def __init__(self, session: OpenVinoSession, feeds: dict[str, NDArray[np.generic]]) -> None:
        self._session = session
        self._request: Any = _filled_request(session.native, feeds)
        self._ran = False

    def run_ns(self) -> int:
        start = time.perf_counter_ns()
        clocked = self._ran
        self.run()
        # The request's clock stands around its native call; for those by `start_async` it does not.
        return round(self._request.latency * 1e6) if clocked else time.perf_counter_ns() - start

    def run(self) -> None:
        try:
            if self._ran:
                self._request.infer(share_outputs=True)
                return
            self._request.start_async()
            self._request.wait()
            self._ran = True
        except Exception as error:  # see _write_ir
            raise self._session.fail(error) from error

    def outputs(self) -> dict[str, NDArray[np.generic]]:
        names = self._session.output_names
        tensors = [self._request.get_output_tensor(index) for index in range(len(names))]
        return {n: t.data.copy() for n, t in zip(names, tensors, strict=True)}

    def release(self) -> None:
        """Lets go of the runtime's objects: the session is closed."""
        self._request = None


TARGET = OpenVino
