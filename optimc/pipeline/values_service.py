"""The service behind `optimc.pipeline.values`: a model with inner values as further outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimc.core.errors import CellError

_OPENVINO_CONFIG = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}


class ValuesService:
    """Opens one model at a time and runs it; see `optimc.pipeline.values.Runnable`."""

    def __init__(self) -> None:
        self._run: Any = None

    def open(
        self,
        arrays: Mapping[str, Any],
        path: str,
        runtime: str,
        names: Sequence[str],
        optimized: bool,
        precision: str,
    ) -> tuple[None, dict[str, Any]]:
        """Opens the model with the values `names` as outputs behind its own.

        Raises CellError where the runtime refuses it.
        """
        self._run = None
        if runtime == "openvino":
            self._run = _OpenVino(Path(path), names, precision)
        else:
            self._run = _OnnxRuntime(Path(path), names, optimized)
        return None, {}

    def run(self, arrays: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
        """The arrays of all outputs, and the names of those that are no arrays."""
        import numpy as np

        found = self._run(arrays)
        kept = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
        return [name for name in found if name not in kept], kept

    def listed(
        self, arrays: Mapping[str, Any], path: str
    ) -> tuple[list[list[Any]], dict[str, Any]]:
        """Of OpenVINO's IR at `path`, in order: names of a value, operator, names of the inputs."""
        model = _read_openvino(Path(path))
        found: list[list[Any]] = []
        for node in model.get_ordered_ops():
            inputs = [sorted(port.get_source_output().get_names()) for port in node.inputs()]
            flat = [names[0] for names in inputs if names]
            for port in node.outputs():
                names = sorted(port.get_names())
                if names and node.get_type_name() not in ("Constant", "Result"):
                    found.append([names, node.get_type_name(), flat])
        return found, {}


class _OnnxRuntime:
    def __init__(self, path: Path, names: Sequence[str], optimized: bool) -> None:
        import onnx
        import onnxruntime

        from optimc.targets.native import refusal

        proto = onnx.load(str(path), load_external_data=False)
        own = {value.name for value in proto.graph.output}
        for name in names:
            if name not in own:
                proto.graph.output.add().name = name  # the runtime infers the type
        level = "ORT_ENABLE_ALL" if optimized else "ORT_DISABLE_ALL"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # What is opened from memory does not know where its external data lies.
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(path.parent.resolve()))
        source = proto.SerializeToString() if names else str(path)
        try:
            self._session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime has some ten types, without a common base
            raise refusal(error, "ONNX Runtime", f"opening {path.name}") from error
        self._names = [value.name for value in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        from optimc.targets.native import refusal

        taken = {value.name: feeds[value.name] for value in self._session.get_inputs()}
        try:
            values = self._session.run(self._names, taken)
        except Exception as error:  # the runtime has some ten types, without a common base
            raise refusal(error, "ONNX Runtime", "running the model") from error
        return dict(zip(self._names, values, strict=True))


class _OpenVino:
    def __init__(self, path: Path, names: Sequence[str], precision: str) -> None:
        from optimc.targets.native import refusal

        model = _read_openvino(path)
        import openvino

        own = {name for port in model.outputs for name in port.get_names()}
        config = {**_OPENVINO_CONFIG, "INFERENCE_PRECISION_HINT": precision}
        config["INFERENCE_NUM_THREADS"] = 1
        try:
            # Which of its names a port is known by, is not said: an inner value goes by ours.
            self._names = [_first_name(path, port) for port in model.outputs]
            for name in names:
                if name not in own:
                    model.add_outputs(name)
                    self._names.append(name)
            self._compiled = openvino.Core().compile_model(model, "CPU", config)
        except Exception as error:  # it throws RuntimeError and its own types
            raise refusal(error, "OpenVINO", f"compiling {path.name}") from error

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        from optimc.targets.native import refusal

        try:
            request = self._compiled.create_infer_request()
            for index, port in enumerate(self._compiled.inputs):
                name = next((n for n in port.get_names() if n in feeds), None)
                if name is None:
                    raise CellError(f"no array is fed for the input {sorted(port.get_names())}")
                tensor = request.get_input_tensor(index)
                tensor.shape = feeds[name].shape
                tensor.data[...] = feeds[name]
            request.start_async()  # not infer(): it loses errors, see optimc.targets.openvino
            request.wait()
        except CellError:
            raise
        except Exception as error:  # see above
            raise refusal(error, "OpenVINO", "running the model") from error
        ports = range(len(self._names))
        return {self._names[i]: request.get_output_tensor(i).data.copy() for i in ports}


def _read_openvino(path: Path) -> Any:
    from optimc.targets.native import refusal
    from optimc.targets.openvino import OpenVino

    OpenVino.preload()
    import openvino

    try:
        return openvino.Core().read_model(str(path))
    except Exception as error:  # see above
        raise refusal(error, "OpenVINO", f"reading {path.name}") from error


def _first_name(path: Path, port: Any) -> str:
    """The name of an output: ONNX names that end at one tensor are all told, in no order."""
    names: list[str] = sorted(port.get_names())
    if path.suffix == ".onnx" and len(names) > 1:
        import onnx

        graph = onnx.load(str(path), load_external_data=False).graph
        known = [str(value.name) for value in graph.output]
        return next((name for name in known if name in names), names[0])
    return names[0]
