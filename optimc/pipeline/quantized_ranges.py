"""What the quantized tensors of a model can hold: read from its scales and zero points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from optimc.report.ranges import CellRanges, QuantizedRange

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimc.core.model import OnnxModel
    from optimc.pipeline.build import Build
    from optimc.pipeline.gate import GateResult


def cell_ranges(build: Build, gate: GateResult) -> tuple[CellRanges, ...]:
    """Of what ships; where nothing ships, of the fastest cell. Cells in float are left out."""
    from optimc.pipeline.profiling import chosen_cells

    made = []
    for result in chosen_cells(build, gate):
        if result.lossy and result.outcomes:
            ranges = quantized_ranges(result.final_model(build.start.model))
            if ranges:
                made.append(CellRanges(cell=result.cell.name, ranges=ranges))
    return tuple(made)


def quantized_ranges(model: OnnxModel) -> tuple[QuantizedRange, ...]:
    """The activations that a QuantizeLinear and the weights that a DequantizeLinear reads.

    Scales and zero points that are computed (dynamic quantization) have no range to tell.
    """
    provenance = model.provenance
    found = []
    for node in model.ir.graph:
        data = node.inputs[0] if node.inputs else None
        if data is None:
            continue
        weight = node.op_type == "DequantizeLinear" and data.const_value is not None
        activation = node.op_type == "QuantizeLinear" and data.const_value is None
        if weight or activation:
            held = _held(node)
            if held is not None:
                name = provenance.get(data.name or "", data.name or "")
                kind: Literal["weight", "activation"] = "weight" if weight else "activation"
                found.append(QuantizedRange(tensor=name, kind=kind, **held))
    return tuple(found)


def _held(node: ir.Node) -> dict[str, Any] | None:
    """Type, ends and number of scales; None where they are not constants of integers."""
    import numpy as np

    scale = _constant(node, 1)
    zero = _constant(node, 2)
    if scale is None:
        return None
    if zero is None:
        data = node.inputs[0]
        type_ = data.dtype if data is not None and node.op_type == "DequantizeLinear" else None
        dtype = "uint8" if type_ is None else type_.name.lower()
        zero = np.zeros(1)
    else:
        dtype = zero.dtype.name
    if not dtype.lstrip("u").startswith("int"):
        return None
    bits = int(dtype.lstrip("uint"))
    low, high = (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    high -= 0 if dtype.startswith("u") else 1
    scales, zeros = scale.astype(np.float64), zero.astype(np.float64)
    return {
        "dtype": dtype,
        "low": float(((low - zeros) * scales).min()),
        "high": float(((high - zeros) * scales).max()),
        "scales": max(1, scale.size),
    }


def _constant(node: ir.Node, index: int) -> Any:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()
