"""Cutting pieces out of an ONNX model: any subset of its nodes is a model of its own.

What kept nodes read and nobody computes any more becomes an input, fed with what the whole model
computed there. Imports onnx at the top.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper, inliner, numpy_helper

from optimc.core.errors import InputError
from optimc.frontends.onnx_files import all_tensors, check_tensors, parse

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BYTES = 2**31 - 2**24
"""What one protobuf message holds, with some room: a reproduction is one file."""


@dataclass(frozen=True)
class Piece:
    """What of the model is kept."""

    nodes: tuple[int, ...]
    """Numbers of the nodes of the main graph, in their order."""
    outputs: tuple[str, ...] | None = None
    """The outputs; None takes the model's own and whatever nothing reads."""
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Initializers that hold something else by now."""
    feeds: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Inputs that are fed something else by now."""
    fixed: bool = False
    """Whether all dims are numbers."""

    def keeping(self, nodes: tuple[int, ...]) -> Piece:
        """The same with these nodes."""
        return replace(self, nodes=nodes)


@dataclass(frozen=True)
class _Node:
    proto: onnx.NodeProto
    reads: tuple[str, ...]
    writes: tuple[str, ...]


class Whole:
    """The model that is cut, read once."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where the file is no model, or too large for one file."""
        proto = parse(path)
        total = check_tensors(proto, path)
        if total > MOST_BYTES:
            raise InputError(
                f"the model has {total:,} bytes of weights, a reproduction {MOST_BYTES:,} at most",
                where=str(path),
                fix="cut it first, with onnx.utils.extract_model",
            )
        onnx.load_external_data_for_model(proto, str(path.parent.resolve()))
        if proto.functions:
            proto = inliner.inline_local_functions(proto)
        for _, tensor in all_tensors(proto):
            tensor.ClearField("doc_string")
        self.proto = proto
        graph = proto.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {v.name: v for v in graph.input if v.name not in self.constants}
        self.outputs = [value.name for value in graph.output]
        self.nodes = [
            _Node(node, tuple(_reads(node)), tuple(name for name in node.output if name))
            for node in graph.node
        ]
        self.infos = {**_inferred(proto), **self.inputs}

    def everything(self) -> Piece:
        """All nodes, and the model's own outputs."""
        return Piece(tuple(range(len(self.nodes))), tuple(self.outputs))

    def outputs_of(self, piece: Piece) -> tuple[str, ...]:
        """The outputs of a piece: what of the wanted it computes, else what nothing reads."""
        kept = [self.nodes[index] for index in piece.nodes]
        written = [name for node in kept for name in node.writes]
        if piece.outputs is not None:
            found = tuple(name for name in piece.outputs if name in set(written))
            if found:
                return found
        read = {name for node in kept for name in node.reads}
        own = set(self.outputs)
        return tuple(name for name in written if name in own or name not in read)

    def pruned(self, piece: Piece) -> Piece:
        """Without the nodes that no output needs."""
        needed = set(self.outputs_of(piece))
        kept = []
        for index in reversed(piece.nodes):
            node = self.nodes[index]
            if needed & set(node.writes):
                needed |= set(node.reads)
                kept.append(index)
        return piece.keeping(tuple(reversed(kept)))

    def inputs_of(self, piece: Piece) -> list[str]:
        """What a piece reads and does not compute, constants left out, in the order of reading."""
        written: set[str] = set()
        found: dict[str, None] = {}
        for index in piece.nodes:
            node = self.nodes[index]
            for name in node.reads:
                if name not in written and name not in self.constants:
                    found[name] = None
            written |= set(node.writes)
        return list(found)

    def constants_of(self, piece: Piece) -> list[str]:
        """The initializers that a piece reads."""
        read = {name for index in piece.nodes for name in self.nodes[index].reads}
        return [name for name in self.constants if name in read]

    def array(self, piece: Piece, name: str) -> NDArray[Any]:
        """What the initializer `name` holds in a piece."""
        if name in piece.constants:
            return piece.constants[name]
        found: NDArray[Any] = numpy_helper.to_array(self.constants[name])
        return found

    def model(
        self,
        piece: Piece,
        feeds: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]] | None = None,
    ) -> onnx.ModelProto:
        """A piece as a model. `feeds` and `outputs` are arrays that give types and sizes.

        Without `outputs` the types of the outputs are left to the runtime.
        """
        inputs = [self._info(name, array, piece) for name, array in feeds.items()]
        names = self.outputs_of(piece)
        if outputs is None:
            infos = [onnx.ValueInfoProto(name=name) for name in names]
        else:
            infos = [self._info(name, outputs[name], piece) for name in names]
        constants = [
            numpy_helper.from_array(piece.constants[name], name)
            if name in piece.constants
            else self.constants[name]
            for name in self.constants_of(piece)
        ]
        nodes = [self.nodes[index].proto for index in piece.nodes]
        graph = helper.make_graph(nodes, "reduced", inputs, infos, constants)
        return helper.make_model(
            graph,
            opset_imports=_used_opsets(self.proto, nodes),
            ir_version=max(self.proto.ir_version, 4),
            producer_name="optimc reduce",
        )

    def _info(self, name: str, array: NDArray[Any], piece: Piece) -> onnx.ValueInfoProto:
        """Type and sizes of a value; dynamic dims stay so where they were and still can."""
        known = self.infos.get(name)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        dims: list[int | str] = list(array.shape)
        if known is not None and not piece.fixed and known.type.tensor_type.HasField("shape"):
            said = known.type.tensor_type.shape.dim
            if len(said) == len(dims):
                for axis, dim in enumerate(said):
                    if not dim.HasField("dim_value"):
                        dims[axis] = dim.dim_param or f"{name}_dim{axis}"
        return helper.make_tensor_value_info(name, kind, dims)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Everything that a node reads, also what its subgraphs take from outside."""
    seen: dict[str, None] = {name: None for name in node.input if name}
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            seen |= dict.fromkeys(_captured(graph))
    return iter(seen)


def _captured(graph: onnx.GraphProto) -> Iterable[str]:
    own = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        found |= {name: None for name in _reads(node) if name not in own}
        own |= set(node.output)
    found |= {value.name: None for value in graph.output if value.name not in own}
    return found


def _inferred(proto: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Types by value name, as far as shape inference knows them."""
    shell = onnx.ModelProto()
    shell.CopyFrom(proto)
    for tensor in shell.graph.initializer:
        if tensor.ByteSize() > 4096:  # inference reads small ones only: shapes and axes
            for content in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
                tensor.ClearField(content)
    try:
        inferred = onnx.shape_inference.infer_shapes(shell)
    except onnx.shape_inference.InferenceError:
        inferred = shell
    return {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.output)}


def _used_opsets(
    proto: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]
) -> list[onnx.OperatorSetIdProto]:
    used = {"" if d == "ai.onnx" else d for node in nodes for d in _domains(node)} | {""}
    return [o for o in proto.opset_import if ("" if o.domain == "ai.onnx" else o.domain) in used]


def _domains(node: onnx.NodeProto) -> Iterator[str]:
    yield node.domain
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from _domains(inner)
