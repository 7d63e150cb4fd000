"""Reads back what ONNX Runtime really runs: from the graph that its optimizer writes.

The fusion of Q/DQ pairs into integer kernels happens inside the runtime, by rules on consumers and
types (onnxruntime/core/optimizer/qdq_transformer/selectors_actions). A placement that misses one of
them runs in float between a dequantization and a quantization, slower than no quantization at all.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.targets import Layer, TimedLayer

if TYPE_CHECKING:
    import onnx

INTEGER = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
FLOAT = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "DeformConv",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "Gemm",
        "GroupQueryAttention",
        "LSTM",
        "MatMul",
        "MultiHeadAttention",
        "NhwcFusedConv",
        "RNN",
    }
)
_MARKS = re.compile(r"(?:_token_\d+|_nchwc|_nhwc)+$")
"""What the optimizer appends to the names of nodes that it replaces."""
_CONTAINERS = frozenset({"If", "Loop", "Scan"})
"""Their time is that of the nodes in their subgraphs, which are told by themselves."""
_KERNEL = "_kernel_time"


def read_layers(path: Path) -> tuple[Layer, ...]:
    """The nodes of the optimized model at `path`, subgraphs included."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graphs = [_View(graph) for graph in _graphs(model.graph)]
    quantized = any(
        node.op_type in INTEGER or node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for view in graphs
        for node in view.graph.node
    )
    return tuple(view.layer(node, quantized) for view in graphs for node in view.graph.node)


def timed_layers(optimized: Path, events: Path, warmup: int) -> tuple[TimedLayer, ...]:
    """The nodes of the graph at `optimized` that ran, in its order, with their times.

    `events` is the file that the profiler of the session of that graph wrote (Chrome's trace
    format, one event a node and run, in microseconds); the first `warmup` runs do not count.
    """
    import onnx

    times: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(events.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            times[event["name"].removesuffix(_KERNEL)].append(event["dur"] / 1e3)
    model = onnx.load(str(optimized), load_external_data=False)
    found = []
    for view in (_View(graph) for graph in _graphs(model.graph)):
        for node in view.graph.node:
            samples = times.get(node.name, [])[warmup:]
            if not samples or node.op_type in _CONTAINERS:
                continue
            layer = view.layer(node, quantized=False)
            parts = (layer.name, *(name for name in node.output if name))
            median = statistics.median(samples)
            found.append(TimedLayer(layer.name, layer.operator, layer.dtype, median, parts))
    return tuple(found)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


class _View:
    """One graph with its types, producers and consumers by value name."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        for value in (*graph.value_info, *graph.input, *graph.output):
            self.types[value.name] = value.type.tensor_type.elem_type
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.constants = {tensor.name for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.consumers[name].append(node)

    def layer(self, node: onnx.NodeProto, quantized: bool) -> Layer:
        integer = node.op_type in INTEGER
        heavy = integer or node.op_type in FLOAT or node.op_type == "MatMulNBits"
        reason = self._reason(node) if heavy and quantized and not integer else None
        name = _MARKS.sub("", node.name) or next((o for o in node.output if o), "")
        return Layer(
            name=name,
            operator=f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            dtype="int8" if node.op_type.startswith("QLinear") or integer else self._dtype(node),
            heavy=heavy,
            reason=reason,
        )

    def _dtype(self, node: onnx.NodeProto) -> str:
        from onnx import helper

        for name in (*node.input[:1], *node.output[:1], *node.input[1:]):
            code = self.types.get(name, 0)
            if code:
                dtype = str(helper.tensor_dtype_to_np_dtype(code))
                return "int8" if dtype == "uint8" else dtype
        return "unknown"

    def _dequantized(self, name: str) -> onnx.NodeProto | None:
        node = self.producers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _reason(self, node: onnx.NodeProto) -> str:
        """Why this float node has not become an integer one, by the runtime's own rules."""
        source, weight = (*node.input, "", "")[:2]
        pair, weight_pair = self._dequantized(source), self._dequantized(weight)
        if pair is None and weight_pair is None:
            return "no DequantizeLinear stands on its inputs: it was left in float"
        if weight_pair is None:
            what = "its weight" if weight in self.constants else f"its second input `{weight}`"
            return f"{what} is not quantized"
        if pair is None:
            return f"its input `{source}` is not quantized"
        if self._is_int8(pair):
            return "its input is int8, and the fast kernels take uint8"
        readers = self.consumers[node.output[0]]
        kinds = [reader.op_type for reader in readers]
        if kinds != ["QuantizeLinear"] or node.output[0] in self.outputs:
            listed = sorted(set(kinds))
            if node.output[0] in self.outputs:
                listed.append("an output of the model")
            return f"its output goes to {', '.join(listed)}, not to one QuantizeLinear alone"
        if self._is_int8(readers[0]):
            return "its output is int8, and the fast kernels give uint8"
        return "the runtime has no int8 kernel for it as it stands"

    def _is_int8(self, node: onnx.NodeProto) -> bool:
        """Whether a QuantizeLinear or DequantizeLinear has a zero point of int8."""
        from onnx import TensorProto

        return any(self.types.get(name) == TensorProto.INT8 for name in node.input[2:])
