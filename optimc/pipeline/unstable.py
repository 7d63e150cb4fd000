"""Outputs that are not the same twice: random operators, and memory that nobody wrote to.

Random operators are found in the graph, because few draws of a small probability may repeat by
chance; what else does not repeat is found by running twice. Nothing but the dtype, the rank and,
where it is always the same, the shape of such an output can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optimc.pipeline.compare import Outputs, compare_outputs

if TYPE_CHECKING:
    import onnx_ir as ir

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


def unstable_outputs(
    model: ir.Model, first: Sequence[Outputs], again: Sequence[Outputs]
) -> dict[str, str]:
    """Why outputs cannot be compared, by name; `first` and `again` are two runs in one session."""
    found = {}
    for value in model.graph.outputs:
        assert value.name is not None
        node = _random_before(value)
        if node is not None:
            found[value.name] = f"is random ({node.op_type} `{node.name or node.outputs[0].name}`)"
        elif not compare_outputs(first, again, [value.name]).bit_equal:
            found[value.name] = "is random or not initialised: it is not the same in two runs"
    return found


def _random_before(output: ir.Value) -> ir.Node | None:
    """The first random operator that the output depends on, in the graph or in a body."""
    waiting, seen = [output], {output}
    while waiting:
        node = waiting.pop().producer()
        if node is None:
            continue
        if _draws(node):
            return node
        read = [*node.inputs]
        for inner in _inside(node):
            if _draws(inner):
                return inner
            read += inner.inputs
        for value in read:
            if value is not None and value not in seen:
                seen.add(value)
                waiting.append(value)
    return None


def _inside(node: ir.Node) -> list[ir.Node]:
    import onnx_ir

    return [
        inner
        for attribute in node.attributes.values()
        if attribute.type == onnx_ir.AttributeType.GRAPH
        for inner in attribute.as_graph().all_nodes()
    ]


def _draws(node: ir.Node) -> bool:
    """Whether a node draws numbers: a Dropout only where it is always in training mode."""
    if node.op_type != "Dropout":
        return node.op_type in _RANDOM and node.domain in ("", "ai.onnx")
    training = node.inputs[2] if len(node.inputs) > 2 else None
    constant = None if training is None else training.const_value
    return constant is not None and bool(constant.numpy().all())


def wrong_form(
    names: Mapping[str, str],
    reference: Sequence[Outputs],
    twice: tuple[Sequence[Outputs], Sequence[Outputs]],
    candidate: Sequence[Outputs],
) -> str | None:
    """What of the outputs `names` no chance explains: a dtype, a rank, a shape; or None.

    `twice` are two runs of the reference's model: shapes that differ there may differ here.
    """
    for name in names:
        fixed = all(a[name].shape == b[name].shape for a, b in zip(*twice, strict=True))
        for expected, actual in zip(reference, candidate, strict=True):
            a, b = expected[name], actual.get(name)
            if b is None:
                return f"output `{name}` is missing"
            if a.dtype != b.dtype or a.ndim != b.ndim:
                return (
                    f"output `{name}`: {b.dtype} of rank {b.ndim} in place of {a.dtype}, {a.ndim}"
                )
            if fixed and a.shape != b.shape:
                return f"output `{name}`: shape {b.shape} in place of {a.shape}"
    return None
