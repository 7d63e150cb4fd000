"""Planted bugs of `simplify`, to prove that verification catches what the pass's tests do not.

    with plant("relu_taken_for_identity"):
        ...

Each changes one step of the pass in this process, as a slip in the code would, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def plant(name: str) -> Iterator[None]:
    """Plants the mutant of this name, one of `MUTANTS`, while the block runs."""
    with MUTANTS[name]():
        yield


def _relu_taken_for_identity() -> Any:
    """A Relu is removed as if it did nothing."""
    from optimc.passes import _simplify_graph
    from optimc.passes._simplify_work import is_identity as right

    return patch.object(
        _simplify_graph, "is_identity", lambda node: right(node) or node.op_type == "Relu"
    )


def _inputs_left_out_of_expressions() -> Any:
    """Nodes of one operator are merged whatever they read, where their shapes agree."""
    from optimc.passes import _simplify_graph

    def wrong(node: Any) -> Any:
        return (node.op_type, str(node.outputs[0].shape)) if node.op_type == "Relu" else None

    return patch.object(_simplify_graph, "_expression", wrong)


def _constants_merged_by_shape() -> Any:
    """Constants of equal shape become one, whatever they hold."""
    from optimc.passes import _simplify_graph

    def wrong(tensor: Any) -> str:
        return f"{tensor.dtype} {tensor.shape}"

    return patch.object(_simplify_graph, "tensor_digest", wrong)


def _padding_off_by_one() -> Any:
    """A Conv's padding slips by one to the end: the shapes stay, the image moves."""

    def slip(node: Any) -> None:
        import onnx_ir as ir

        node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 2, 2])

    return _wrong_rule("Conv", lambda node: _pads(node) == [1, 1, 1, 1], slip)


def _bias_dropped() -> Any:
    """A Gemm loses its bias, which is not zero."""

    def fits(node: Any) -> bool:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return bias is not None and bias.const_value is not None and bias.const_value.numpy().any()

    return _wrong_rule("Gemm", fits, lambda node: node.resize_inputs(2))


def _weights_transposed() -> Any:
    """The kernel of a Conv is transposed."""

    def slip(node: Any) -> None:
        import onnx_ir as ir

        weight = node.inputs[1]
        turned = weight.const_value.numpy().swapaxes(2, 3).copy()
        weight.const_value = ir.tensor(turned, name=weight.name)

    return _wrong_rule("Conv", lambda node: node.inputs[1].const_value is not None, slip)


def _pads(node: Any) -> list[int] | None:
    attribute = node.attributes.get("pads")
    return list(attribute.as_ints()) if attribute is not None else None


def _wrong_rule(op_type: str, fits: Callable[[Any], bool], slip: Callable[[Any], None]) -> Any:
    """After the rewrite rules, `slip` happens once, to the last node of the type that `fits`."""
    from optimc.passes import _simplify_rules

    right = _simplify_rules.apply_rules
    slipped: list[Any] = []

    def wrong(work: Any) -> None:
        right(work)
        nodes = [node for node in work.model.graph if node.op_type == op_type and fits(node)]
        if nodes and not slipped and work.allow("planted", nodes[-1].name or ""):
            slipped.append(nodes[-1])
            slip(nodes[-1])

    return patch.object(_simplify_rules, "apply_rules", wrong)


MUTANTS: dict[str, Callable[[], Any]] = {
    "relu_taken_for_identity": _relu_taken_for_identity,
    "inputs_left_out_of_expressions": _inputs_left_out_of_expressions,
    "constants_merged_by_shape": _constants_merged_by_shape,
    "padding_off_by_one": _padding_off_by_one,
    "bias_dropped": _bias_dropped,
    "weights_transposed": _weights_transposed,
}
"""By name: what makes the patch."""
