"""What can be said of an ONNX model without running it: for `optimc inspect`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimc.core.errors import InputError
from optimc.core.model import ModelStats, Signature

_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


@dataclass(frozen=True)
class Inspection:
    """`macs` counts multiply-accumulates of Conv, ConvTranspose, MatMul and Gemm, and of their
    integer forms, with every symbolic dim at 1; `unknown_macs` names the nodes whose shapes are not
    known."""

    signature: Signature
    opsets: dict[str, int]
    ir_version: int
    operators: dict[str, int]
    stats: ModelStats
    macs: int
    unknown_macs: tuple[str, ...]
    weights: dict[str, int]
    """Bytes of initializers by dtype."""
    quantization: dict[str, int]
    """Counts of what belongs to quantization: Q/DQ nodes and integer operators."""


def inspect_onnx(path: Path) -> Inspection:
    """Reads the model; external data stays on disk. Raises InputError as the front end does."""
    from optimc.core.onnx_signature import all_graphs, signature_of, stats_of
    from optimc.frontends.onnx_files import check_tensors, parse

    check_tensors(parse(path), path)
    model = _loaded(path)
    shapes = _shapes(path)
    operators: Counter[str] = Counter()
    unknown = []
    macs = 0
    for node in model.graph.all_nodes():
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        operators[name] += 1
        count = _macs(node, shapes)
        if count is None:
            unknown.append(node.name or node.op_type)
        else:
            macs += count
    weights: Counter[str] = Counter()
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                weights[value.const_value.dtype.name.lower()] += value.const_value.nbytes
    return Inspection(
        signature=signature_of(model),
        opsets={domain or "ai.onnx": v for domain, v in sorted(model.opset_imports.items())},
        ir_version=model.ir_version,
        operators=dict(operators.most_common()),
        stats=stats_of(model),
        macs=macs,
        unknown_macs=tuple(unknown),
        weights=dict(weights.most_common()),
        quantization={name: n for name, n in operators.items() if _is_quantization(name)},
    )


def _loaded(path: Path) -> Any:
    """The model with its functions inlined. Raises InputError where the file makes no graph."""
    import onnx_ir as ir
    from onnx_ir.passes.common import InlinePass

    try:
        model = ir.load(path)
        InlinePass()(model)
    except Exception as error:
        # A file that nobody checked may break the reader anywhere; the first cause says most.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(
            f"not a valid ONNX model: {cause}",
            where=str(path),
            fix="`optimc check` of a recipe with it says more; export the model again",
        ) from error
    return model


def _is_quantization(name: str) -> bool:
    plain = name.rpartition("::")[2]
    return plain in _QUANTIZED or plain.startswith("QLinear") or plain.endswith("Integer")


def macs_of(path: Path, sizes: Mapping[str, int]) -> int | None:
    """Multiply-accumulates as `Inspection` counts them, with symbolic dims of these `sizes`.

    None where a shape is not known.
    """
    shapes = _shapes(path, sizes)
    counts = [_macs(node, shapes) for node in _loaded(path).graph.all_nodes()]
    return sum(count for count in counts if count is not None) if None not in counts else None


def _shapes(path: Path, sizes: Mapping[str, int] | None = None) -> dict[str, Sequence[int]]:
    """Shapes by value name, with symbolic dims of `sizes`, others at 1.

    What the file says of inner values is taken where its dims are known: exporters know shapes that
    inference does not find, such as those behind a Reshape to sizes that the graph computes.
    """
    import onnx

    from optimc.frontends.onnx_files import parse

    proto = parse(path)
    constants = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = (sizes or {}).get(dim.dim_param, 1)
    declared = [value for value in proto.graph.value_info if _settled(value, sizes)]
    del proto.graph.value_info[:]
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) > 1024:
            tensor.ClearField("raw_data")  # inference reads small ones only: shapes and axes
    known: dict[str, Sequence[int]] = dict(constants)
    for inner in (declared, []):  # what a file declares may be wrong
        proto.graph.value_info.extend(inner)
        try:
            # Not with data_prop: it follows shape tensors of any declared size, by element.
            inferred = onnx.shape_inference.infer_shapes(proto)
        except onnx.shape_inference.InferenceError:
            del proto.graph.value_info[:]
            continue
        graph = inferred.graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(
                d.HasField("dim_value") for d in dims
            ):
                known[value.name] = [d.dim_value for d in dims]
        break
    return known


def _settled(value: Any, sizes: Mapping[str, int] | None) -> bool:
    """Whether a declared shape is known when symbolic dims have these sizes, which it then has."""
    if not value.type.tensor_type.HasField("shape"):
        return False
    for dim in value.type.tensor_type.shape.dim:
        if not dim.HasField("dim_value"):
            size = 1 if sizes is None and dim.dim_param else (sizes or {}).get(dim.dim_param)
            if size is None:
                return False
            dim.dim_value = size
    return True


_CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv")
_PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul")


def _macs(node: Any, shapes: dict[str, Sequence[int]]) -> int | None:
    """Multiply-accumulates of one node; 0 for operators that are not counted, None if unknown."""
    if node.op_type not in (*_CONVOLUTIONS, *_PRODUCTS, "ConvTranspose", "Gemm"):
        return 0
    weight = 3 if node.op_type.startswith("QLinear") else 1
    if len(node.inputs) <= weight or not node.outputs:
        return None  # a model that no runtime takes may be looked at
    sides = [
        shapes.get(value.name or "") if value is not None else None
        for value in (node.inputs[0], node.inputs[weight], node.outputs[0])
    ]
    if any(shape is None for shape in sides):
        return None
    x, w, y = (list(shape or ()) for shape in sides)
    if node.op_type in _CONVOLUTIONS:
        return math.prod(y) * math.prod(w[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(x) * math.prod(w[1:])
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transA")
        inner = x[0] if transposed is not None and transposed.as_int() else x[1]
        return math.prod(y) * inner
    return math.prod(y) * x[-1] if x else None
