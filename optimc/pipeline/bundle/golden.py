"""Golden inputs and outputs: seeded feeds, and what this engine gives for them on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.worker import Limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.core.model import TensorSpec
    from optimc.pipeline.bundle.delivery import Delivery
    from optimc.pipeline.recipe.schema import InputSpec

MAX_ELEMENTS = 16 * 1024 * 1024
"""Elements of a golden set's inputs; a larger one is left out."""


@dataclass(frozen=True, eq=False)
class Golden:
    """One set: the sizes of the dims, the inputs and the outputs, by name."""

    label: str
    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]


def make_golden(delivery: Delivery, seed: int = 0) -> list[Golden]:
    """A set at the least, the typical and the greatest sizes of the dims, each once.

    Raises the errors of `optimc.targets.client.EngineWorker`.
    """
    import numpy as np

    from optimc.pipeline.probes import seeded_array
    from optimc.targets.client import EngineWorker

    rng = np.random.default_rng(seed)
    found: list[Golden] = []
    wanted = {_label(sizes): sizes for sizes in map(delivery.sizes, ("typical", "min", "max"))}
    name = f"the engine {delivery.cell.name}"
    with EngineWorker(delivery.engine, name=name, limits=Limits()) as worker:
        for label, sizes in wanted.items():
            feeds = {
                spec.name: seeded_array(spec, _declared(spec, delivery), sizes, rng)
                for spec in delivery.engine.signature.inputs
            }
            if not found or sum(array.size for array in feeds.values()) <= MAX_ELEMENTS:
                found.append(Golden(label, feeds, dict(worker.run(feeds))))
    return found


def _label(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{name}={size}" for name, size in sizes.items()) or "fixed shapes"


def _declared(spec: TensorSpec, delivery: Delivery) -> InputSpec | None:
    """What the recipe said of the values, where the engine still takes the source's dtype."""
    from optimc.pipeline.recipe.schema import InputSpec

    known = delivery.inputs.get(spec.name)
    if known is None or known.values is None:
        return None
    if known.dtype != spec.dtype and not ("float" in known.dtype and "float" in spec.dtype):
        return None
    if "float" in spec.dtype:
        return InputSpec(range=known.values)
    return InputSpec(values=(int(known.values[0]), int(known.values[1])))


def write_golden(golden: list[Golden], folder: Path) -> None:
    """One ``.npz`` a set: ``input:NAME`` and ``output:NAME`` arrays."""
    import numpy as np

    folder.mkdir(parents=True)
    for index, one in enumerate(golden):
        arrays = {f"input:{name}": array for name, array in one.inputs.items()}
        arrays |= {f"output:{name}": array for name, array in one.outputs.items()}
        np.savez(folder / f"{index}.npz", **arrays)  # type: ignore[arg-type]
