"""The time of each layer of a plan, as TensorRT's own profiler reports it.

API: NVIDIA TensorRT, Python API reference, `tensorrt.IProfiler`, `IExecutionContext.profiler`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError
from optimc.targets.tensorrt_layers import timed_layers

if TYPE_CHECKING:
    from types import ModuleType

    from optimc.core.targets import Arrays, TimedLayer
    from optimc.targets.tensorrt_session import TensorRTSession


def profiled(
    session: TensorRTSession, feeds: Arrays, warmup: int, runs: int
) -> tuple[TimedLayer, ...]:
    """See `Session.profile`; the session's context reports to the profiler from then on."""
    times: dict[str, list[float]] = {}
    session.context.profiler = profiler = _new_profiler(session.trt)
    bound = session.bind(feeds)
    for number in range(warmup + runs):
        profiler.spent.clear()
        bound.run()
        if number >= warmup:
            for name, ms in profiler.spent.items():
                times.setdefault(name, []).append(ms)
    if not times:
        raise CellError("TensorRT's profiler reported no layer")
    return timed_layers(session.information(), times)


def _new_profiler(trt: ModuleType) -> Any:
    """A `tensorrt.IProfiler`; `spent` holds the milliseconds of each layer of one run."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.spent: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            # Layers of one name, as in a loop, are one line.
            self.spent[layer_name] = self.spent.get(layer_name, 0.0) + ms

    return Profiler()
