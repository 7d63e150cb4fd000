"""Small graphs whose outputs come from a choice: a detector with NMS, a classifier with ArgMax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

CLASSES = 200
"""So many that some are nearly equal, and quantization changes their order."""


def detector(seed: int = 0) -> onnx.ModelProto:
    """Conv heads, NonMaxSuppression and Gather: ``image`` [1, 3, 16, 16] to boxes, scores, classes.

    Inner values: ``raw_boxes`` [1, 192, 4] and ``raw_scores`` [1, 2, 192].
    """
    import numpy as np

    random = np.random.default_rng(seed)
    weights = {
        "w": random.normal(0, 0.3, (8, 3, 3, 3)),
        "b": random.normal(0, 0.1, 8),
        "box_w": random.normal(0, 0.2, (12, 8, 1, 1)),
        "box_b": random.normal(0, 0.1, 12),
        "score_w": random.normal(0, 0.6, (6, 8, 1, 1)),
        "score_b": random.normal(0, 0.1, 6),
        "scale": np.array(16.0),
        "iou": np.array([0.5]),
        "least": np.array([0.55]),
    }
    numbers = {
        "box_shape": [1, -1, 4],
        "score_shape": [1, 2, -1],
        "most": [20],
        "column": [2],
        "class_column": [1],
        "one": [1],
        "zero": [0],
    }
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Conv", ["image", "w", "b"], "c", {"pads": [1] * 4, "strides": [2, 2]}),
        ("Relu", ["c"], "r", {}),
        ("Conv", ["r", "box_w", "box_b"], "box_c", {}),
        ("Transpose", ["box_c"], "box_t", {"perm": [0, 2, 3, 1]}),
        ("Reshape", ["box_t", "box_shape"], "box_r", {}),
        ("Mul", ["box_r", "scale"], "raw_boxes", {}),
        ("Conv", ["r", "score_w", "score_b"], "score_c", {}),
        ("Reshape", ["score_c", "score_shape"], "score_r", {}),
        ("Sigmoid", ["score_r"], "raw_scores", {}),
        ("NonMaxSuppression", ["raw_boxes", "raw_scores", "most", "iou", "least"], "chosen", {}),
        ("Gather", ["chosen", "column"], "box_index", {"axis": 1}),
        ("Gather", ["chosen", "class_column"], "class_index", {"axis": 1}),
        ("Squeeze", ["class_index", "one"], "classes", {}),
        ("Squeeze", ["raw_boxes", "zero"], "all_boxes", {}),
        ("Squeeze", ["box_index", "one"], "box_row", {}),
        ("Gather", ["all_boxes", "box_row"], "boxes", {"axis": 0}),
        ("Squeeze", ["raw_scores", "zero"], "all_scores", {}),
        ("Concat", ["class_index", "box_index"], "score_index", {"axis": 1}),
        ("GatherND", ["all_scores", "score_index"], "scores", {}),
    ]
    outputs: list[tuple[str, str, list[Any]]] = [
        ("boxes", "FLOAT", ["n", 4]),
        ("scores", "FLOAT", ["n"]),
        ("classes", "INT64", ["n"]),
    ]
    return _model(weights, numbers, nodes, [1, 3, 16, 16], outputs)


def classifier(seed: int = 0, scores: bool = False) -> onnx.ModelProto:
    """``image`` [n, 3, 8, 8] to ``label`` [n] by ArgMax and ``top`` [n, 3] by TopK.

    With `scores`, what they are chosen by is an output too: ``logits`` [n, 200], else it is inner.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    weights = {
        "w": random.normal(0, 0.3, (8, 3, 3, 3)),
        "b": random.normal(0, 0.1, 8),
        "fc_w": random.normal(0, 0.1, (32, CLASSES)),
        "fc_b": random.normal(0, 0.01, CLASSES),
    }
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Conv", ["image", "w", "b"], "c", {"pads": [1] * 4}),
        ("Relu", ["c"], "r", {}),
        ("AveragePool", ["r"], "p", {"kernel_shape": [4, 4], "strides": [4, 4]}),
        ("Flatten", ["p"], "f", {}),
        ("Gemm", ["f", "fc_w", "fc_b"], "logits", {}),
        ("ArgMax", ["logits"], "label", {"axis": 1, "keepdims": 0}),
        ("TopK", ["logits", "k"], "top_values top", {}),
    ]
    outputs: list[tuple[str, str, list[Any]]] = [
        ("label", "INT64", ["n"]),
        ("top", "INT64", ["n", 3]),
    ]
    if scores:
        outputs.append(("logits", "FLOAT", ["n", CLASSES]))
    return _model(weights, {"k": [3]}, nodes, ["n", 3, 8, 8], outputs)


def _model(
    weights: dict[str, Any],
    numbers: dict[str, list[int]],
    nodes: list[tuple[str, list[str], str, dict[str, Any]]],
    shape: list[Any],
    outputs: list[tuple[str, str, list[Any]]],
) -> onnx.ModelProto:
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    constants = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    constants |= {name: np.asarray(array, np.int64) for name, array in numbers.items()}
    types = onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node(op, i, o.split(), name=o.split()[0], **a) for op, i, o, a in nodes],
        "choosing",
        [helper.make_tensor_value_info("image", types.FLOAT, shape)],
        [helper.make_tensor_value_info(n, getattr(types, kind), s) for n, kind, s in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model
