"""Checks of an ONNX graph before anything trusts it, on its protobuf form. Imports onnx at the top.

They come before onnx.checker and ONNX Runtime because those name less: a name that is defined twice
is reported there without the nodes, a cycle without any name. Everything raises `InputError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from optimc.core.errors import InputError, did_you_mean
from optimc.core.onnx_protos import all_protos
from optimc.frontends.onnx_files import describe, tensor_bits

MAX_VALUE_BYTES = 2**36
"""64 GiB: a fixed input shape above this is taken for a mistake."""

MAX_NODES = 1_000_000
"""Nodes after inlining functions; more is taken for a file that is built to exhaust memory."""

_INT32_MAX = 2**31 - 1
_STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training"})


def check_interface(proto: onnx.ModelProto, path: Path) -> None:
    """Inputs and outputs have to be numeric tensors of a size that can be met."""
    initializers = {tensor.name for tensor in proto.graph.initializer}
    for side, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            if side == "output" or value.name not in initializers:
                _check_value(side, value, path)


def check_types(proto: onnx.ModelProto, path: Path) -> None:
    """Every element type that a value of the graph or a subgraph names is one of ONNX's."""
    known = set(TensorProto.DataType.values())
    for graph in all_protos(proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for element in _element_types(value.type):
                if element not in known:
                    raise InputError(
                        f"value `{value.name}` has the element type {element}, which the "
                        "installed onnx does not know",
                        where=str(path),
                        fix="export it again, with the element types of this release of onnx",
                    )


def _element_types(kind: onnx.TypeProto) -> Iterator[int]:
    """The numbers of all element types that a value's type names, also within sequences."""
    field = kind.WhichOneof("value")
    if field in ("tensor_type", "sparse_tensor_type"):
        yield getattr(kind, field).elem_type
    elif field in ("sequence_type", "optional_type"):
        yield from _element_types(getattr(kind, field).elem_type)
    elif field == "map_type":
        yield from _element_types(kind.map_type.value_type)


def _check_value(side: str, value: onnx.ValueInfoProto, path: Path) -> None:
    place = f"{side} `{value.name}`"
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        found = (kind or "value without a type").removesuffix("_type")
        raise InputError(
            f"{place} is a {found}: optimc takes models whose inputs and outputs are tensors",
            where=str(path),
            fix="export the model without this step (scikit-learn classifiers: zipmap=False)",
        )
    tensor = value.type.tensor_type
    if tensor.elem_type == TensorProto.STRING:
        raise InputError(
            f"{place} holds strings: optimc takes numbers only",
            where=str(path),
            fix="cut the model behind its text processing, and feed it the ids",
        )
    if tensor.elem_type not in onnx.helper.get_all_tensor_dtypes():
        raise InputError(f"{place} has no element type", where=str(path))
    dims = [dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value")]
    if any(dim < -1 for dim in dims):
        raise InputError(f"{place} has a negative dim: {dims}", where=str(path))
    size = math.prod(max(dim, 1) for dim in dims) * tensor_bits(tensor.elem_type) // 8
    if size > MAX_VALUE_BYTES:
        raise InputError(
            f"{place} has the shape {dims}, that is {size:,} bytes at least",
            where=str(path),
            fix="export the model with a shape that it is used with, or with dynamic dims",
        )


def check_functions(proto: onnx.ModelProto, path: Path) -> None:
    """Functions must not call themselves, nor unfold to more nodes than memory holds."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    entered: set[tuple[str, str, str]] = set()

    def size_of(key: tuple[str, str, str]) -> int:
        if key in sizes:
            return sizes[key]
        if key in entered:
            raise InputError(f"the function `{key[1]}` calls itself", where=str(path))
        entered.add(key)
        sizes[key] = count(functions[key].node)
        return sizes[key]

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            total += size_of(key) if key in functions else 1
            for attribute in node.attribute:
                total += sum(count(graph.node) for graph in _subgraphs(attribute))
        return total

    if count(proto.graph.node) > MAX_NODES:
        raise InputError(
            f"the graph has more than {MAX_NODES:,} nodes once its functions are inlined",
            where=str(path),
        )


def check_operators(
    proto: onnx.ModelProto,
    path: Path,
    contrib: frozenset[tuple[str, str]],
    *,
    libraries: bool = False,
) -> None:
    """Every operator is known to ONNX at its opset, to ONNX Runtime (`contrib`), or a function.

    With `libraries`, those of other domains are left to the runtime, which loads the libraries.
    """
    functions = {(f.domain, f.name) for f in proto.functions}
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    for name, imported in opsets.items():
        if not 0 <= imported <= _INT32_MAX:
            raise InputError(
                f"the model imports version {imported} of the domain `{name or 'ai.onnx'}`, "
                "which cannot be",
                where=str(path),
                fix="correct its opset_import, or export it again",
            )
    newest = onnx.defs.onnx_opset_version()
    version = opsets.get("", opsets.get("ai.onnx", 0))
    if version > newest:
        raise InputError(
            f"the model uses opset {version}, the installed onnx knows up to {newest}",
            where=str(path),
            fix=f"export with opset {newest} or lower",
        )
    for graph in all_protos(proto.graph):
        for node in graph.node:
            domain = "" if node.domain == "ai.onnx" else node.domain
            if (node.domain, node.op_type) in functions or (domain, node.op_type) in contrib:
                continue
            if domain in _STANDARD_DOMAINS and _in_opset(node.op_type, domain, opsets, version):
                continue
            if libraries and domain not in _STANDARD_DOMAINS:
                continue
            raise _unknown_operator(node, domain, version, path)


def _in_opset(op_type: str, domain: str, opsets: dict[str, int], version: int) -> bool:
    wanted = version if domain == "" else opsets.get(domain, 0)
    try:
        return not onnx.defs.get_schema(op_type, wanted, domain).deprecated
    except onnx.defs.SchemaError:
        return False


def _unknown_operator(node: onnx.NodeProto, domain: str, version: int, path: Path) -> InputError:
    if domain not in _STANDARD_DOMAINS:
        return InputError(
            f"{describe(node)} uses the operator `{node.op_type}` of the domain `{domain}`, "
            "which neither ONNX nor ONNX Runtime knows",
            where=str(path),
            fix="name the library that holds it (model: {onnx: ..., custom_ops: [libs/ops.so]}), "
            "or export without custom operators",
        )
    schemas = onnx.defs.get_all_schemas_with_history()
    known = {schema.name for schema in schemas if schema.domain == domain}
    if node.op_type in known:
        return InputError(
            f"{describe(node)}: the operator `{node.op_type}` is not in opset {version}",
            where=str(path),
            fix="export with the opset that the operator belongs to",
        )
    return InputError(
        f"{describe(node)}: ONNX has no operator `{node.op_type}`",
        where=str(path),
        fix=did_you_mean(node.op_type, known) or "export with standard operators",
    )


def _subgraphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def check_names(proto: onnx.ModelProto, path: Path) -> None:
    """Every name is defined once in its graph, before it is read; every output is computed."""
    outputs = [value.name for value in proto.graph.output]
    for name in outputs:
        if outputs.count(name) > 1:
            raise InputError(f"the output `{name}` is listed twice", where=str(path))
    _check_graph_names(proto.graph, {}, frozenset(outputs), path)


def _check_graph_names(
    graph: onnx.GraphProto, outer: Mapping[str, str], model_outputs: frozenset[str], path: Path
) -> None:
    defined: dict[str, str] = {}
    for value in graph.input:
        _define(defined, value.name, "the list of inputs", model_outputs, path)
    # Files of IR version 3 list initializers as inputs too.
    initializers: dict[str, str] = {}
    for tensor in graph.initializer:
        _define(initializers, tensor.name, f"the initializer `{tensor.name}`", model_outputs, path)
    defined |= initializers
    for node in graph.node:
        visible = {**outer, **defined} if _has_subgraph(node) else {}
        for name in filter(None, node.input):
            if name not in defined and name not in outer:
                raise _unreadable(graph, node, name, path)
        for attribute in node.attribute:
            for subgraph in _subgraphs(attribute):
                _check_graph_names(subgraph, visible, model_outputs, path)
        for name in filter(None, node.output):
            _define(defined, name, describe(node), model_outputs, path)
    for value in graph.output:
        if value.name not in defined and value.name not in outer:
            raise InputError(
                f"no node computes the output `{value.name}`",
                where=str(path),
                fix="export the model again, with the outputs that it has",
            )


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(_subgraphs(attribute) for attribute in node.attribute)


def _define(
    defined: dict[str, str], name: str, by: str, model_outputs: frozenset[str], path: Path
) -> None:
    if name in defined:
        also = ", which is also the name of an output" if name in model_outputs else ""
        raise InputError(
            f"the name `{name}`{also} is defined twice: by {defined[name]} and by {by}",
            where=str(path),
            fix="give one of the two another name at export (an output's name must not be that of "
            "an inner value)",
        )
    defined[name] = by


def _unreadable(graph: onnx.GraphProto, node: onnx.NodeProto, name: str, path: Path) -> InputError:
    """The error for a value that is read too early: a cycle, a wrong order, or no producer."""
    producers = {output: n for n in graph.node for output in n.output if output}
    if name not in producers:
        return InputError(
            f"{describe(node)} reads `{name}`, which nothing defines",
            where=str(path),
            fix="export the model again",
        )
    cycle = _cycle(node, producers)
    if cycle:
        shown = " -> ".join(describe(member) for member in cycle[:6])
        return InputError(
            f"the graph has a cycle: {shown}",
            where=str(path),
            fix="export the model again: a graph has no cycles, a loop is the operator `Loop`",
        )
    return InputError(
        f"{describe(node)} reads `{name}` before {describe(producers[name])} computes it",
        where=str(path),
        fix="sort the nodes topologically, for example with onnx_ir: model.graph.sort()",
    )


def _cycle(start: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes on a path from `start` back to it against the data's direction, or nothing."""
    came_from: dict[int, onnx.NodeProto] = {}
    pending = [start]
    while pending:
        node = pending.pop()
        for name in _reads(node):
            source = producers.get(name)
            if source is None or id(source) in came_from:
                continue
            came_from[id(source)] = node
            if source is start:
                return _path(start, came_from)
            pending.append(source)
    return []


def _path(start: onnx.NodeProto, came_from: Mapping[int, onnx.NodeProto]) -> list[onnx.NodeProto]:
    members = [start]
    node = came_from[id(start)]
    while node is not start:
        members.append(node)
        node = came_from[id(node)]
    return [*members, start]


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, those in its subgraphs included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in _subgraphs(attribute):
            for inner in graph.node:
                yield from _reads(inner)
