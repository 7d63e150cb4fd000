"""Brings an onnx_ir model into the form that the compiler works on. Imports onnx_ir at the top."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from optimc.core.errors import InputError, unknown_name
from optimc.core.model import SOURCE_KEY
from optimc.core.onnx_names import make_names_unique
from optimc.core.onnx_signature import all_graphs, all_values
from optimc.frontends.onnx_files import all_tensors, parse

NameDim = Callable[[int | str | None, str, int], int | str]

_MIN_IR_VERSION = 4
"""From here on initializers need not be inputs."""


def read(path: Path) -> ir.Model:
    """The model at `path`, which was examined before; external data is mapped when it is used."""
    proto = parse(path)
    for _, tensor in all_tensors(proto):
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, str(path.parent))
    return model


def strip_metadata(model: ir.Model) -> None:
    """Removes doc strings and metadata: exporters leave stack traces with absolute paths there."""
    common.ClearMetadataAndDocStringPass()(model)
    model.producer_name = None
    model.producer_version = None
    model.domain = None
    model.doc_string = None
    model.metadata_props.clear()
    for graph in all_graphs(model):
        graph.doc_string = None
        graph.metadata_props.clear()
    for value in all_values(model):
        value.doc_string = None
        value.metadata_props.clear()


def inline_functions(model: ir.Model) -> bool:
    """Puts the bodies of the model's functions where they are called; True where there were any."""
    if not model.functions:
        return False
    common.InlinePass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    return True


def initializers_off_inputs(model: ir.Model) -> int:
    """Takes initializers off the lists of inputs (files of IR version 3); how many there were."""
    count = 0
    for graph in all_graphs(model):
        listed = [value for value in graph.inputs if value.is_initializer()]
        for value in listed:
            graph.inputs.remove(value)
        count += len(listed)
    return count


def forget_inner_shapes(model: ir.Model) -> None:
    """Drops the shapes that the file gives for inner values; passes infer them anew."""
    kept = {*model.graph.inputs, *model.graph.outputs}
    for value in all_values(model):
        if value not in kept and value.const_value is None:
            value.shape = None


def set_types(
    model: ir.Model, types: Mapping[str, tuple[str, Sequence[int | str | None] | None]]
) -> None:
    """Gives values without a type the dtype, and the dims where they are known, in `types`."""
    for value in all_values(model):
        known = types.get(value.name or "")
        if value.type is None and known is not None:
            dtype, dims = known
            value.dtype = ir.DataType[dtype]
            value.shape = None if dims is None else ir.Shape(dims)


def name_dims(
    model: ir.Model, output_dims: Mapping[str, Sequence[int | str | None]], name_dim: NameDim
) -> None:
    """Gives unnamed dims of inputs and outputs their names, and unknown dims of others none."""
    interface = {*model.graph.inputs, *model.graph.outputs}
    for value in model.graph.outputs:
        if value.shape is None and (dims := output_dims.get(value.name or "")) is not None:
            value.shape = ir.Shape(dims)
    for value in all_values(model):
        if value.shape is None or value.const_value is not None:
            continue
        named: list[int | str | None] = [
            name_dim(_plain(dim), value.name or "", axis) for axis, dim in enumerate(value.shape)
        ]
        if value not in interface:
            # An inner dim that nobody knows stays unknown: a name would promise equality.
            named = [
                new if new == _plain(old) else None
                for new, old in zip(named, value.shape, strict=True)
            ]
        value.shape = ir.Shape(named)


def _plain(dim: int | ir.SymbolicDim) -> int | str | None:
    return dim if isinstance(dim, int) else dim.value


def declare_shapes(
    model: ir.Model, declared: Mapping[str, Sequence[int | str]], path: Path
) -> None:
    """Lays the recipe's shapes over the inputs: renames dynamic dims, or fixes them, everywhere."""
    inputs = {value.name or "": value for value in model.graph.inputs}
    renamed: dict[str, int | str] = {}
    for name, dims in declared.items():
        if name not in inputs:
            raise unknown_name("input", name, inputs, where=str(path))
        value = inputs[name]
        if value.shape is None:
            value.shape = ir.Shape(dims)
            continue
        old = [_plain(dim) for dim in value.shape]
        if len(old) != len(dims):
            raise _declaration_refused(name, old, dims, "another rank", path)
        for was, now in zip(old, dims, strict=True):
            if isinstance(was, int) and was != now:
                raise _declaration_refused(name, old, dims, f"{now} for the fixed {was}", path)
            if isinstance(was, str) and renamed.setdefault(was, now) != now:
                raise _declaration_refused(name, old, dims, f"`{was}` was {renamed[was]}", path)
    if any(was != now for was, now in renamed.items()):
        _rename_dims(model, renamed)


def _declaration_refused(
    name: str, old: Sequence[object], new: Sequence[object], why: str, path: Path
) -> InputError:
    return InputError(
        f"the input `{name}` has the shape {_shown(old)} in the model, "
        f"the recipe declares {_shown(new)} ({why})",
        where=str(path),
        fix=f"inputs: {{{name}: {{shape: {_shown(old)}}}}}",
    )


def _shown(dims: Sequence[object]) -> str:
    return f"[{', '.join(str(dim) for dim in dims)}]"


def _rename_dims(model: ir.Model, renamed: Mapping[str, int | str]) -> None:
    for value in all_values(model):
        if value.shape is None or value.const_value is not None:
            continue
        old = [_plain(dim) for dim in value.shape]
        new = [renamed.get(dim, dim) if isinstance(dim, str) else dim for dim in old]
        if new != old:
            value.shape = ir.Shape(new)


def finish(model: ir.Model) -> None:
    """Unique names, the IR version that the opsets need, and every value's source name: its own."""
    make_names_unique(model)
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
    needed = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    model.ir_version = max(model.ir_version, needed, _MIN_IR_VERSION)
    for value in all_values(model):
        if value.name:
            value.meta[SOURCE_KEY] = value.name
