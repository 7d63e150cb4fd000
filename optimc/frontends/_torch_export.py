"""From a program of torch to an ONNX file with named dims and outputs. For the worker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optimc.core.errors import InputError
from optimc.core.model import EXTERNAL_DATA_THRESHOLD
from optimc.core.onnx_signature import all_values
from optimc.frontends._torch_sources import Shape, Tensors, TorchModel


def export_program(model: TorchModel, feeds: Tensors, shapes: Mapping[str, Shape]) -> Any:
    """The ExportedProgram of `model`, checked to leave every named dim of `shapes` dynamic.

    Raises InputError where torch cannot trace the module, or fixes a dim.
    """
    try:
        program = model.program(feeds, shapes)
    except Exception as error:
        raise InputError(
            f"torch.export cannot trace the model: {_cause(error)}", fix=_remedy(error)
        ) from error
    return program


def symbols_of(program: Any, names: Sequence[str], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """From the program's symbols to the names of dims, or the sizes that the recipe fixes.

    Raises InputError where the program has one size for a dim that has to be dynamic, or one
    symbol for two names.
    """
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    found: dict[str, Any] = {}
    for name, placeholder in zip(names, inputs, strict=True):
        sizes = nodes[placeholder].meta["val"].shape
        for axis, (size, dim) in enumerate(zip(sizes, shapes[name], strict=True)):
            if isinstance(size, int):
                if isinstance(dim, str):
                    raise InputError(
                        f"the model takes `{dim}` (axis {axis} of `{name}`) as {size} only",
                        fix=f"write {size} for `{dim}` in inputs.{name}.shape, or change the model",
                    )
            elif found.setdefault(str(size), dim) != dim:
                raise InputError(
                    f"the model needs `{found[str(size)]}` and `{dim}` to be the same size",
                    fix="give both dims the same name in `inputs`",
                )
    return found


def upper_bounds(program: Any, symbols: Mapping[str, Any]) -> dict[str, int]:
    """By name of a dim: the greatest size that the program takes, where there is one."""
    bounds: dict[str, int] = {}
    for symbol, constraint in program.range_constraints.items():
        dim = symbols.get(str(symbol))
        upper = str(constraint.upper)
        if isinstance(dim, str) and upper.isdigit() and int(upper) < 2**31:
            bounds[dim] = min(bounds.get(dim, 2**62), int(upper))
    return bounds


def write_onnx(
    program: Any,
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    symbols: Mapping[str, Any],
) -> None:
    """Writes the program as ONNX, with these names. Raises InputError where an operator is lacking.

    Weights of more than `EXTERNAL_DATA_THRESHOLD` bytes go into a file beside it.
    """
    import torch

    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None
    except Exception as error:
        raise InputError(
            f"torch.onnx.export cannot express the model: {_cause(error)}",
            fix="replace this operation in the module by ones that ONNX has",
        ) from error
    model = made.model
    model.metadata_props.clear()
    _own_outputs(model)
    _rename(model, inputs, outputs)
    _name_dims(model, symbols)
    total = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    external = f"{path.name}.data" if total > EXTERNAL_DATA_THRESHOLD else None
    ir.save(model, path, external_data=external)


def _own_outputs(model: ir.Model) -> None:
    """Every output becomes a value of its own: programs may return an input, or a value twice."""
    graph = model.graph
    seen: set[ir.Value] = set()
    for index, value in enumerate(list(graph.outputs)):
        if value in seen or value.producer() is None:
            node = ir.node("Identity", [value])
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
        seen.add(value)


def _rename(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    graph = model.graph
    wanted = {**dict(zip(graph.inputs, inputs, strict=True))}
    wanted |= dict(zip(graph.outputs, outputs, strict=True))
    taken = set(wanted.values())
    for value in all_values(model):
        if value in wanted or value.name not in taken:
            continue
        value.name = f"{value.name}__inner"
    for value, name in wanted.items():
        value.name = name


def _name_dims(model: ir.Model, symbols: Mapping[str, Any]) -> None:
    """Puts names for symbols, also inside of expressions such as `s0 + 1`."""
    if not symbols:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b")
    for value in all_values(model):
        if value.shape is None or value.const_value is not None:
            continue
        value.shape = ir.Shape([_named(dim, symbols, pattern) for dim in value.shape])


def _named(
    dim: int | ir.SymbolicDim, symbols: Mapping[str, Any], pattern: re.Pattern[str]
) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    if dim.value in symbols:
        named: int | str = symbols[dim.value]
        return named
    return pattern.sub(lambda found: str(symbols[found[0]]), dim.value)


def _cause(error: BaseException) -> str:
    """What the innermost error says, on one line: exporters wrap it several times."""
    chain = [error]
    while (inner := chain[-1].__cause__) is not None and len(chain) < 10:
        chain.append(inner)
    last = chain[-1]
    return f"{type(last).__name__}: {' '.join(str(last).split())[:400]}"


def _remedy(error: BaseException) -> str:
    text = str(error)
    if "specialized" in text or "onstraint" in text:
        return "write sizes, not names, for such dims in `inputs`, or make the module take any size"
    if "data-dependent" in text.lower() or "guard" in text.lower():
        return "the module branches on values: use torch.where or torch.cond there"
    return "try torch.export.export on the module alone; its message names the line"
