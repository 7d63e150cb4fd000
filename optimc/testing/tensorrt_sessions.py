"""Scenarios of sessions for `tensorrt_contract`: engines on paper that answer as real ones do."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimc.core.errors import OptimcError
from optimc.core.model import Signature, TensorSpec
from optimc.testing.cuda_doubles import HostCuda
from optimc.testing.tensorrt_doubles import Api

SETTINGS = {"plugins": ["own.so"], "weights": "model.onnx", "weight_streaming_mb": 2}


class EngineOnPaper:
    """An engine of one dynamic input `x` [-1, 4], its copy `y`, and `z`: `x` without the rows
    whose first item is not positive, so that its size is known only after the run."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.rows = 0
        self.known_size = False
        """Whether whoever runs it has made room for `z` by itself."""
        self.profiler: Callable[[], Any] = lambda: None
        """What the context was given to report layers to."""
        self.answers: dict[str, Any] = {
            "ICudaEngine.num_io_tensors": 3,
            "ICudaEngine.num_optimization_profiles": 2,
            "ICudaEngine.get_tensor_name": lambda index: "xyz"[index],
            "ICudaEngine.get_tensor_mode": self._mode,
            "ICudaEngine.get_tensor_shape": lambda name: real.Dims((-1, 4)),
            "ICudaEngine.get_tensor_location": lambda name: real.TensorLocation.DEVICE,
            "ICudaEngine.get_tensor_profile_shape": self._profile,
            "IExecutionContext.set_input_shape": self._set_shape,
            "IExecutionContext.get_tensor_shape": self._shape,
            "IExecutionContext.set_tensor_address": self._set_address,
            "IExecutionContext.set_output_allocator": self._set_allocator,
            "IExecutionContext.execute_async_v3": self._execute,
            "EngineInspector.get_engine_information": lambda kind: json.dumps(
                {"Layers": ["copy"], "Bindings": ["x", "y", "z"]}
            ),
        }

    def _mode(self, name: str) -> Any:
        modes = self.real.TensorIOMode
        return modes.INPUT if name == "x" else modes.OUTPUT

    def _profile(self, name: str, profile_index: int) -> list[Any]:
        return [self.real.Dims((rows, 4)) for rows in ((1, 1, 2), (3, 4, 8))[profile_index]]

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = shape[0]
        return True

    def _shape(self, name: str) -> Any:
        return self.real.Dims((-1 if name == "z" else self.rows, 4))

    def _set_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def _set_allocator(self, name: str, output_allocator: Any) -> bool:
        self.allocators[name] = output_allocator
        return True

    def _execute(self, stream_handle: int) -> bool:
        import numpy as np

        if self.profiler() is not None:
            for ms in (0.25, 0.5):
                self.profiler().report_layer_time("copy", ms)
        source = (ctypes.c_float * (4 * self.rows)).from_address(self.addresses["x"])
        x = np.ctypeslib.as_array(source).reshape(-1, 4)
        ctypes.memmove(self.addresses["y"], x.ctypes.data, x.nbytes)
        kept = np.ascontiguousarray(x[x[:, 0] > 0])
        if self.known_size:
            ctypes.memmove(self.addresses["z"], kept.ctypes.data, kept.nbytes)
            return True
        allocator = self.allocators["z"]
        room = allocator.reallocate_output_async("z", 0, kept.nbytes, 256, stream_handle)
        ctypes.memmove(room, kept.ctypes.data, kept.nbytes)
        allocator.notify_shape("z", self.real.Dims(kept.shape))
        return True


def signature() -> Signature:
    """The interface of `EngineOnPaper`."""
    return Signature(
        (TensorSpec("x", "float32", ("batch", 4)),),
        (TensorSpec("y", "float32", ("batch", 4)), TensorSpec("z", "float32", ("rows", 4))),
    )


@contextmanager
def opened(signature: Signature, settings: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """A session of the engine that the doubles answer for."""
    from optimc.core.targets import Engine
    from optimc.targets.tensorrt_session import TensorRTSession

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.plan").write_bytes(b"plan")
        manifest = {"main": "model.plan", "signature": signature.to_json()}
        with TensorRTSession(Engine(Path(folder), manifest), dict(settings or {})) as session:
            yield session


def session(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """The session: profiles, shapes, addresses, an output of unknown size, times, no leak."""
    import numpy as np

    paper = EngineOnPaper(api.real)
    paper.profiler = lambda: api.values.get("IExecutionContext.profiler")
    more = {"IPluginRegistry.load_library": "handle", "ICudaEngine.streamable_weights_size": 10**7}
    api.answers = {**paper.answers, **more}
    results: dict[str, Any] = {}
    with opened(signature(), SETTINGS) as one:
        bounds = {}
        for rows in (2, 5):
            x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4) - 3
            bounds[rows] = x, one.bind({"x": x})
        # In turns: neither may see what the other was given.
        for rows, (x, bound) in (*bounds.items(), *bounds.items()):
            bound.run()
            outputs = bound.outputs()
            results[f"y{rows}"] = bool(np.array_equal(outputs["y"], x))
            results[f"z{rows}"] = bool(np.array_equal(outputs["z"], x[x[:, 0] > 0]))
            times = bound.times()
            results["times"] = [times.copy_in_ms, times.compute_ms, times.copy_out_ms]
        results["profiles"] = [
            index for index, _ in api.arguments("IExecutionContext.set_optimization_profile_async")
        ]
        bounds[2][1].close()
        bounds[5][1].run()
        results["layers"] = [layer.name for layer in one.layers()]
        results["timed"] = [
            [layer.name, layer.ms, list(layer.parts)] for layer in one.profile({"x": x}, 1, 3)
        ]
        results["clocks"] = one.clocks_mhz()
        results["clocks_of_a_gpu"] = _clocks(one)
    results["closed"] = _said(bounds[5][1].run)
    results["leaked"] = cuda.leaked
    weights = api.arguments("OnnxParserRefitter.refit_from_file")[0]
    results["weights"] = Path(weights[0]).name
    results["budget"] = api.values["ICudaEngine.weight_streaming_budget_v2"]
    results["host_code"] = api.values["Runtime.engine_host_code_allowed"]
    return results


def _clocks(session: Any) -> dict[str, Any]:
    """The same with NVML's own functions doubled, their arguments checked; empty without NVML."""
    import inspect
    from unittest.mock import create_autospec, patch

    if importlib.util.find_spec("pynvml") is None:
        return {}
    nvml: Any = importlib.import_module("pynvml")
    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetHandleByPciBusId": "handle",
        "nvmlDeviceGetClockInfo": lambda handle, kind: {nvml.NVML_CLOCK_SM: 1980}.get(kind, 2619),
    }
    doubles = {}
    for name, answer in answers.items():
        doubles[name] = create_autospec(inspect.unwrap(getattr(nvml, name)))
        if callable(answer):
            doubles[name].side_effect = answer
        else:
            doubles[name].return_value = answer
    with patch.multiple(nvml, **doubles):
        found = session.clocks_mhz()
    (bus,) = doubles["nvmlDeviceGetHandleByPciBusId"].call_args.args
    return {**found, "bus": bus.decode(), "shut": doubles["nvmlShutdown"].call_count}


def _said(action: Callable[[], Any]) -> str | None:
    """The message with which an action refuses, None where it does not."""
    try:
        action()
    except (OptimcError, ValueError, MemoryError) as error:
        return str(error)
    return None


def host_tensors(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """A shape that the CPU reads, and one that it writes: no copy to the GPU, and the right one."""
    import numpy as np

    real = api.real
    addresses: dict[str, int] = {}
    modes, places = real.TensorIOMode, real.TensorLocation

    def set_address(name: str, memory: int) -> bool:
        addresses[name] = memory
        return True

    def execute(stream_handle: int) -> bool:
        ctypes.memmove(addresses["out"], addresses["sizes"], 16)
        return True

    api.answers = {
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.get_tensor_name": lambda index: ("sizes", "out")[index],
        "ICudaEngine.get_tensor_mode": lambda n: modes.INPUT if n == "sizes" else modes.OUTPUT,
        "ICudaEngine.get_tensor_shape": lambda name: real.Dims((2,)),
        "ICudaEngine.get_tensor_location": lambda name: places.HOST,
        "IExecutionContext.get_tensor_shape": lambda name: real.Dims((2,)),
        "IExecutionContext.set_tensor_address": set_address,
        "IExecutionContext.execute_async_v3": execute,
    }
    specs = (TensorSpec("sizes", "int64", (2,)),), (TensorSpec("out", "int64", (2,)),)
    with opened(Signature(*specs)) as one:
        bound = one.bind({"sizes": np.array([3, 4])})
        bound.run()
        found = bound.outputs()["out"].tolist()
        spent = bound.times().copy_out_ms
    return {"out": found, "copied": "cudaMemcpyAsync" in cuda.used, "copy_out": spent}


def threads(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """Each thread that runs is turned to the session's GPU."""
    import numpy as np

    api.answers = EngineOnPaper(api.real).answers
    seen = []
    with opened(signature(), {"device": 1}) as one:
        bound = one.bind({"x": np.ones((2, 4), np.float32)})
        before = cuda.used.count("cudaSetDevice")
        for _ in range(2):
            thread = threading.Thread(target=bound.run)
            thread.start()
            thread.join()
            seen.append(cuda.used.count("cudaSetDevice") - before)
    return {"turned": seen}


def lacking_weights(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """A stripped plan and an ONNX file that do not belong together."""
    import tensorrt

    from optimc.core.errors import CellError
    from optimc.targets.tensorrt_refit import refit

    said = []
    for answers in (
        {
            "OnnxParserRefitter.refit_from_file": False,
            "OnnxParserRefitter.num_errors": 1,
            "ParserError.node_name": "/conv1",
        },
        {"Refitter.refit_cuda_engine": False, "Refitter.get_missing_weights": ["conv1.weight"]},
    ):
        api.answers = answers
        logger = tensorrt.Logger()
        engine = tensorrt.Runtime(logger).deserialize_cuda_engine(b"plan")
        try:
            refit(tensorrt, engine, logger, Path("model.onnx"), [])
        except CellError as error:
            said.append(str(error))
    return {"said": said}


def refusals(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """What TensorRT and CUDA may refuse in a session: each in a message of its own."""
    import numpy as np

    from optimc.targets.tensorrt_cuda import DeviceBuffer

    feeds = {"x": np.ones((2, 4), np.float32)}
    said: dict[str, str | None] = {}
    for name, answer in REFUSALS.items():
        library = {"IPluginRegistry.load_library": "handle"}
        api.answers = {**EngineOnPaper(api.real).answers, **library, name: answer}

        def use() -> None:
            with opened(signature(), {"plugins": ["own.so"]}) as one:
                one.bind(feeds).run()

        said[name] = _said(use)
    api.answers = EngineOnPaper(api.real).answers
    wide = {"x": np.ones((9, 4), np.float32)}

    def too_wide() -> None:
        with opened(signature()) as one:
            one.bind(wide)

    said["profile"] = _said(too_wide)
    said["budget"] = _said_of_budget(api)
    for error in ("cudaErrorMemoryAllocation", "cudaErrorInvalidValue"):
        cuda.refused = {"cudaMalloc": error}
        said[error] = _said(lambda: DeviceBuffer(4))
    return {"said": said, "leaked": cuda.leaked}


def _said_of_budget(api: Api) -> str | None:
    """TensorRT refuses a budget in its log alone."""
    kept: dict[str, Any] = {}
    severity = api.real.ILogger.Severity.ERROR
    api.answers = {
        **EngineOnPaper(api.real).answers,
        "Runtime.__init__": lambda logger: kept.update(logger=logger),
        "ICudaEngine.weight_streaming_budget_v2=": lambda value: kept["logger"].log(
            severity, f"no budget of {value}"
        ),
    }

    def use() -> None:
        with opened(signature(), {"weight_streaming_mb": 0}):
            pass

    return _said(use)


REFUSALS: Mapping[str, Any] = {
    "IPluginRegistry.load_library": None,
    "Runtime.deserialize_cuda_engine": None,
    "ICudaEngine.create_execution_context": None,
    "IExecutionContext.set_optimization_profile_async": False,
    "IExecutionContext.set_input_shape": False,
    "IExecutionContext.infer_shapes": ["x"],
    "IExecutionContext.set_tensor_address": False,
    "IExecutionContext.set_output_allocator": False,
    "IExecutionContext.execute_async_v3": False,
}
"""What answers no, and how."""

SCENARIOS: dict[str, Callable[[Api, HostCuda], dict[str, Any]]] = {
    scenario.__name__: scenario
    for scenario in (host_tensors, lacking_weights, refusals, session, threads)
}
