"""What the recipe says of a model's inputs, outputs and dims, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from optimc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from optimc.calibration.dataset import Dataset
    from optimc.core.model import Signature, TensorSpec
    from optimc.pipeline.recipe.schema import DimRange, Recipe

DEFAULT_BATCH_MAX = 8


def declared_signature(recipe: Recipe, signature: Signature) -> Signature:
    """The file's signature with the recipe's shapes, and without the outputs that it drops.

    Raises InputError where the recipe contradicts the file.
    """
    from optimc.core.model import Signature, TensorSpec

    check_signature(recipe, signature, dims=False)
    shapes = {name: spec.shape for name, spec in recipe.inputs.items() if spec.shape is not None}
    inputs = tuple(
        TensorSpec(spec.name, spec.dtype, shapes.get(spec.name, spec.shape))
        for spec in signature.inputs
    )
    return Signature(inputs, kept_outputs(recipe, signature))


def check_signature(recipe: Recipe, signature: Signature, *, dims: bool = True) -> None:
    """Raises InputError where the recipe names inputs or dims that the model lacks."""
    inputs = {spec.name: spec for spec in signature.inputs}
    for name, declared in recipe.inputs.items():
        if name not in inputs:
            raise unknown_name("input", name, inputs, where=recipe.where("inputs", name))
        _check_input(recipe.where("inputs", name), inputs[name], declared.dtype, declared.shape)
        integer = inputs[name].dtype.startswith(("int", "uint"))
        if (declared.range and integer) or (declared.values and not integer):
            right = "values" if integer else "range"
            raise InputError(
                f"the input is {inputs[name].dtype}",
                where=recipe.where("inputs", name),
                fix=f"declare `{right}: [least, greatest]` for it",
            )
    for name in recipe.dims if dims else ():
        if name not in signature.symbols:
            raise unknown_name("dim", name, signature.symbols, where=recipe.where("dims", name))


def _check_input(
    where: str, spec: TensorSpec, dtype: str | None, shape: tuple[int | str, ...] | None
) -> None:
    fix = "leave it out: it is read from the model"
    if dtype is not None and dtype != spec.dtype:
        raise InputError(
            f"the model says of input `{spec.name}` dtype {spec.dtype}, the recipe {dtype}",
            where=where,
            fix=fix,
        )
    if shape is None or spec.shape is None:
        return
    clash = len(shape) != len(spec.shape) or any(
        isinstance(have, int) and have != want
        for have, want in zip(spec.shape, shape, strict=False)
    )
    if clash:
        raise InputError(
            f"input `{spec.name}` has shape {list(spec.shape)} in the model, here {list(shape)}",
            where=where,
            fix=fix,
        )


def resolved_dims(
    recipe: Recipe, signature: Signature, data: Mapping[str, Dataset]
) -> dict[str, DimRange]:
    """The range of every symbolic dim: the recipe's, or a default for what counts samples.

    Dims of the inputs' first axis are 1 to `DEFAULT_BATCH_MAX` where the recipe is silent; others
    take the sizes that the data have. Raises InputError where neither tells.
    """
    from optimc.pipeline.recipe.schema import DimRange

    dims: dict[str, DimRange] = {}
    for symbol in signature.symbols:
        if symbol in recipe.dims:
            dims[symbol] = recipe.dims[symbol]
        elif any(spec.shape and spec.shape[0] == symbol for spec in signature.inputs):
            dims[symbol] = DimRange(min=1, typical=1, max=DEFAULT_BATCH_MAX)
        else:
            sizes = _sizes_in_data(symbol, signature, data)
            if not sizes:
                raise InputError(
                    f"the size of the dim `{symbol}` is not known",
                    where=recipe.where("dims"),
                    fix=f"declare it: dims: {{{symbol}: {{min: 1, typical: 64, max: 128}}}}",
                )
            dims[symbol] = DimRange(min=min(sizes), typical=sizes[0], max=max(sizes))
    return dims


def kept_outputs(recipe: Recipe, signature: Signature) -> tuple[TensorSpec, ...]:
    """The file's outputs without those that the recipe drops, under the names it gives.

    Raises InputError where the recipe names an output that the model lacks, drops all, or gives a
    name twice.
    """
    outputs = [spec.name for spec in signature.outputs]
    for name in recipe.outputs:
        if name not in outputs:
            raise unknown_name("output", name, outputs, where=recipe.where("outputs", name))
    kept = [spec for spec in signature.outputs if recipe.outputs.get(spec.name) != "drop"]
    if not kept:
        raise InputError(
            "every output is dropped", where=recipe.where("outputs"), fix="keep one at least"
        )
    taken = {spec.name: f"the input `{spec.name}`" for spec in signature.inputs}
    renamed = []
    for spec in kept:
        name = output_name(recipe, spec.name)
        if name in taken:
            raise InputError(
                f"the output `{spec.name}` gets the name of {taken[name]}",
                where=recipe.where("outputs", spec.name, "rename"),
                fix="choose a name that is free",
            )
        taken[name] = f"the output `{spec.name}`"
        renamed.append(replace(spec, name=name))
    return tuple(renamed)


def output_name(recipe: Recipe, name: str) -> str:
    """What the file's output `name` is called from here on."""
    option = recipe.outputs.get(name)
    return name if option is None or option == "drop" else option.rename or name


def check_cases(recipe: Recipe, dims: Mapping[str, DimRange]) -> None:
    """Raises InputError where a benchmark case names no dim of the model, or a size outside."""
    cases = recipe.benchmark.cases
    for index, case in enumerate(() if cases == "data" else cases):
        for name, size in case.items():
            where = recipe.where("benchmark", "cases", index, name)
            if name not in dims:
                raise unknown_name("dim", name, dims, where=where)
            dim = dims[name]
            if not dim.min <= size <= dim.max or size % dim.multiple_of:
                step = f" in steps of {dim.multiple_of}" if dim.multiple_of > 1 else ""
                raise InputError(
                    f"the case has {name}: {size}, outside of {dim.min} to {dim.max}{step}",
                    where=where,
                    fix=f"choose a size inside, or declare dims.{name} wider",
                )


def _sizes_in_data(symbol: str, signature: Signature, data: Mapping[str, Dataset]) -> list[int]:
    """The sizes that the data have for a dim, that of the most frequent shape first."""
    shapes = {spec.name: spec.shape[1:] for spec in signature.inputs if spec.shape}
    return [
        size
        for dataset in data.values()
        for specs in dataset.all_sample_specs()
        for name, dims in shapes.items()
        if name in specs
        for dim, size in zip(dims, specs[name].shape or (), strict=False)
        if dim == symbol and isinstance(size, int)
    ]
