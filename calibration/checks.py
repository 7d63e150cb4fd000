"""What must hold of data before any work starts: it fits the model, and splits do not overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from optimc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from optimc.calibration.dataset import Dataset
    from optimc.core.model import Signature, TensorSpec

_SHOWN = 5

DimBounds: TypeAlias = tuple[int, int] | tuple[int, int, int]
"""Least and greatest size of a dim, and what every size is a multiple of."""


def check_against(
    dataset: Dataset, signature: Signature, dims: Mapping[str, DimBounds] | None = None
) -> None:
    """Raises InputError unless the data, in every shape they have, can feed such a model.

    `dims` gives the least and the greatest size of each symbolic dim and what it is a multiple of;
    axis 0 of every input counts the samples of a batch and is left out.
    """
    for specs in dataset.all_sample_specs():
        _check_specs(dataset, specs, signature, dims or {})


def _check_specs(
    dataset: Dataset,
    specs: Mapping[str, TensorSpec],
    signature: Signature,
    dims: Mapping[str, DimBounds],
) -> None:
    wanted = {spec.name: spec for spec in signature.inputs}
    for name in specs:
        if name not in wanted:
            raise unknown_name("input", name, wanted, where=dataset.where)
    sizes: dict[str, tuple[int, str]] = {}
    for name, spec in wanted.items():
        if name not in specs:
            raise InputError(
                f"feeds nothing to the model's input `{spec}`",
                where=dataset.where,
                fix=f"name its array: inputs: {{{name}: <array>}}",
            )
        _check_input(dataset, specs[name], spec, dims, sizes)


def _check_input(
    dataset: Dataset,
    got: TensorSpec,
    spec: TensorSpec,
    dims: Mapping[str, DimBounds],
    sizes: dict[str, tuple[int, str]],
) -> None:
    where = dataset.where
    if got.dtype != spec.dtype:
        raise InputError(
            f"the model's input `{spec}` gets {got.dtype}",
            where=where,
            fix=dataset.dtype_fix
            or f"add `cast: {spec.dtype}` to its transform, or the steps that are missing",
        )
    if spec.shape is None:
        return
    if not spec.shape:
        raise InputError(
            f"the model's input `{spec}` is one number and has no axis for samples", where=where
        )
    sample = got.shape or ()
    fits = len(sample) == len(spec.shape) - 1
    if not fits or any(
        isinstance(dim, int) and dim != size
        for dim, size in zip(spec.shape[1:], sample, strict=True)
    ):
        text = ", ".join(map(str, sample))
        raise InputError(
            f"the model's input `{spec}` gets samples of shape [{text}]",
            where=where,
            fix=dataset.shape_fix,
        )
    for dim, size in zip(spec.shape[1:], sample, strict=True):
        if isinstance(dim, str):
            _check_symbol(where, dim, size, spec.name, dims, sizes)


def _check_symbol(
    where: str,
    dim: str,
    size: int | str,
    name: str,
    dims: Mapping[str, DimBounds],
    sizes: dict[str, tuple[int, str]],
) -> None:
    assert isinstance(size, int)
    known, other = sizes.setdefault(dim, (size, name))
    if known != size:
        raise InputError(
            f"the dim `{dim}` is {known} in the input `{other}` and {size} in `{name}`", where=where
        )
    low, high, *step = dims.get(dim, (size, size))
    if not low <= size <= high:
        raise InputError(
            f"the dim `{dim}` of the input `{name}` is {size}, outside of {low} to {high}",
            where=where,
            fix=f"change `dims.{dim}` in the recipe, or take other data",
        )
    if step and size % step[0]:
        raise InputError(
            f"the dim `{dim}` of the input `{name}` is {size}, which is no multiple of {step[0]}",
            where=where,
            fix=f"pad the data to multiples of {step[0]}, or change `dims.{dim}.multiple_of`",
        )


def check_disjoint(datasets: Mapping[str, Dataset], allow_overlap: bool = False) -> None:
    """Raises InputError where a whole sample stands in two splits.

    `datasets` is by the name of the split. Reads all samples; costs one digest for each.
    """
    if allow_overlap or len(datasets) < 2:
        return
    seen: list[tuple[str, dict[bytes, int]]] = []
    for split, dataset in datasets.items():
        first: dict[bytes, int] = {}
        for index, digest in enumerate(dataset.sample_digests()):
            first.setdefault(digest, index)
        for other, known in seen:
            common = sorted(
                (known[digest], index) for digest, index in first.items() if digest in known
            )
            if common:
                raise _overlap(other, split, common, datasets)
        seen.append((split, first))


def _overlap(
    one: str, two: str, common: list[tuple[int, int]], datasets: Mapping[str, Dataset]
) -> InputError:
    left, right = datasets[one], datasets[two]
    shown = ", ".join(f"{left.name_of(a)} = {right.name_of(b)}" for a, b in common[:_SHOWN])
    more = ", ..." if len(common) > _SHOWN else ""
    samples = "sample stands" if len(common) == 1 else "samples stand"
    return InputError(
        f"{len(common)} {samples} in both `data.{one}` and `data.{two}` ({shown}{more})",
        where=f"{left.where} and {right.where}",
        fix="remove them from one of the two, or say `allow_overlap: true` under `data`",
    )


def fixed_batch(signature: Signature) -> int | None:
    """The number of samples that every feed must have, None where axis 0 is free.

    1 where the inputs do not share one free axis 0, because then samples cannot be joined.
    """
    firsts = {spec.shape[0] for spec in signature.inputs if spec.shape}
    if len(firsts) != 1 or any(not spec.shape for spec in signature.inputs):
        return 1
    (first,) = firsts
    return first if isinstance(first, int) else None
