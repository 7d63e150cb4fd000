"""Inputs for models without a recipe: from an npz file, or seeded by dtype."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError, unknown_name
from optimc.pipeline.initialize import guessed_dims
from optimc.pipeline.probes import Probe, ProbeSource
from optimc.pipeline.recipe.schema import DimRange

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.core.model import Signature


def seeded_probes(signature: Signature, seed: int) -> tuple[Probe, ...]:
    """Typical, least and no input (zeros), with guessed sizes of the dynamic dims.

    Floats are standard normal, integers 0 or 1. Raises InputError for inputs of unknown rank.
    """
    dims = {
        name: DimRange(min=least, typical=typical, max=most)
        for name, ((least, typical, most), _) in guessed_dims(signature).items()
    }
    return ProbeSource(signature, dims, {}, seed).for_passes("fast")


def probe_of_file(path: Path, signature: Signature) -> Probe:
    """The arrays of an npz file that are called as the inputs are, whole.

    Raises InputError for missing names, other dtypes, ranks or fixed dims, and what is no archive.
    """
    from optimc.calibration.npy_format import npz_arrays

    arrays = npz_arrays(path, None)
    feeds: dict[str, NDArray[Any]] = {}
    for spec in signature.inputs:
        if spec.name not in arrays:
            raise unknown_name("array", spec.name, arrays, where=str(path))
        array = arrays[spec.name].read()
        if str(array.dtype) != spec.dtype and spec.dtype != "string":
            raise InputError(
                f"`{spec.name}` is {array.dtype}, the model takes {spec.dtype}",
                where=str(path),
                fix=f"store it with .astype('{spec.dtype}')",
            )
        if spec.shape is not None and not _fits(array.shape, spec.shape):
            raise InputError(
                f"`{spec.name}` has the shape {list(array.shape)}, the model takes {spec}",
                where=str(path),
                fix="store one whole feed: all dims, the batch too",
            )
        feeds[spec.name] = array
    return Probe(path.name, feeds, real=True)


def _fits(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    return len(shape) == len(wanted) and all(
        isinstance(want, str) or size == want for size, want in zip(shape, wanted, strict=True)
    )
