"""Optimization profiles: of a target's options, the shapes of each dynamic input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from optimc.core.errors import CellError, InputError, unknown_name

if TYPE_CHECKING:
    from optimc.core.model import Signature, TensorSpec
    from optimc.core.targets import DimSizes
    from optimc.targets.tensorrt_build import Shapes

OPTION = "profiles"
Profile = Mapping[str, tuple[int, int, int]]
"""Of each dim its least, usual and greatest size."""


def check_order(profiles: Sequence[Profile]) -> None:
    """Raises ValueError where sizes are negative or not in order."""
    for profile in profiles:
        for name, (least, usual, greatest) in profile.items():
            if not 0 <= least <= usual <= greatest:
                raise ValueError(
                    f"`{name}` has the sizes {least}, {usual}, {greatest}\n"
                    "say its least, usual and greatest size, in this order"
                )


def check_profiles(
    profiles: Sequence[Profile], signature: Signature, dims: Mapping[str, DimSizes]
) -> None:
    """Raises InputError for a dim that the inputs do not have, and where no profile holds sizes
    that the engine is verified at: it would refuse them on the GPU, after the build."""
    symbols = signature.symbols
    for profile in profiles:
        for name in profile:
            if name not in symbols:
                raise unknown_name("dim", name, symbols, where=OPTION)
    for sizes in _corners(symbols, dims) if profiles else ():
        if not any(_holds(profile, sizes) for profile in profiles):
            shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise InputError(
                f"no profile holds {shown}, which the recipe's `dims` ask for",
                where=OPTION,
                fix="widen a profile, or narrow `dims`",
            )


def _corners(symbols: Sequence[str], dims: Mapping[str, DimSizes]) -> Iterator[dict[str, int]]:
    """What engines are probed at: usual, least and greatest sizes, and one greatest at a time."""
    known = {name: dims[name] for name in symbols if name in dims}
    least = {name: dim.min for name, dim in known.items()}
    yield {name: dim.typical for name, dim in known.items()}
    yield least
    yield {name: dim.max for name, dim in known.items()}
    for name, dim in known.items():
        yield {**least, name: dim.max}


def _holds(profile: Profile, sizes: Mapping[str, int]) -> bool:
    return all(
        profile[name][0] <= size <= profile[name][2]
        for name, size in sizes.items()
        if name in profile
    )


def profile_shapes(
    profiles: Sequence[Profile], inputs: Sequence[TensorSpec], dims: Mapping[str, DimSizes]
) -> list[Shapes]:
    """The shapes of each dynamic input, by profile; without profiles one, of `dims`.

    Raises CellError where the size of a dim is not known.
    """
    known = {name: (sizes.min, sizes.typical, sizes.max) for name, sizes in dims.items()}
    return [
        {
            spec.name: _shapes(spec, {**known, **profile})
            for spec in inputs
            if spec.shape and any(isinstance(dim, str) for dim in spec.shape)
        }
        for profile in profiles or [{}]
    ]


def _shapes(
    spec: TensorSpec, sizes: Profile
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The least, usual and greatest shape of one input."""
    assert spec.shape is not None
    unknown = [dim for dim in spec.shape if isinstance(dim, str) and dim not in sizes]
    if unknown:
        raise CellError(
            f"TensorRT needs the sizes of the dims {', '.join(unknown)} of `{spec.name}`",
            fix="say them under `dims` in the recipe, or in this target's `profiles`",
        )
    picked = [sizes[dim] if isinstance(dim, str) else (dim, dim, dim) for dim in spec.shape]
    least, usual, greatest = (tuple(triple[i] for triple in picked) for i in range(3))
    return least, usual, greatest
