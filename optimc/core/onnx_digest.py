"""Digests of ONNX graphs. Imports onnx_ir at the top.

The semantic digest covers what decides the numbers and the interface: opsets, IR version, the
operators in their order with attributes and connections, libraries of custom operators, the
weights' contents, and names, dtypes and dims of inputs and outputs. Inner values are numbered by
their first definition, so generated names, doc strings, metadata and inferred shapes do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from optimc.core.custom_ops import DIGESTS_KEY
from optimc.core.digest import canonical_json
from optimc.core.model import SOURCE_KEY
from optimc.core.onnx_signature import all_graphs, all_values, tensor_spec

_TENSOR_KEY = "optimc.sha256"


def semantic_digest(model: ir.Model) -> str:
    """SHA-256 of the model's semantic content, in lower-case hexadecimal."""
    hasher = _GraphHasher()
    hasher.put(
        "model",
        model.ir_version,
        sorted((domain or "ai.onnx", version) for domain, version in model.opset_imports.items()),
    )
    if DIGESTS_KEY in model.metadata_props:
        hasher.put("libraries", model.metadata_props[DIGESTS_KEY])
    for identifier in sorted(model.functions, key=str):
        function = model.functions[identifier]
        hasher.put("function", [str(part) for part in identifier], sorted(function.attributes))
        hasher.body(function.inputs, function, function.outputs)
    hasher.graph(model.graph, interface=True)
    return hasher.hexdigest()


def names_digest(model: ir.Model) -> str:
    """SHA-256 over node names, value names and source names, in the graph's order."""
    names: list[Any] = [[value.name, value.meta.get(SOURCE_KEY)] for value in all_values(model)]
    names += [[node.name for node in graph] for graph in all_graphs(model)]
    return hashlib.sha256(canonical_json(names).encode()).hexdigest()


def tensor_digest(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of dtype, shape and contents; remembered on the tensor, which never changes."""
    known = tensor.meta.get(_TENSOR_KEY)
    if isinstance(known, str):
        return known
    header = canonical_json([tensor.dtype.name, list(tensor.shape.numpy())])
    hasher = hashlib.sha256(header.encode())
    if tensor.dtype == ir.DataType.STRING:
        for item in tensor.numpy().reshape(-1):
            data = item if isinstance(item, bytes) else str(item).encode()
            hasher.update(len(data).to_bytes(8, "little") + data)
    elif tensor.dtype.bitwidth < 8:
        hasher.update(tensor.tobytes())
    else:
        # A view of the mapped file: no second copy of a large weight.
        array = np.ascontiguousarray(tensor.numpy())
        hasher.update(array.reshape(-1).view(np.uint8).data)
    tensor.meta[_TENSOR_KEY] = hasher.hexdigest()
    return hasher.hexdigest()


class _GraphHasher:
    """Numbers values in the order of their definition and hashes the graph as it walks."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._numbers: dict[ir.Value, int] = {}

    def put(self, *parts: Any) -> None:
        self._hash.update(canonical_json(parts).encode() + b"\n")

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def graph(self, graph: ir.Graph, *, interface: bool) -> None:
        inputs = [v for v in graph.inputs if v.name not in graph.initializers]
        if interface:
            for side in (inputs, graph.outputs):
                self.put([[s.name, s.dtype, s.shape] for s in map(tensor_spec, side)])
        self.body(inputs, graph, graph.outputs)
        used = self._numbers
        unused = [v for v in graph.initializers.values() if v not in used and v.const_value]
        self.put("unused", sorted(tensor_digest(v.const_value) for v in unused if v.const_value))

    def body(
        self, inputs: Iterable[ir.Value], nodes: Iterable[ir.Node], outputs: Iterable[ir.Value]
    ) -> None:
        for value in inputs:
            self._define(value)
        for node in nodes:
            self._node(node)
        self.put("outputs", [self._reference(value) for value in outputs])

    def _define(self, value: ir.Value) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    def _reference(self, value: ir.Value | None) -> Any:
        if value is None:
            return None
        if (
            value not in self._numbers
            and value.const_value is not None
            and value.producer() is None
        ):
            self._define(value)
            return ["initializer", self._numbers[value], tensor_digest(value.const_value)]
        # A value that is read before it is defined (an unsorted graph) gets its number here.
        return self._define(value)

    def _node(self, node: ir.Node) -> None:
        self.put("node", node.domain or "ai.onnx", node.op_type, node.overload)
        self.put([self._reference(value) for value in node.inputs])
        for name in sorted(node.attributes):
            self._attribute(name, node.attributes[name])
        self.put([self._define(v) if v.name else None for v in node.outputs])

    def _attribute(self, name: str, attribute: ir.Attr) -> None:
        kind = attribute.type
        self.put("attribute", name, kind.name)
        if attribute.is_ref():
            self.put("ref", attribute.ref_attr_name)
        elif kind == ir.AttributeType.GRAPH:
            self.graph(attribute.as_graph(), interface=False)
        elif kind == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                self.graph(graph, interface=False)
        elif kind == ir.AttributeType.TENSOR:
            self.put(tensor_digest(attribute.as_tensor()))
        elif kind == ir.AttributeType.TENSORS:
            self.put([tensor_digest(tensor) for tensor in attribute.as_tensors()])
        elif kind in (ir.AttributeType.TYPE_PROTO, ir.AttributeType.TYPE_PROTOS):
            self.put(str(attribute.value))
        else:
            self.put(_plain(attribute.value))


def _plain(value: Any) -> Any:
    """Attribute values as JSON: floats by their exact hexadecimal form, bytes as latin-1."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int | str) or value is None:
        return value
    return str(value)
