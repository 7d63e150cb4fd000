"""Constants without elements, written so that OpenVINO reads their shape.

OpenVINO's ONNX front end (seen with 2026.4) takes a tensor of shape ``[0]`` or ``[0, 3]`` for a
scalar: sums with it keep their elements. It is right about the same tensor as a ConstantOfShape,
which it folds while it converts. What some operators would then break on stays as it is; what it
computes of that is wrong, and no such engine proves itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.core.onnx_protos import all_protos
from optimc.targets.artifacts import place_onnx

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from optimc.core.model import OnnxModel


_DIMS = "/dims"
_LEFT = frozenset({"Gather", "GatherElements", "GatherND", "Unsqueeze"})
"""By no elements: the plugin crashes on a Gather, the front end refuses an Unsqueeze."""


def holds_empty(model: OnnxModel) -> bool:
    """Whether any constant of the model, subgraphs included, has no elements."""
    from optimc.core.onnx_signature import all_graphs

    for graph in all_graphs(model.ir):
        held = [value.const_value for value in graph.initializers.values()]
        for node in graph:
            if node.op_type == "Constant" and "value" in node.attributes:
                held.append(node.attributes["value"].as_tensor())
        if any(tensor is not None and tensor.size == 0 for tensor in held):
            return True
    return False


def place_readable(model: OnnxModel, path: Path) -> None:
    """Writes the model to `path`, constants without elements as ConstantOfShape."""
    import onnx

    place_onnx(model, path)
    proto = onnx.load(str(path), load_external_data=False)
    for graph in all_protos(proto.graph):
        _rewrite(graph)
    path.write_bytes(proto.SerializeToString())


def _rewrite(graph: onnx.GraphProto) -> None:
    """Puts a ConstantOfShape in the place of each constant without elements."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = attribute.t
    left = {
        name
        for inner in all_protos(graph)
        for node in inner.node
        if node.op_type in _LEFT
        for name in node.input
    }
    empty = {n: tensor for n, tensor in found.items() if _is_empty(tensor) and n not in left}
    if not empty:
        return
    dims = [_dims(name, tensor) for name, tensor in empty.items()]
    made = [_of_shape(name, tensor) for name, tensor in empty.items()]
    tensors = [tensor for tensor in graph.initializer if tensor.name not in empty]
    nodes = [node for node in graph.node if not empty.keys() & set(node.output)]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*tensors, *dims])
    graph.node.extend([*made, *nodes])


def _is_empty(tensor: onnx.TensorProto) -> bool:
    from onnx import TensorProto

    return 0 in tensor.dims and tensor.data_type != TensorProto.STRING


def _dims(name: str, tensor: onnx.TensorProto) -> onnx.TensorProto:
    import numpy as np
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(tensor.dims, np.int64), f"{name}{_DIMS}")


def _of_shape(name: str, tensor: onnx.TensorProto) -> onnx.NodeProto:
    import numpy as np
    from onnx import helper, numpy_helper

    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    value = numpy_helper.from_array(np.zeros(1, kind))
    return helper.make_node("ConstantOfShape", [f"{name}{_DIMS}"], [name], name=name, value=value)
