"""Checks what is fed to an engine against its signature, alike for every runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.core.errors import CellError, InputError, did_you_mean
from optimc.core.lint import Finding

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np
    from numpy.typing import NDArray

    from optimc.core.model import Signature, TensorSpec
    from optimc.core.targets import Arrays

_SIZES = {"float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64)}
NUMBERS = frozenset(f"{k}{size}" for k, sizes in _SIZES.items() for size in sizes) | {"bool"}
"""The types that numpy and the runtimes exchange as they are."""


def checked_feeds(signature: Signature, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
    """Copies of `feeds`, contiguous and in the signature's order.

    A copy, because the caller may change or free its arrays while the engine still reads them, and
    views of messages are not aligned. Raises InputError for missing and unknown names, other
    dtypes, ranks and fixed dims, and for one symbolic dim with two sizes.
    """
    import numpy as np

    known = [spec.name for spec in signature.inputs]
    for name in feeds:
        if name not in known:
            hint = did_you_mean(name, known) or f"the inputs are: {', '.join(known) or 'none'}"
            raise InputError(f"the engine has no input `{name}`", fix=hint)
    sizes: dict[str, tuple[int, str]] = {}
    checked = {}
    for spec in signature.inputs:
        if spec.name not in feeds:
            raise InputError(f"the input `{spec.name}` is missing", fix=f"feed {spec}")
        array = np.array(feeds[spec.name], order="C")
        _check_dtype(spec, array)
        _check_shape(spec, array, sizes)
        checked[spec.name] = array
    return checked


def in_its_types(signature: Signature, feeds: Arrays) -> Arrays:
    """`feeds` with float32 arrays as float16 where the engine takes that.

    A variant whose interface is float16 is fed the same samples as the source. Nothing is checked.
    """
    half = {spec.name for spec in signature.inputs if spec.dtype == "float16"}
    return {
        name: array.astype("float16") if name in half and array.dtype.name == "float32" else array
        for name, array in feeds.items()
    }


def check_exchange(signature: Signature, dtypes: Collection[str], runtime: str) -> None:
    """Raises CellError where an input or output is of a type that cannot be handed over."""
    for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if spec.dtype not in dtypes:
                raise CellError(
                    f"{runtime} cannot hand over the {side} `{spec.name}`: it is {spec.dtype}",
                    fix="cast it to float32 or an integer type inside the model",
                )


def lint_exchange(
    signature: Signature, dtypes: Collection[str], runtime: str
) -> tuple[Finding, ...]:
    """What `check_exchange` refuses, as findings."""
    return tuple(
        Finding(
            spec.name,
            side,
            "exchange",
            "error",
            f"{runtime} cannot hand over {spec.dtype}",
            "cast it to float32 or an integer type inside the model",
        )
        for side, specs in (("input", signature.inputs), ("output", signature.outputs))
        for spec in specs
        if spec.dtype not in dtypes
    )


def _check_dtype(spec: TensorSpec, array: NDArray[np.generic]) -> None:
    given = "string" if array.dtype.kind in "UOST" else array.dtype.name
    if given != spec.dtype:
        raise InputError(
            f"the input `{spec.name}` is {given}, the engine takes {spec.dtype}",
            fix=f"convert it: array.astype({spec.dtype!r})",
        )


def _check_shape(
    spec: TensorSpec, array: NDArray[np.generic], sizes: dict[str, tuple[int, str]]
) -> None:
    if spec.shape is None:
        return
    given = list(array.shape)
    if len(given) != len(spec.shape):
        raise InputError(f"the input `{spec.name}` has the shape {given}, the engine takes {spec}")
    for dim, size in zip(spec.shape, given, strict=True):
        if isinstance(dim, int):
            if size != dim:
                raise InputError(
                    f"the input `{spec.name}` has the shape {given}, the engine takes {spec}"
                )
            continue
        first, where = sizes.setdefault(dim, (size, spec.name))
        if first != size:
            raise InputError(
                f"the dim `{dim}` is {size} in the input `{spec.name}` but {first} in `{where}`"
            )
