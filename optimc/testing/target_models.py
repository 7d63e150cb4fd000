"""Small ONNX models for tests of targets: each shows something that a runtime may get wrong."""

from __future__ import annotations

from collections.abc import Mapping

from optimc.core.model import OnnxModel
from optimc.testing.graphs import GraphBuilder


def target_models() -> Mapping[str, OnnxModel]:
    """The models by name; built anew at each call."""
    return {
        "dynamic outputs": dynamic_outputs(),
        "fixed shape": fixed_shape(),
        "loop": loop(),
        "many types": many_types(),
        "two dims": two_dims(),
        "unused input": unused_input(),
    }


def dynamic_outputs() -> OnnxModel:
    """An output whose shape the data decides."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 4])
    b.node("Relu", x, to="positive")
    b.node("NonZero", "positive", to="places")
    b.output("places", [2, "count"], "int64")
    b.output("positive", ["batch", 4])
    return b.model()


def fixed_shape() -> OnnxModel:
    """No dynamic dims, and names with characters that files and XML mind."""
    b = GraphBuilder()
    x = b.input("in/put:0 <&>", [2, 3])
    h = b.node("MatMul", x, b.weight(3, 5), name='node "quoted" & <odd>')
    b.node("Sigmoid", h, to="out.put/1")
    b.output("out.put/1", [2, 5])
    return b.model()


def loop() -> OnnxModel:
    """A Loop: a subgraph with values of its own, whose generated names a file may hold."""
    body = GraphBuilder()
    body.input("i", [], "int64")
    body.input("going", [], "bool")
    value = body.input("value", ["batch", 3])
    body.node("Identity", "going", to="still_going")
    body.node("Mul", value, body.constant(0.5), to="halved")
    body.output("still_going", [], "bool")
    body.output("halved", ["batch", 3])
    b = GraphBuilder()
    x = b.input("x", ["batch", 3])
    b.nodes("Loop", b.constant(4), b.constant(True), x, to=["y"], body=body.graph("body"))
    b.output("y", ["batch", 3])
    return b.model()


def many_types() -> OnnxModel:
    """Inputs and outputs of the types that models exchange, in an order that is not sorted."""
    b = GraphBuilder()
    x = b.input("z_first", ["batch", 2])
    ids = b.input("a_second", ["batch", 2], "int64")
    flags = b.input("m_third", ["batch", 2], "bool")
    b.node("Add", ids, b.constant([1, 2]), to="int64_out")
    h = b.node("Where", flags, x, b.constant(0.5), to="float32_out")
    for dtype in ("float64", "int32", "uint8", "float16"):
        b.node("CastLike", b.node("Abs", h), b.constant(0, dtype=dtype), to=f"{dtype}_out")
        b.output(f"{dtype}_out", ["batch", 2], dtype)
    b.node("Not", flags, to="bool_out")
    b.output("int64_out", ["batch", 2], "int64")
    b.output("bool_out", ["batch", 2], "bool")
    b.output("float32_out", ["batch", 2])
    return b.model()


def two_dims() -> OnnxModel:
    """Two inputs that share one dynamic dim and have another, as text models do."""
    b = GraphBuilder()
    ids = b.input("ids", ["batch", "length"], "int64")
    mask = b.input("mask", ["batch", "length"], "int64")
    embedded = b.node("Gather", b.weight(16, 8), ids)
    weights = b.node("CastLike", mask, b.constant(0.0))
    h = b.node("Mul", embedded, b.node("Unsqueeze", weights, b.constant([-1])))
    h = b.node("LayerNormalization", h, b.weight(8), b.weight(8))
    h = b.node("ReduceMean", b.node("MatMul", h, b.weight(8, 4)), b.constant([1]), keepdims=0)
    b.node("Softmax", h, axis=-1, to="scores")
    b.output("scores", ["batch", 4])
    return b.model()


def unused_input() -> OnnxModel:
    """An input that nothing reads."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 3])
    b.input("unused", ["batch", 2])
    b.node("Exp", x, to="y")
    b.output("y", ["batch", 3])
    return b.model()
