"""What can be read off an onnx_ir model: signature, values, counts. Imports onnx_ir at the top."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from optimc.core.model import ModelStats, Signature, TensorSpec


def dtype_name(dtype: ir.DataType | None) -> str:
    """The numpy name of an ONNX dtype, `string` for strings, `unknown` where there is none."""
    if dtype is None or dtype == ir.DataType.UNDEFINED:
        return "unknown"
    return "string" if dtype == ir.DataType.STRING else str(dtype.numpy())


def tensor_spec(value: ir.Value) -> TensorSpec:
    """Name, dtype and dims of a value; unnamed dims are called ``<value>_dim<axis>``."""
    shape: tuple[int | str, ...] | None = None
    if value.shape is not None:
        shape = tuple(
            dim if isinstance(dim, int) else (dim.value or f"{value.name}_dim{axis}")
            for axis, dim in enumerate(value.shape)
        )
    return TensorSpec(value.name or "", dtype_name(value.dtype), shape)


def signature_of(model: ir.Model) -> Signature:
    """Inputs (initializers that old files also list as inputs left out) and outputs."""
    graph = model.graph
    return Signature(
        inputs=tuple(tensor_spec(v) for v in graph.inputs if v.name not in graph.initializers),
        outputs=tuple(tensor_spec(v) for v in graph.outputs),
    )


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and every subgraph, outermost first."""
    yield model.graph
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield attribute.as_graph()
            elif attribute.type == ir.AttributeType.GRAPHS:
                yield from attribute.as_graphs()


def all_values(model: ir.Model) -> Iterator[ir.Value]:
    """Every named value once: inputs, initializers and node outputs, subgraphs included."""
    for graph in all_graphs(model):
        yield from graph.inputs
        yield from (v for v in graph.initializers.values() if not v.is_graph_input())
        for node in graph:
            yield from (v for v in node.outputs if v.name)


def holds_float16(model: ir.Model) -> bool:
    """Whether any value is float16."""
    return any(value.dtype == ir.DataType.FLOAT16 for value in all_values(model))


def holds_four_bits(model: ir.Model) -> bool:
    """Whether weights are stored in 4 bits, behind a DequantizeLinear or in a fused product."""
    kinds = (ir.DataType.INT4, ir.DataType.UINT4)
    fused = any(node.op_type == "MatMulNBits" for node in model.graph.all_nodes())
    return fused or any(value.dtype in kinds for value in all_values(model))


def stats_of(model: ir.Model) -> ModelStats:
    """Nodes (subgraphs' too), bytes and elements of initializers and constant attributes."""
    tensors = [v.const_value for g in all_graphs(model) for v in g.initializers.values()]
    nodes = 0
    for node in model.graph.all_nodes():
        nodes += 1
        value = node.attributes.get("value")
        if node.op_type == "Constant" and value is not None:
            tensors.append(value.as_tensor())
    known = [t for t in tensors if t is not None]
    return ModelStats(nodes, sum(t.nbytes for t in known), sum(t.size for t in known))
