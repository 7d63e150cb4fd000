"""A model with a custom operator, and the real library that has it, for tests."""

from __future__ import annotations

from pathlib import Path

DOMAIN = "ai.onnx.contrib"
LIBRARY = "ops.so"


def library_path() -> Path | None:
    """The library of onnxruntime-extensions, or None where that is not installed."""
    try:
        from onnxruntime_extensions import get_library_path
    except ImportError:
        return None
    return Path(get_library_path())


def write_custom_model(path: Path) -> None:
    """Three MatMuls, the second by the inverse of a matrix: that is the custom operator `Inverse`.

    ``x: float32[batch, 16]`` to ``y: float32[batch, 32]``.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    square = rng.standard_normal((2, 32, 32)).astype(np.float32)
    weights = {
        "w": rng.standard_normal((16, 32)).astype(np.float32),
        "p": square[0] + 8 * np.eye(32, dtype=np.float32),
        "v": square[1],
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Inverse", ["p"], ["q"], domain=DOMAIN, name="inverse"),
        helper.make_node("MatMul", ["b", "q"], ["c"], name="second"),
        helper.make_node("Relu", ["c"], ["d"], name="relu_2"),
        helper.make_node("MatMul", ["d", "v"], ["y"], name="third"),
    ]
    graph = helper.make_graph(
        nodes,
        "custom",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
