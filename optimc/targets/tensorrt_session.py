"""Runs TensorRT plans: buffers, streams, dynamic shapes and outputs of unknown size.

API: NVIDIA TensorRT, Python API reference, `tensorrt.Runtime`, `ICudaEngine`, `IExecutionContext`,
`IOutputAllocator`.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError, InputError
from optimc.core.targets import Engine, Layer, Session, TimedLayer
from optimc.targets.feeds import checked_feeds
from optimc.targets.tensorrt_build import Console, last_words, new_logger
from optimc.targets.tensorrt_cuda import DeviceBuffer, Event, HostBuffer, Stream, call

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray

    from optimc.core.targets import Arrays


@dataclass(frozen=True, slots=True)
class RunTimes:
    """One inference as the GPU's own clock saw it, in milliseconds."""

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float


class TensorRTSession(Session):
    """One plan, deserialized, with one execution context and one stream."""

    def __init__(self, engine: Engine, settings: dict[str, Any]) -> None:
        import tensorrt as trt

        self.trt: ModuleType = trt
        self.signature = engine.signature
        self._opened_as = (engine, settings)
        self._device = int(settings.get("device", 0))
        self._turned = threading.local()
        self.use_device()
        self._errors: list[str] = []
        self._logger = new_logger(trt, Console(), self._errors)
        self._runtime = trt.Runtime(self._logger)
        # A version-compatible plan carries a lean runtime, which is code: it is this build's own.
        self._runtime.engine_host_code_allowed = True
        for library in settings.get("plugins", ()):
            if self._runtime.get_plugin_registry().load_library(str(library)) is None:
                raise CellError(f"TensorRT took no plugins from {library}")
        native = self._runtime.deserialize_cuda_engine(engine.main.read_bytes())
        if native is None:
            raise CellError(
                f"TensorRT refused the engine{last_words(self._errors)}",
                fix="build it with the TensorRT version and on the GPU that run it, or set "
                "`version_compatible` and `hardware_compatibility` for this target",
            )
        self._native: Any = native
        if settings.get("weights"):
            from optimc.targets.tensorrt_refit import refit

            refit(trt, native, self._logger, engine.folder / settings["weights"], self._errors)
        self._limit_weights(settings.get("weight_streaming_mb"))
        context = native.create_execution_context()
        if context is None:
            raise CellError(f"TensorRT made no context{last_words(self._errors)}")
        self.context: Any = context
        self.stream = Stream()
        self.attached: TensorRTBound | None = None
        """Whose shapes and memory the context has now."""
        self._bounds: weakref.WeakSet[TensorRTBound] = weakref.WeakSet()

    def _limit_weights(self, megabytes: int | None) -> None:
        """How much of the GPU's memory weights take, before there is a context."""
        if megabytes is None:
            return
        known = len(self._errors)
        most = self.native.streamable_weights_size
        self.native.weight_streaming_budget_v2 = min(megabytes * 10**6, most)
        if len(self._errors) > known:
            said = last_words(self._errors[known:])
            raise CellError(f"TensorRT does not stream weights in {megabytes} MB{said}")

    def use_device(self) -> None:
        """Turns the calling thread to this session's GPU: every thread starts with the first."""
        if not hasattr(self._turned, "done"):
            call("cudaSetDevice", self._device)
            self._turned.done = True

    @property
    def native(self) -> Any:
        """The `tensorrt.ICudaEngine`. Raises ValueError when the session is closed."""
        if self._native is None:
            raise ValueError("the session is closed")
        return self._native

    @property
    def last_words(self) -> str:
        """TensorRT's last errors, for a message."""
        return last_words(self._errors)

    def tensors(self, mode: str) -> list[str]:
        """The names of the engine's tensors of a `TensorIOMode`, INPUT or OUTPUT."""
        wanted = getattr(self.trt.TensorIOMode, mode)
        names = [self.native.get_tensor_name(i) for i in range(self.native.num_io_tensors)]
        return [name for name in names if self.native.get_tensor_mode(name) == wanted]

    def on_host(self, name: str) -> bool:
        """Whether the CPU reads or writes the tensor, as it does with values that are shapes."""
        return bool(self.native.get_tensor_location(name) == self.trt.TensorLocation.HOST)

    def bind(self, feeds: Arrays) -> TensorRTBound:
        bound = TensorRTBound(self, checked_feeds(self.signature, feeds))
        self._bounds.add(bound)
        return bound

    def layers(self) -> tuple[Layer, ...]:
        from optimc.targets.tensorrt_layers import read_layers

        return read_layers(self.information())

    def profile(self, feeds: Arrays, warmup: int, runs: int) -> tuple[TimedLayer, ...]:
        from optimc.targets.tensorrt_profiler import profiled

        engine, settings = self._opened_as
        with TensorRTSession(engine, settings) as own:
            return profiled(own, feeds, warmup, runs)

    def information(self) -> str:
        """What the engine inspector says, as JSON."""
        inspector = self.native.create_engine_inspector()
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def clocks_mhz(self) -> dict[str, int] | str:
        """See `optimc.targets.tensorrt_clocks`."""
        from optimc.targets.tensorrt_clocks import clocks_mhz

        return clocks_mhz(self._device)

    def close(self) -> None:
        for bound in self._bounds:
            bound.close()
        self.stream.close()
        # In the order in which they depend on each other.
        self.context = self._native = None
        self._runtime = None


class TensorRTBound:
    """Inputs on the GPU, and room for the outputs: a run copies nothing."""

    def __init__(self, session: TensorRTSession, feeds: dict[str, NDArray[np.generic]]) -> None:
        self._session = session
        self._feeds = feeds
        self._buffers: dict[str, DeviceBuffer] = {}
        self._outputs: dict[str, _Output] = {}
        for name in session.tensors("INPUT"):
            if not session.on_host(name):
                self._buffers[name] = DeviceBuffer()
                self._buffers[name].write(feeds[name], session.stream)
        self._attach()
        session.stream.synchronize()

    def run(self) -> None:
        self._attach()
        self._enqueue()
        self._session.stream.synchronize()

    def times(self) -> RunTimes:
        """One inference with its copies, each timed by events on the stream."""
        self._attach()
        stream = self._session.stream
        events = [Event() for _ in range(4)]
        try:
            events[0].record(stream)
            for name, buffer in self._buffers.items():
                buffer.write(self._feeds[name], stream)
            events[1].record(stream)
            self._enqueue()
            events[2].record(stream)
            kept = [output.fetch(stream) for output in self._outputs.values()]
            events[3].record(stream)
            stream.synchronize()
            del kept  # until here the copies were writing into them
            spans = [b.milliseconds_since(a) for a, b in pairwise(events)]
        finally:
            for event in events:
                event.close()
        return RunTimes(*spans)

    def outputs(self) -> dict[str, NDArray[np.generic]]:
        stream = self._session.stream
        fetched = {spec.name: self._outputs[spec.name].fetch(stream) for spec in self._specs()}
        stream.synchronize()
        return fetched

    def close(self) -> None:
        """Gives the GPU's memory back."""
        if self._session.attached is self:
            self._session.attached = None
        for buffer in self._buffers.values():
            buffer.close()
        for output in self._outputs.values():
            output.close()

    def __del__(self) -> None:
        # Binding anew drops the bound before: its memory is the GPU's, and no collector's.
        self.close()

    def _specs(self) -> Any:
        return self._session.signature.outputs

    def _attach(self) -> None:
        """Gives the context these shapes and this memory, where it has another bound's."""
        session = self._session
        if session.context is None:
            raise ValueError("the session is closed")
        session.use_device()
        if session.attached is self:
            return
        session.attached = None
        self._choose_profile()
        for name in session.tensors("INPUT"):
            self._place_input(name)
        missing = session.context.infer_shapes()
        if missing:
            raise CellError(f"TensorRT does not know the shapes of {', '.join(missing)}")
        for name in session.tensors("OUTPUT"):
            self._place_output(name)
        session.attached = self

    def _enqueue(self) -> None:
        if not self._session.context.execute_async_v3(int(self._session.stream)):
            raise CellError(f"TensorRT failed to run the engine{self._session.last_words}")

    def _choose_profile(self) -> None:
        """Takes the first optimization profile that holds all the shapes."""
        native, context = self._session.native, self._session.context
        dynamic = [n for n in self._session.tensors("INPUT") if -1 in native.get_tensor_shape(n)]
        if not dynamic:
            return
        for index in range(native.num_optimization_profiles):
            if all(self._fits(name, index) for name in dynamic):
                if not context.set_optimization_profile_async(index, int(self._session.stream)):
                    raise CellError(f"TensorRT did not take its optimization profile {index}")
                return
        shapes = ", ".join(f"{name} {list(self._feeds[name].shape)}" for name in dynamic)
        raise InputError(
            f"no optimization profile of the engine holds these shapes: {shapes}",
            fix="widen the recipe's `dims`, or the target's `profiles`, and build again",
        )

    def _fits(self, name: str, profile: int) -> bool:
        least, _, greatest = self._session.native.get_tensor_profile_shape(name, profile)
        shape = self._feeds[name].shape
        return all(a <= b <= c for a, b, c in zip(least, shape, greatest, strict=True))

    def _place_input(self, name: str) -> None:
        context, array = self._session.context, self._feeds[name]
        if not context.set_input_shape(name, tuple(array.shape)):
            raise InputError(f"the engine does not take {list(array.shape)} for `{name}`")
        # What the CPU reads while shapes are inferred stays where it is.
        address = self._buffers[name].address if name in self._buffers else array.ctypes.data
        if not context.set_tensor_address(name, address):
            raise CellError(f"TensorRT did not take the memory of `{name}`")

    def _place_output(self, name: str) -> None:
        session = self._session
        if name not in self._outputs:
            dtype = next(spec.dtype for spec in self._specs() if spec.name == name)
            self._outputs[name] = _Output(session.trt, dtype, on_host=session.on_host(name))
        output = self._outputs[name]
        shape = tuple(session.context.get_tensor_shape(name))
        if -1 in shape:  # known only when the run is done
            if not session.context.set_output_allocator(name, output.allocator):
                raise CellError(f"TensorRT did not take the allocator of `{name}`")
        elif not session.context.set_tensor_address(name, output.of_shape(shape)):
            raise CellError(f"TensorRT did not take the memory of `{name}`")


class _Output:
    """An output's memory and shape; the shape may come with the run."""

    def __init__(self, trt: ModuleType, dtype: str, *, on_host: bool) -> None:
        import numpy as np

        self._dtype = np.dtype(dtype)
        self._shape: tuple[int, ...] = ()
        self._buffer = HostBuffer() if on_host else DeviceBuffer()
        self.allocator: Any = self._new_allocator(trt)

    def of_shape(self, shape: tuple[int, ...]) -> int:
        """Makes room for `shape` and returns the address."""
        import math

        self._shape = shape
        return self._buffer.reserve(math.prod(shape) * self._dtype.itemsize)

    def fetch(self, stream: Stream) -> NDArray[np.generic]:
        """An array that holds the output when the stream is done."""
        import numpy as np

        array: NDArray[np.generic] = np.empty(self._shape, self._dtype)
        self._buffer.read(array, stream)
        return array

    def close(self) -> None:
        """Gives the memory back."""
        self._buffer.close()

    def _new_allocator(self, trt: ModuleType) -> Any:
        output = self

        class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IOutputAllocator.__init__(self)

            def reallocate_output_async(
                self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
            ) -> int:
                # cudaMalloc aligns to 256 bytes, as much as TensorRT ever asks for.
                return output._buffer.reserve(size)

            def notify_shape(self, tensor_name: str, shape: Any) -> None:
                output._shape = tuple(shape)

        return Allocator()
