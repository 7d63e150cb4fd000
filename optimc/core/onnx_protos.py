"""Walking ONNX files as protobuf messages, without onnx_ir."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def all_protos(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all its subgraphs, outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_protos(attribute.g)
            for subgraph in attribute.graphs:
                yield from all_protos(subgraph)
