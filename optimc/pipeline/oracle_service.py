"""The service behind `optimc.pipeline.oracle`: ONNX Runtime with graph optimizations off."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimc.core import custom_ops
from optimc.core.errors import VerificationError

_OPEN_SESSIONS = 2


class OracleService:
    """Runs ONNX files by path; the last few sessions stay open."""

    def __init__(self, threads: int) -> None:
        import onnxruntime

        self._threads = threads
        self._ort = onnxruntime
        self._sessions: OrderedDict[str, Any] = OrderedDict()

    def run(self, arrays: Mapping[str, Any], path: str) -> tuple[None, dict[str, Any]]:
        """The outputs of the model at `path` for the feeds `arrays`.

        Raises VerificationError where ONNX Runtime refuses the model or the feeds.
        """
        try:
            session = self._session(path)
            names = [output.name for output in session.get_outputs()]
            feeds = {i.name: _typed(arrays[i.name], i.type) for i in session.get_inputs()}
            return None, dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:
            if "bad_alloc" in str(error) or isinstance(error, MemoryError):
                raise MemoryError(str(error)) from error
            raise VerificationError(f"ONNX Runtime refuses {Path(path).name}: {error}") from error

    def forget(self, arrays: Mapping[str, Any], path: str) -> tuple[None, dict[str, Any]]:
        """Closes the session of `path`, whose file goes away."""
        self._sessions.pop(path, None)
        return None, {}

    def _session(self, path: str) -> Any:
        if path in self._sessions:
            self._sessions.move_to_end(path)
            return self._sessions[path]
        options = self._ort.SessionOptions()
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        custom_ops.register(options)
        session = self._ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._sessions[path] = session
        if len(self._sessions) > _OPEN_SESSIONS:
            self._sessions.popitem(last=False)
        return session


def _typed(array: Any, kind: str) -> Any:
    """The probe in the model's own float type, which a pass may have changed."""
    if kind == "tensor(float16)" and array.dtype.name == "float32":
        return array.astype("float16")
    return array
