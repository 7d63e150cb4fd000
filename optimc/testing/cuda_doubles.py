"""The CUDA runtime over host memory: every name checked against the real bindings, bytes moved.

The real module (`cuda.bindings.runtime`) imports without a driver, and its functions then return an
error. Here they work on the host's memory, so that code which copies to a device and back can be
seen to move the right bytes; memory that is used after it was freed, or out of its bounds, fails.
"""

from __future__ import annotations

import ctypes
import re
from types import ModuleType
from typing import Any

_MEMORY = 1 << 40
"""Bytes that the device on paper has."""


class CudaError(AssertionError):
    """A use that CUDA does not have, or that would have broken memory."""


class HostCuda(ModuleType):
    """What stands for ``cuda.bindings.runtime``."""

    def __init__(self, real: ModuleType) -> None:
        super().__init__("cuda.bindings.runtime")
        self._real = real
        self._memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self._handles = 0
        self.used: list[str] = []
        self.refused: dict[str, str] = {}
        """From a function to the `cudaError_t` that it answers with."""

    @property
    def leaked(self) -> int:
        """Allocations that nobody gave back."""
        return len(self._memory)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        real = getattr(self._real, name, None)
        if real is None:
            raise CudaError(f"the CUDA runtime has no {name}")
        if not name.startswith("cuda") or not callable(real) or isinstance(real, type):
            return real
        return lambda *args: self._call(name, real, args)

    def _call(self, name: str, real: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        shown = re.match(rf"{name}\((.*?)\)", (real.__doc__ or "").strip())
        if shown is None:
            raise CudaError(f"{name} has no signature to check against")
        count = len([part for part in shown[1].split(",") if part.strip()])
        if count != len(args):
            raise CudaError(f"{name} takes {count} arguments, not {len(args)}: ({shown[1]})")
        self.used.append(name)
        refused = self.refused.get(name)
        if name == "cudaMalloc" and args[0] > _MEMORY:
            refused = "cudaErrorMemoryAllocation"
        if refused is not None:
            return (getattr(self._real.cudaError_t, refused), None)
        result = getattr(self, f"_do_{name[4:].lower()}", self._nothing)(*args)
        return (self._real.cudaError_t.cudaSuccess, *result)

    def _nothing(self, *args: Any) -> tuple[Any, ...]:
        return ()

    def _do_getdevicecount(self) -> tuple[int]:
        return (1,)

    def _do_getdeviceproperties(self, device: int) -> tuple[Any]:
        properties = self._real.cudaDeviceProp()
        properties.name = b"GPU on paper".ljust(256, b"\0")
        properties.major, properties.minor = 9, 0
        return (properties,)

    def _do_geterrorstring(self, error: Any) -> tuple[bytes]:
        return (f"this is {self._real.cudaError_t(error).name}".encode(),)

    def _do_devicegetpcibusid(self, length: int, device: int) -> tuple[bytes]:
        return (b"0000:01:00.0".ljust(length, b"\0"),)

    def _do_drivergetversion(self) -> tuple[int]:
        return (13000,)

    def _do_malloc(self, size: int) -> tuple[int]:
        block = ctypes.create_string_buffer(size)
        self._memory[ctypes.addressof(block)] = block
        return (ctypes.addressof(block),)

    def _do_free(self, address: int) -> tuple[()]:
        if address not in self._memory:
            raise CudaError("memory was freed that is not there")
        del self._memory[address]
        return ()

    def _do_memcpyasync(self, to: int, source: int, size: int, kind: Any, stream: Any) -> tuple[()]:
        kinds = self._real.cudaMemcpyKind
        device = to if kind == kinds.cudaMemcpyHostToDevice else source
        if device not in self._memory or size > len(self._memory[device]):
            raise CudaError(f"a copy of {size} bytes leaves the memory it was given")
        ctypes.memmove(to, source, size)
        return ()

    def _handle(self) -> tuple[int]:
        self._handles += 1
        return (self._handles,)

    def _do_streamcreate(self) -> tuple[int]:
        return self._handle()

    def _do_eventcreate(self) -> tuple[int]:
        return self._handle()

    def _do_eventelapsedtime(self, start: int, end: int) -> tuple[float]:
        return (0.25 * (end - start),)
