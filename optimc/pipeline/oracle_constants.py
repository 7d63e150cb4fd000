"""Weights that a quantized model dequantizes, dequantized once a session instead of in every run.

With graph optimizations off ONNX Runtime runs a DequantizeLinear of a constant each time, which
takes most of a short run. The oracle takes these nodes out into a model of their own, runs that
once, with the same kernels, and feeds its outputs to the rest as further inputs. They do not become
constants: kernels pack constant weights and then round otherwise. As inputs they are to every
kernel what they were before, so that the model's outputs are the same to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

_OPERATOR = "DequantizeLinear"
_MOST_FILE_BYTES = 256 * 1024 * 1024
"""Larger files are left alone: what is cut off them would have to be written anew."""
_MOST_BYTES = 512 * 1024 * 1024
"""So much is kept of results; what is beyond is computed in every run."""


@dataclass(frozen=True)
class Split:
    """A model in two: serialized, with initializers in other files still there."""

    constants: bytes
    """No inputs; the outputs are what `rest` takes in addition."""
    rest: bytes
    names: tuple[str, ...]


def split(path: Path) -> Split | None:
    """The ONNX file in two, or None where it has nothing of the kind."""
    if path.stat().st_size > _MOST_FILE_BYTES or _OPERATOR.encode() not in path.read_bytes():
        return None
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    nodes = _taken_out(model.graph)
    if not nodes:
        return None
    names = tuple(node.output[0] for node in nodes)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    constants.graph.name = "constants"
    constants.graph.node.extend(nodes)
    read = sorted({name for node in nodes for name in node.input if name})
    constants.graph.initializer.extend(initializers[name] for name in read)
    for node in nodes:
        made = model.graph.input.add(name=node.output[0])
        made.type.tensor_type.elem_type = initializers[node.input[1]].data_type
        for size in initializers[node.input[0]].dims:
            made.type.tensor_type.shape.dim.add().dim_value = size
        constants.graph.output.append(made)
    rest = model.graph
    _remove(rest.node, lambda node: node.output[:1] and node.output[0] in names)
    _remove(rest.value_info, lambda value: value.name in names)
    unread = set(read) - _read_in(rest)
    _remove(rest.initializer, lambda tensor: tensor.name in unread)
    return Split(constants.SerializeToString(), model.SerializeToString(), names)


def _taken_out(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that dequantize constants of the main graph, as far as their results may be kept.

    Results of other types than float32 and float16 are left where they are: numpy has none of them.
    """
    from onnx import TensorProto

    fed = {value.name for value in graph.input}  # an initializer among them may be overridden
    fixed = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in fed}
    given = {value.name for value in graph.output}
    found, size = [], 0
    for node in graph.node:
        if node.op_type != _OPERATOR or node.domain not in ("", "ai.onnx"):
            continue
        if any(name and name not in fixed for name in node.input) or node.output[0] in given:
            continue
        if any(attribute.name == "output_dtype" for attribute in node.attribute):
            continue
        kind = fixed[node.input[1]].data_type
        if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        size += prod(fixed[node.input[0]].dims) * 4
        if size > _MOST_BYTES:
            break
        found.append(node)
    return found


def _read_in(graph: onnx.GraphProto) -> set[str]:
    """The names of all values that the graph and those inside of it read."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _read_in(attribute.g)
    return names


def _remove(field: Any, unwanted: Callable[[Any], object]) -> None:
    """Takes messages out of a repeated field."""
    for index in reversed(range(len(field))):
        if unwanted(field[index]):
            del field[index]
