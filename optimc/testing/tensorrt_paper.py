"""TensorRT on paper in every process of a command: the real bindings' classes, doubles behind them.

`write_site` makes a folder that, on ``PYTHONPATH``, puts the recording doubles in the place of
``tensorrt`` and of CUDA's runtime whenever an interpreter starts, worker processes included. What
runs is optimc as it is, from the command line to the workers; the engine is a copy: the output `y`
is the input `x`, with shapes of one dynamic dim and 4.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from optimc.testing.cuda_doubles import HostCuda
from optimc.testing.tensorrt_bindings import load
from optimc.testing.tensorrt_doubles import Api, HostMemory

_SITE = """\
from optimc.testing.tensorrt_paper import install
install({bindings!r}, {stubs!r}, {major!r}, {log!r})
"""


def write_site(folder: Path, bindings: Path, stubs: Path, version: str) -> Path:
    """Fills `folder`; returns the file that gets a line for every engine that is built or opened.

    `version` is that of the bindings, which `importlib.metadata` then gives for ``tensorrt``.
    """
    log = folder / "used.jsonl"
    text = _SITE.format(
        bindings=str(bindings), stubs=str(stubs), major=version.split(".")[0], log=str(log)
    )
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    about = folder / f"tensorrt-{version}.dist-info"
    about.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n"
    (about / "METADATA").write_text(metadata, encoding="utf-8")
    return log


def install(bindings: str, stubs: str, major: str, log: str) -> None:
    """Puts the doubles in place, in this process."""
    import cuda.bindings.runtime as real_cuda

    api = Api(load(Path(bindings), Path(stubs), major))
    api.answers = CopyOnPaper(api, Path(log)).answers
    module = api.module()
    module.__spec__ = ModuleSpec("tensorrt", None)
    sys.modules["tensorrt"] = module
    cuda = HostCuda(real_cuda)
    sys.modules["cuda.bindings.runtime"] = cuda
    sys.modules["cuda.bindings"].runtime = cuda  # type: ignore[attr-defined]


class CopyOnPaper:
    """What a builder, and an engine that copies `x` [n, 4] to `y`, answer."""

    def __init__(self, api: Api, log: Path) -> None:
        self._api = api
        self._log = log
        self._addresses: dict[str, int] = {}
        self._rows = 0
        self._profiler: Any = None
        real = api.real
        self.answers: dict[str, Any] = {
            "Builder.__init__": self._start,
            "Builder.build_serialized_network": self._build,
            "IPluginRegistry.load_library": "handle",
            "ITimingCache.serialize": lambda: HostMemory(b"timings"),
            "ICudaEngine.num_io_tensors": 2,
            "ICudaEngine.num_optimization_profiles": 1,
            "ICudaEngine.get_tensor_name": lambda index: "xy"[index],
            "ICudaEngine.get_tensor_mode": self._mode,
            "ICudaEngine.get_tensor_shape": lambda name: real.Dims((-1, 4)),
            "ICudaEngine.get_tensor_location": lambda name: real.TensorLocation.DEVICE,
            "ICudaEngine.get_tensor_profile_shape": lambda name, profile_index: [
                real.Dims((rows, 4)) for rows in (1, 2, 64)
            ],
            "IExecutionContext.set_input_shape": self._set_shape,
            "IExecutionContext.get_tensor_shape": lambda name: real.Dims((self._rows, 4)),
            "IExecutionContext.set_tensor_address": self._set_address,
            "IExecutionContext.execute_async_v3": self._execute,
            "IExecutionContext.profiler=": self._report_to,
            "EngineInspector.get_engine_information": lambda kind: json.dumps(
                {"Layers": [{"Name": "copy", "LayerType": "NoOp"}], "Bindings": ["x", "y"]}
            ),
        }

    def _start(self, logger: Any) -> None:
        self._logger = logger

    def _build(self, network: Any, config: Any) -> HostMemory:
        self._logger.log(self._api.real.ILogger.Severity.WARNING, "slow tactic")
        monitor = self._api.values.get("IBuilderConfig.progress_monitor")
        if monitor is not None:
            monitor.phase_start("tactics", None, 2)
            for step in range(2):
                monitor.step_complete("tactics", step)
            monitor.phase_finish("tactics")
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"built": os.getpid()}) + "\n")
        return HostMemory(b"plan")

    def _mode(self, name: str) -> Any:
        modes = self._api.real.TensorIOMode
        return modes.INPUT if name == "x" else modes.OUTPUT

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._rows = shape[0]
        return True

    def _set_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def _report_to(self, profiler: Any) -> None:
        self._profiler = profiler

    def _execute(self, stream_handle: int) -> bool:
        if self._profiler is not None:
            self._profiler.report_layer_time("copy", 0.25)
        ctypes.memmove(self._addresses["y"], self._addresses["x"], self._rows * 16)
        return True
