"""What a device's own clock says of an inference, where a runtime offers it: copies apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError
from optimc.core.registry import target_class
from optimc.targets.client import EngineWorker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.core.targets import Engine
    from optimc.core.worker import Limits

_RUNS = 50


def device_times_note(
    name: str, engine: Engine, limits: Limits, feeds: Mapping[str, NDArray[Any]]
) -> str | None:
    """One line for the report: the medians of copies and computing, and the clocks meanwhile.

    None where the engine's runtime has no clock of its own.
    """
    if not target_class(engine.runtime).times_on_device:
        return None
    try:
        with EngineWorker(engine, name=f"the engine {name}", limits=limits) as worker:
            worker.bind(feeds)
            found = worker.device_times(_RUNS)
    except CellError as error:
        return f"{name}: the device's own times were not measured: {error.what}"
    clocks = found["clocks"]
    if isinstance(clocks, Mapping):
        clocks = ", ".join(f"{which} {mhz} MHz" for which, mhz in clocks.items())
    return (
        f"{name}, by the device's events, medians of {_RUNS}: copy in {found['copy_in_ms']:.4f} ms,"
        f" compute {found['compute_ms']:.4f} ms, copy out {found['copy_out_ms']:.4f} ms;"
        f" clocks: {clocks}"
    )
