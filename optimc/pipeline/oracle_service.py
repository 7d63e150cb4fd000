"""The service behind `optimc.pipeline.oracle`: ONNX Runtime with graph optimizations off.

Of quantized models it runs what dequantizes weights once a session, see `oracle_constants`.
"""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimc.core import custom_ops
from optimc.core.errors import VerificationError
from optimc.pipeline.oracle_constants import Split, split

_OPEN_SESSIONS = 2
_RAN = "_kernel_time"
"""How the profiler's events of nodes end, after the node's name."""


_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where a model that is given as bytes has its other files."""


@dataclass(frozen=True)
class _Opened:
    """A session, and what it is fed beside a probe."""

    session: Any
    constants: Mapping[str, Any] = field(default_factory=dict)


class OracleService:
    """Runs ONNX files by path; the last few sessions stay open."""

    def __init__(self, threads: int) -> None:
        import onnxruntime

        self._threads = threads
        self._ort = onnxruntime
        self._sessions: OrderedDict[str, _Opened] = OrderedDict()
        self._taken: list[bool] = []

    def run(self, arrays: Mapping[str, Any], path: str) -> tuple[None, dict[str, Any]]:
        """The outputs of the model at `path` for the feeds `arrays`.

        Raises VerificationError where ONNX Runtime refuses the model or the feeds.
        """
        try:
            opened = self._session(path)
            session, given = opened.session, {**arrays, **opened.constants}
            names = [output.name for output in session.get_outputs()]
            feeds = {i.name: _typed(given[i.name], i.type) for i in session.get_inputs()}
            return None, dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:
            if "bad_alloc" in str(error) or isinstance(error, MemoryError):
                raise MemoryError(str(error)) from error
            raise VerificationError(f"ONNX Runtime refuses {Path(path).name}: {error}") from error

    def forget(self, arrays: Mapping[str, Any], path: str) -> tuple[None, dict[str, Any]]:
        """Closes the session of `path`, whose file goes away."""
        self._sessions.pop(path, None)
        return None, {}

    def _session(self, path: str) -> _Opened:
        if path in self._sessions:
            self._sessions.move_to_end(path)
            return self._sessions[path]
        parts = split(Path(path))
        if parts is None:
            opened = _Opened(self._opened(path, self._options()))
        else:
            opened = self._in_two(parts, str(Path(path).parent))
        self._sessions[path] = opened
        if len(self._sessions) > _OPEN_SESSIONS:
            self._sessions.popitem(last=False)
        return opened

    def _in_two(self, parts: Split, folder: str) -> _Opened:
        """The rest of a model, with what its constants come to."""
        options = self._options()
        options.add_session_config_entry(_FOLDER, folder)
        made = self._opened(parts.constants, options).run(list(parts.names), {})
        rest = self._opened(parts.rest, options)
        return _Opened(rest, dict(zip(parts.names, made, strict=True)))

    def _options(self) -> Any:
        options = self._ort.SessionOptions()
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        custom_ops.register(options)
        return options

    def _opened(self, model: str | bytes, options: Any) -> Any:
        return self._ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def profile(self, arrays: Mapping[str, Any], path: str) -> tuple[None, dict[str, Any]]:
        """Opens the model at `path` under the profiler, for `profile_run`.

        Raises VerificationError where ONNX Runtime refuses the model.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="optimc-profile-")
        options = self._options()
        options.enable_profiling = True
        options.profile_file_prefix = f"{self._folder.name}/p"
        try:
            self._profiled = self._opened(path, options)
        except Exception as error:
            raise VerificationError(f"ONNX Runtime refuses {Path(path).name}: {error}") from error
        self._taken = []
        return None, {}

    def profile_run(self, arrays: Mapping[str, Any]) -> tuple[None, dict[str, Any]]:
        """Runs the profiled model on the feeds `arrays`, which it may refuse."""
        try:
            feeds = {i.name: _typed(arrays[i.name], i.type) for i in self._profiled.get_inputs()}
            self._profiled.run(None, feeds)
        except Exception as error:
            if "bad_alloc" in str(error) or isinstance(error, MemoryError):
                raise MemoryError(str(error)) from error
            self._taken.append(False)
        else:
            self._taken.append(True)
        return None, {}

    def profiled(
        self, arrays: Mapping[str, Any], prefix: str
    ) -> tuple[list[dict[str, int] | None], dict[str, Any]]:
        """For each `profile_run` how often each node whose name begins with `prefix` ran; None
        for a run that was refused. Raises VerificationError where the profile does not tell."""
        events = json.loads(Path(self._profiled.end_profiling()).read_text(encoding="utf-8"))
        del self._profiled
        self._folder.cleanup()
        runs = sorted(
            (event["ts"], event["ts"] + event["dur"])
            for event in events
            if event.get("name") == "model_run"
        )
        counts: list[dict[str, int]] = [{} for _ in runs]
        starts = [start for start, _ in runs]
        for event in events:
            name = str(event.get("name", ""))
            if name.startswith(prefix) and name.endswith(_RAN):
                met = counts[bisect_right(starts, event["ts"]) - 1]
                mark = name.removesuffix(_RAN)
                met[mark] = met.get(mark, 0) + 1
        if len(counts) == sum(self._taken):  # a refused run leaves no event, or one
            found = iter(counts)
            return [next(found) if fine else None for fine in self._taken], {}
        if len(counts) != len(self._taken):
            raise VerificationError("ONNX Runtime's profile does not tell the runs apart")
        return [met if fine else None for met, fine in zip(counts, self._taken, strict=True)], {}


def _typed(array: Any, kind: str) -> Any:
    """The probe in the model's own float type, which a pass may have changed."""
    if kind == "tensor(float16)" and array.dtype.name == "float32":
        return array.astype("float16")
    return array
