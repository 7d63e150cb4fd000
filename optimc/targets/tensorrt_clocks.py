"""The clocks of an NVIDIA GPU at the moment, by NVML: times mean little without them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from optimc.core.errors import CellError
from optimc.targets.tensorrt_cuda import call

_BUS_ID_LENGTH = 32


def clocks_mhz(device: int) -> dict[str, int] | str:
    """`sm` and `memory` in MHz of CUDA's device `device`, or why they are not known.

    NVML numbers GPUs in another order than CUDA: the PCI bus tells which one it is.
    """
    try:
        pynvml: Any = import_module("pynvml")
    except ImportError:
        return "nvidia-ml-py is not installed"
    try:
        bus = bytes(call("cudaDeviceGetPCIBusId", _BUS_ID_LENGTH, device)).split(b"\0")[0]
        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(bus)
            kinds = {"sm": pynvml.NVML_CLOCK_SM, "memory": pynvml.NVML_CLOCK_MEM}
            return {
                name: int(pynvml.nvmlDeviceGetClockInfo(handle, kind))
                for name, kind in kinds.items()
            }
        finally:
            pynvml.nvmlShutdown()
    except (CellError, pynvml.NVMLError) as error:
        return f"NVML does not say: {error}"
