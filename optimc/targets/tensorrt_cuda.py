"""Memory, streams and events of one NVIDIA GPU, through the CUDA runtime's Python bindings.

The bindings return their status as the first item of a tuple; `call` turns it into an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def runtime() -> Any:
    """The module of the CUDA runtime's functions."""
    from cuda.bindings import runtime as cudart

    return cudart


def call(function: str, *arguments: Any) -> Any:
    """The results of a function of the CUDA runtime, without the status: none, one or a tuple.

    Raises CellError with CUDA's own words where the status is not success, and MemoryError where
    the GPU's memory does not suffice.
    """
    cudart = runtime()
    status, *results = getattr(cudart, function)(*arguments)
    success = cudart.cudaError_t.cudaSuccess
    if status != success:
        _, text = cudart.cudaGetErrorString(status)
        words = text.decode() if isinstance(text, bytes) else str(text)
        if status == cudart.cudaError_t.cudaErrorMemoryAllocation:
            raise MemoryError(f"the GPU's memory does not suffice: {function}: {words}")
        raise CellError(f"{function} failed: {words}")
    if not results:
        return None
    return results[0] if len(results) == 1 else tuple(results)


def describe_device(number: int) -> dict[str, str]:
    """Name, compute capability and driver of a GPU: kernels are chosen for these."""
    properties = call("cudaGetDeviceProperties", number)
    return {
        "gpu": bytes(properties.name).split(b"\0")[0].decode("utf-8", "replace"),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": str(call("cudaDriverGetVersion")),
    }


class Stream:
    """A stream of its own: work on it runs in order, beside other streams. A context manager."""

    def __init__(self) -> None:
        self.handle: Any = call("cudaStreamCreate")

    def __int__(self) -> int:
        return int(self.handle)

    def synchronize(self) -> None:
        """Waits until everything on the stream is done."""
        call("cudaStreamSynchronize", self.handle)

    def close(self) -> None:
        """Gives the stream back. Once is enough."""
        if self.handle is not None:
            call("cudaStreamDestroy", self.handle)
            self.handle = None


class Event:
    """A point in a stream whose time the GPU itself takes."""

    def __init__(self) -> None:
        self._handle: Any = call("cudaEventCreate")

    def record(self, stream: Stream) -> None:
        """Takes the time when the stream comes to this point."""
        call("cudaEventRecord", self._handle, stream.handle)

    def milliseconds_since(self, start: Event) -> float:
        """The time from `start` to here, both done. The clock's resolution is about 0.5 us."""
        call("cudaEventSynchronize", self._handle)
        return float(call("cudaEventElapsedTime", start._handle, self._handle))

    def close(self) -> None:
        """Gives the event back."""
        if self._handle is not None:
            call("cudaEventDestroy", self._handle)
            self._handle = None


class DeviceBuffer:
    """Memory on the GPU that grows where more is asked for."""

    def __init__(self, size: int = 0) -> None:
        self.address = 0
        self.size = 0
        self.reserve(size)

    def reserve(self, size: int) -> int:
        """Makes room for `size` bytes, at least one, and returns the address. What was in the
        buffer is lost where it has to grow."""
        size = max(size, 1)
        if size > self.size:
            self.close()
            self.address = int(call("cudaMalloc", size))
            self.size = size
        return self.address

    def write(self, array: NDArray[np.generic], stream: Stream) -> None:
        """Copies a contiguous array to the GPU. The array must stay until the stream is done."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        self.reserve(array.nbytes)
        if array.nbytes:
            call(
                "cudaMemcpyAsync",
                self.address,
                array.ctypes.data,
                array.nbytes,
                kind,
                stream.handle,
            )

    def read(self, array: NDArray[np.generic], stream: Stream) -> None:
        """Copies from the GPU into a contiguous array, which is filled when the stream is done."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        if array.nbytes:
            call(
                "cudaMemcpyAsync",
                array.ctypes.data,
                self.address,
                array.nbytes,
                kind,
                stream.handle,
            )

    def close(self) -> None:
        """Gives the memory back."""
        if self.address:
            call("cudaFree", self.address)
            self.address = self.size = 0


class HostBuffer:
    """A `DeviceBuffer` of the host's memory, for what the CPU writes."""

    def __init__(self) -> None:
        self._array: NDArray[np.uint8] | None = None

    def reserve(self, size: int) -> int:
        """As of a `DeviceBuffer`."""
        import numpy as np

        if self._array is None or size > self._array.nbytes:
            self._array = np.zeros(max(size, 1), np.uint8)
        return int(self._array.ctypes.data)

    def read(self, array: NDArray[np.generic], stream: Stream) -> None:
        """Copies at once: the CPU has written when the work was put on the stream."""
        import ctypes

        if self._array is not None:
            ctypes.memmove(array.ctypes.data, self._array.ctypes.data, array.nbytes)

    def close(self) -> None:
        """Gives the memory back."""
        self._array = None
