"""Inputs for engines that are measured without a recipe: from an archive, or seeded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.core.model import Signature, TensorSpec
    from optimc.pipeline.recipe.schema import InputSpec
    from optimc.report.schema import InputReport

    Feeds = dict[str, NDArray[Any]]


def read_feeds(path: Path) -> Feeds:
    """The arrays of an npz archive by name. Raises InputError where it is none."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it is no npz archive"
        raise InputError(
            f"the inputs cannot be read: {reason}",
            where=str(path),
            fix="write them with numpy.savez, an array for each input, named as the input is",
        ) from error
    except Exception as error:  # zipfile.BadZipFile and zlib.error have no common base
        raise InputError(f"the inputs cannot be read: {error}", where=str(path)) from error


def seeded_feeds(
    signature: Signature,
    sizes: Mapping[str, int],
    declared: Mapping[str, InputReport] | None = None,
    seed: int = 0,
) -> Feeds:
    """Seeded inputs; dims that `sizes` does not name are 1.

    Raises InputError for sizes of dims that the model does not have.
    """
    import numpy as np

    from optimc.pipeline.probes import seeded_array

    for name in sizes:
        if name not in signature.symbols:
            raise unknown_name("dim", name, signature.symbols, where="--case")
    every = {**dict.fromkeys(signature.symbols, 1), **sizes}
    rng = np.random.default_rng(seed)
    return {
        spec.name: seeded_array(spec, _declared(spec, declared or {}), every, rng)
        for spec in signature.inputs
    }


def check_feeds(signature: Signature, feeds: Feeds, where: str) -> Feeds:
    """The inputs of the model out of `feeds`. Raises InputError where one is not there."""
    for spec in signature.inputs:
        if spec.name not in feeds:
            raise unknown_name("input", spec.name, feeds, where=where)
    return {spec.name: feeds[spec.name] for spec in signature.inputs}


def _declared(spec: TensorSpec, declared: Mapping[str, InputReport]) -> InputSpec | None:
    """What a recipe said of the values, where the engine still takes the source's dtype."""
    from optimc.pipeline.recipe.schema import InputSpec

    known = declared.get(spec.name)
    if known is None or known.values is None or known.dtype != spec.dtype:
        return None
    if "float" in spec.dtype:
        return InputSpec(range=known.values)
    return InputSpec(values=(int(known.values[0]), int(known.values[1])))
