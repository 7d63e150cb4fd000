"""The worker's side of calibration: runs the float model and observes its values.

ONNX Runtime on one thread with graph optimizations off: what is observed is what the graph says,
and the same on every run. The values are added to the graph's outputs in chunks whose size in bytes
is bounded, so memory depends on the chunk and not on the number of samples. While one batch runs,
the values of the one before it are counted in a second thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from optimc.calibration.observers import HistogramObserver
from optimc.core import custom_ops
from optimc.core.errors import CellError

if TYPE_CHECKING:
    Arrays = Mapping[str, NDArray[np.generic]]

MAX_SAMPLES = 32
"""Samples in one run, where memory allows it."""

_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
)


class ObserverService:
    """Observes values of the model at `path`; served by `optimc.core.worker.Worker`."""

    def __init__(self, path: str, chunk_bytes: int) -> None:
        self._path = Path(path)
        self._chunk_bytes = chunk_bytes
        self._proto = onnx.load(path, load_external_data=False)
        self._session: ort.InferenceSession | None = None
        self._outputs: list[str] = []
        self._observers: dict[str, HistogramObserver] = {}
        self._counter = ThreadPoolExecutor(1)
        self._counting: Future[None] | None = None

    def plan(self, sample: Arrays, values: Sequence[str]) -> tuple[Any, Any]:
        """Chunks of the values and the samples a run that keep within the bytes of a chunk.

        `sample` is the smallest feed. Values that are not floating-point are left out.
        """
        sizes = self._sizes(sample)
        known = {name: sizes[name] for name in values if name in sizes and sizes[name] is not None}
        # A value whose shape is only known at run time may be as large as the largest other: of
        # those that are asked for, and where none of them has a shape, of the whole graph.
        every = max((size for size in sizes.values() if size), default=self._chunk_bytes)
        largest = max((size for size in known.values() if size), default=every)
        wanted = [(name, sizes[name] or largest) for name in values if name in sizes]
        chunks = list(_chunks(wanted, self._chunk_bytes))
        total = sum(size for _, size in wanted)
        # Two batches are there at once: one is run, one is counted.
        samples = max(1, min(MAX_SAMPLES, self._chunk_bytes // max(1, 2 * total)))
        return {"chunks": chunks, "samples": samples}, {}

    def _sizes(self, sample: Arrays) -> dict[str, int | None]:
        """Bytes of every floating-point value for this feed; None where the shape is not known."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        graph = proto.graph
        for value in graph.input:
            if value.name in sample:
                shape = value.type.tensor_type.shape
                shape.Clear()
                for dim in sample[value.name].shape:
                    shape.dim.add().dim_value = dim
        _forget_shapes(graph)
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        graph = onnx.shape_inference.infer_shapes(proto).graph
        return {
            value.name: _bytes(value.type.tensor_type)
            for value in [*graph.input, *graph.value_info, *graph.output]
            if value.type.tensor_type.elem_type in _FLOATS
        }

    def open(self, arrays: Arrays, values: Sequence[str]) -> tuple[Any, Any]:
        """Makes the session that computes one chunk of values, and observers for them."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        present = {value.name for value in proto.graph.output}
        inputs = {value.name for value in proto.graph.input}
        proto.graph.output.extend(
            onnx.ValueInfoProto(name=name)
            for name in values
            if name not in present and name not in inputs
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        custom_ops.register(options)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self._path.parent)
        )
        self._session = None  # the old one's memory goes before the new one's comes
        self._session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [name for name in values if name not in inputs]
        self._observers = {name: HistogramObserver() for name in values}
        return None, {}

    def observe(self, arrays: Arrays, first: int) -> tuple[Any, Any]:
        """Runs one batch of feeds, whose first sample has the number `first`."""
        assert self._session is not None
        try:
            # An empty list would mean all outputs.
            outputs = self._session.run(self._outputs, dict(arrays)) if self._outputs else []
        except Exception as error:
            if "Failed to allocate memory" in str(error) or "bad_alloc" in str(error):
                raise  # the worker turns it into its own error
            raise CellError(
                f"ONNX Runtime cannot run the model on the data: {str(error).strip()[:500]}",
                where=f"calibration, the batch that starts at sample {first}",
                fix="look at that sample: ids out of range, or a shape the model does not take",
            ) from error
        self._wait()
        seen = dict(zip(self._outputs, outputs, strict=True))
        seen |= {name: arrays[name] for name in self._observers.keys() & arrays.keys()}
        samples = max((len(feed) for feed in arrays.values() if feed.ndim), default=1)
        self._counting = self._counter.submit(self._count, seen, samples)
        return None, {}

    def _count(self, seen: Mapping[str, Any], samples: int) -> None:
        for name, array in seen.items():
            self._observers[name].update(array, samples)

    def _wait(self) -> None:
        """Until the batch before is counted; raises what went wrong there."""
        if self._counting is not None:
            self._counting.result()
            self._counting = None

    def statistics(self, arrays: Arrays) -> tuple[Any, Any]:
        """The table of the open chunk, and the histograms by value name."""
        self._wait()
        table, histograms = {}, {}
        for name, observer in self._observers.items():
            seen = observer.statistics()
            table[name] = {
                "minimum": seen.minimum,
                "maximum": seen.maximum,
                "count": seen.count,
                "non_finite": seen.non_finite,
                "limit": seen.limit,
                "average_minimum": seen.average_minimum,
                "average_maximum": seen.average_maximum,
            }
            histograms[name] = seen.histogram
        return table, histograms


def _bytes(tensor: onnx.TypeProto.Tensor) -> int | None:
    if not tensor.HasField("shape"):
        return None
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    size = 8 if tensor.elem_type == onnx.TensorProto.DOUBLE else 4
    for dim in dims:
        if dim is None:
            return None
        size *= dim
    return size


def _chunks(wanted: Iterable[tuple[str, int]], limit: int) -> Iterable[list[str]]:
    """Cuts the values, in their order, into chunks of at most `limit` bytes (or one value)."""
    chunk: list[str] = []
    total = 0
    for name, size in wanted:
        if chunk and total + size > limit:
            yield chunk
            chunk, total = [], 0
        chunk.append(name)
        total += size
    if chunk:
        yield chunk


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """Drops what is known of inner values, but for types of outputs that inference cannot know."""
    foreign = {
        name for node in graph.node if node.domain not in ("", "ai.onnx") for name in node.output
    }
    kept = [value for value in graph.value_info if value.name in foreign]
    for value in kept:
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    graph.value_info.extend(kept)
