"""Which values of an ONNX graph can be observed, and which are worth it. Imports onnx_ir."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_ABSORBED = frozenset({"Relu", "Clip"})
_MOVES = frozenset(
    {
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


def float_values(model: ir.Model) -> list[str]:
    """Inputs and node outputs of the main graph that are, or may be, floating-point; in order."""
    return [str(value.name) for value in _floats(model.graph)]


def likely_values(model: ir.Model) -> list[str]:
    """The values whose range a placement may ask for.

    Left out are those that an activation behind them replaces (what is quantized is its result) and
    the results of moving data (their range is that of what was moved).
    """
    floats = _floats(model.graph)
    return [str(value.name) for value in floats if not _replaced(value) and not _moved(value)]


def _floats(graph: ir.Graph) -> Iterator[ir.Value]:
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    outputs = [value for node in graph for value in node.outputs]
    for value in [*inputs, *outputs]:
        if value.name and (value.dtype is None or value.dtype.is_floating_point()):
            yield value


def _replaced(value: ir.Value) -> bool:
    consumers = value.consumers()
    return len(consumers) == 1 and consumers[0].op_type in _ABSORBED and not value.is_graph_output()


def _moved(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in _MOVES and not value.is_graph_output()
