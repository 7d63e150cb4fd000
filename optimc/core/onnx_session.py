"""ONNX Runtime sessions as references, and seeded inputs for them; for use in worker processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_DTYPES = {"float": "float32", "double": "float64"}


def reference_session(model: Path | bytes, data_folder: Path | None = None) -> Any:
    """A session on one CPU thread without graph optimizations: it computes what the graph says.

    `data_folder` is where the external data of a model in memory lie.
    """
    import onnxruntime

    from optimc.core import custom_ops

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Prepacking would copy every weight.
    options.add_session_config_entry("session.disable_prepacking", "1")
    if data_folder is not None:
        entry = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(entry, str(data_folder))
    custom_ops.register(options)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def seeded_feeds(session: Any, size: int, seed: int = 0) -> dict[str, Any]:
    """Inputs for `session`, every dynamic dim of length `size`.

    Floats are standard normal; integers and bools 0 or 1, which are valid as ids, masks and counts.
    """
    import ml_dtypes  # noqa: F401 (makes bfloat16 known to numpy)
    import numpy as np

    rng = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for info in session.get_inputs():
        shape = [dim if isinstance(dim, int) else size for dim in info.shape]
        name = info.type.removeprefix("tensor(").removesuffix(")")
        dtype = np.dtype(_DTYPES.get(name, name))
        if dtype.kind in "biu":
            feeds[info.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            feeds[info.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def run_or_none(session: Any, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> Any:
    """The outputs, or None where the model does not take these inputs (dims of this size)."""
    try:
        return session.run(names, feeds)
    except Exception:  # noqa: BLE001 (ONNX Runtime has no error class of its own for this)
        return None


def max_relative_error(expected: Any, actual: Any) -> float:
    """``max |difference| / max |expected|``; infinite where shape, dtype or NaN differ."""
    import numpy as np

    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    if np.array_equal(expected, actual, equal_nan=expected.dtype.kind == "f"):
        return 0.0
    if expected.dtype.kind in "biuUSO":
        return float("inf")
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    error = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    scale = float(np.abs(a[finite]).max(initial=0.0))
    return error / scale if scale > 0 else float("inf")
