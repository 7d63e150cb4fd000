"""The outputs that a recipe chooses: dropped, renamed, or judged by inner values (`verify`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError, did_you_mean
from optimc.pipeline.inputs import kept_outputs, output_name

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimc.core.model import OnnxModel
    from optimc.pipeline.recipe.schema import Recipe

_SHOWN = 12


def outputs_meaning(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says of outputs, as plain data for cache keys."""
    return {
        name: option if option == "drop" else option.model_dump(mode="json")
        for name, option in recipe.outputs.items()
    }


def verified_by(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """By output, under its name from here on: the inner values that are compared in its place."""
    return {
        output_name(recipe, name): option.verify
        for name, option in recipe.outputs.items()
        if option != "drop" and option.verify
    }


def with_outputs(model: OnnxModel, recipe: Recipe) -> OnnxModel:
    """The model with the outputs as the recipe wants them, without what nobody needs any more.

    Raises InputError where the recipe names outputs or inner values that the model lacks.
    """
    kept = kept_outputs(recipe, model.signature)
    _check_verify(model, recipe)
    renamed = {name: new for name in recipe.outputs if (new := output_name(recipe, name)) != name}
    if len(kept) == len(model.signature.outputs) and not renamed:
        return model
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = model.ir.graph
    outputs = [value for value in graph.outputs if recipe.outputs.get(value.name or "") != "drop"]
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    if renamed:
        _rename(model.ir, renamed)
    RemoveUnusedNodesPass()(model.ir)
    return model.sealed()


def _rename(model: ir.Model, renamed: dict[str, str]) -> None:
    """Gives outputs their new names; inner values that have such a name make way."""
    from optimc.core.onnx_names import NameTable
    from optimc.core.onnx_signature import all_values

    table = NameTable.of_values(model)
    new_names = set(renamed.values())
    for name in new_names:
        table.unique(name)
    for value in list(all_values(model)):
        if value.name in new_names and not value.is_graph_input():
            taken = value.is_graph_output() and value.name in renamed
            if not taken and value.name is not None:
                value.name = table.unique(value.name)
    for index, value in enumerate(list(model.graph.outputs)):
        new = renamed.get(value.name or "")
        if new is None:
            continue
        if value.producer() is None:  # an input or a constant keeps the name that it goes by
            value = _behind(model.graph, index, value)
        value.name = new


def _behind(graph: ir.Graph, index: int, value: ir.Value) -> ir.Value:
    """A value equal to `value`, in its place among the outputs."""
    import onnx_ir

    node = onnx_ir.node("Identity", [value])
    node.name = f"{value.name}_output"
    graph.append(node)
    new = node.outputs[0]
    new.type, new.shape = value.type, value.shape
    graph.outputs[index] = new
    return new


def _check_verify(model: OnnxModel, recipe: Recipe) -> None:
    """Raises InputError where a `verify` names no value on the way to its output."""
    for name, option in recipe.outputs.items():
        if option == "drop" or not option.verify:
            continue
        where = recipe.where("outputs", name, "verify")
        output = next(value for value in model.ir.graph.outputs if value.name == name)
        before = values_before(output)
        names = {value.name: value for value in before if value.name}
        for wanted in option.verify:
            if wanted not in names:
                known = {value.name for node in model.ir.graph for value in node.outputs}
                if wanted in known:
                    raise InputError(
                        f"`{wanted}` has no part in the output `{name}`",
                        where=where,
                        fix="name values that the output is computed from",
                    )
                hint = did_you_mean(wanted, names)
                near = ", ".join(list(names)[:_SHOWN])
                raise InputError(
                    f"the model has no inner value `{wanted}`",
                    where=where,
                    fix=hint or f"the nearest before the output are: {near}",
                )


def values_before(
    output: ir.Value, stop: Callable[[ir.Value], bool] = lambda value: False
) -> list[ir.Value]:
    """All values that `output` is computed from in the main graph, the nearest first; no constants.

    The output itself is none of them. What is behind a value where `stop` holds is left out.
    """
    found: dict[ir.Value, None] = {}
    waiting = deque([output])
    while waiting:
        reached = waiting.popleft()
        producer = None if reached is not output and stop(reached) else reached.producer()
        for value in _read(producer) if producer is not None else ():
            if value not in found and value.const_value is None:
                found[value] = None
                waiting.append(value)
    return list(found)


def _read(node: ir.Node) -> list[ir.Value]:
    """What a node reads, in its subgraphs too."""
    from onnx_ir import traversal

    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            for inner in traversal.RecursiveGraphIterator(graph):
                values += [value for value in inner.inputs if value is not None]
            values += list(graph.outputs)
    return values


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    import onnx_ir

    if attribute.type == onnx_ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == onnx_ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return []
