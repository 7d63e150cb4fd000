"""Valid ONNX models that bring a runtime down: a native crash, memory without end, a hang.

`folding_trap` does it while an engine is built or opened: the trap is a constant expression in a
branch that is never taken, so that only a runtime that folds constants steps into it. The ONNX
checker and ONNX Runtime with graph optimizations off have no trouble with it. `run_trap` does it in
a run, at one size of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from optimc.core.model import OnnxModel
from optimc.testing.graphs import GraphBuilder

if TYPE_CHECKING:
    import onnx

Trap = Literal["crash", "memory", "hang"]

_INT32_MIN = -(2**31)
_IMAGE = 4096
_ENDLESS = 2**40


def folding_trap(kind: Trap, *, side: int = 100_000) -> OnnxModel:
    """``x [batch, 3] -> y``, with the trap in a branch that no finite input takes.

    `crash` divides INT32_MIN by -1, which the x86 processor answers with SIGFPE (ONNX Runtime 1.32
    and OpenVINO 2026.4 do not check for it); `memory` is a float32 matrix of `side` rows and
    columns (ONNX Runtime gives up folding it, and runs); `hang` is a pooling of some 10^13
    additions.
    """
    b = GraphBuilder()
    x = b.input("x", ["batch", 3])
    total = b.node("ReduceSum", x, keepdims=0)
    huge = b.node("Greater", total, b.constant(3e38))
    trap = {"crash": _overflow, "memory": _gigabytes, "hang": _pooling}[kind]
    then_branch, else_branch = trap(x, side), _relu(x)
    b.node("If", huge, then_branch=then_branch, else_branch=else_branch, to="y")
    b.output("y", ["batch", 3])
    return b.model()


def _relu(x: str) -> onnx.GraphProto:
    b = GraphBuilder()
    b.node("Relu", x, to="result")
    b.output("result", ["batch", 3])
    return b.graph("harmless")


def _overflow(x: str, side: int) -> onnx.GraphProto:
    b = GraphBuilder()
    lowest, minus_one = (b.constant(value, dtype="int32") for value in (_INT32_MIN, -1))
    return _added(b, x, b.node("CastLike", b.node("Div", lowest, minus_one), b.constant(1.0)))


def _gigabytes(x: str, side: int) -> onnx.GraphProto:
    b = GraphBuilder()
    wide = b.node("Expand", b.constant(1.0), b.constant([side, side]))
    return _added(b, x, b.node("ReduceMax", wide, keepdims=0))


def _pooling(x: str, side: int) -> onnx.GraphProto:
    b = GraphBuilder()
    image = b.node("Expand", b.constant(1.0), b.constant([1, 1, _IMAGE, _IMAGE]))
    pooled = b.node("AveragePool", image, kernel_shape=[_IMAGE // 2, _IMAGE // 2])
    return _added(b, x, b.node("ReduceMax", pooled, keepdims=0))


def _added(b: GraphBuilder, x: str, value: str) -> onnx.GraphProto:
    b.node("Add", x, value, to="result")
    b.output("result", ["batch", 3])
    return b.graph("trap")


def run_trap(kind: Trap, *, at: int = 3, side: int = 100_000) -> OnnxModel:
    """``x [batch, 3] -> y``, which springs the trap of `kind` when the batch is `at`.

    `hang` is a Loop of 2^40 rounds, the others are as in `folding_trap`. OpenVINO divides integers
    as floats in a run, and does not crash.
    """
    b = GraphBuilder()
    x = b.input("x", ["batch", 3])
    batch = b.node("Squeeze", b.node("Shape", x, start=0, end=1))
    sprung = b.node("Equal", batch, b.constant(at))
    if kind == "crash":
        minus_one, one = (b.constant(value, dtype="int32") for value in (-1, 1))
        divisor = b.node("Where", sprung, minus_one, one)
        quotient = b.node("Div", b.constant(_INT32_MIN, dtype="int32"), divisor)
        value = b.node("CastLike", quotient, b.constant(1.0))
    elif kind == "memory":
        count = b.node("Where", sprung, b.constant([side, side]), b.constant([1, 1]))
        wide = b.node("Expand", b.constant(1.0), count)
        value = b.node("ReduceMax", b.node("Exp", wide), keepdims=0)
    else:
        rounds = b.node("Where", sprung, b.constant(_ENDLESS), b.constant(1))
        value = b.node("Loop", rounds, b.constant(True), b.constant(1.0), body=_halving())
    b.node("Add", x, value, to="y")
    b.output("y", ["batch", 3])
    return b.model()


def _halving() -> onnx.GraphProto:
    b = GraphBuilder()
    b.input("i", [], "int64")
    b.input("going", [], "bool")
    value = b.input("value", [])
    b.node("Identity", "going", to="still_going")
    b.node("Mul", value, b.constant(0.5), to="halved")
    b.output("still_going", [], "bool")
    b.output("halved", [])
    return b.graph("halving")


def chain(length: int) -> OnnxModel:
    """``x [batch, 3] -> y`` through so many nodes, one behind the other."""
    b = GraphBuilder()
    value = b.input("x", ["batch", 3])
    for number in range(length):
        value = b.node("Neg" if number % 2 else "Tanh", value)
    b.node("Identity", value, to="y")
    b.output("y", ["batch", 3])
    return b.model()


def nested(depth: int) -> bytes:
    """The file of ``x [batch, 3], flag -> y``, an If in an If, so many deep.

    Put together from bytes, because the library itself does not go as deep as a file may.
    """
    import onnx

    kind = onnx.helper.make_tensor_value_info("", onnx.TensorProto.FLOAT, ["batch", 3]).type

    def value(name: str) -> onnx.ValueInfoProto:
        return onnx.ValueInfoProto(name=name, type=kind)

    def leaf(name: str) -> bytes:
        node = onnx.helper.make_node("Neg", ["x"], [name], name=f"{name}_node")
        return bytes(onnx.helper.make_graph([node], name, [], [value(name)]).SerializeToString())

    graph = leaf("innermost")
    for level in range(depth):
        name = "y" if level == depth - 1 else f"level{level}"
        node = onnx.NodeProto(op_type="If", input=["flag"], output=[name], name=f"if{level}")
        content = node.SerializeToString()
        for branch, inner in (("then_branch", graph), ("else_branch", leaf(f"other{level}"))):
            attribute = onnx.AttributeProto(name=branch, type=onnx.AttributeProto.GRAPH)
            content += _message(5, attribute.SerializeToString() + _message(6, inner))
        outer = onnx.GraphProto(name=f"graph{level}", output=[value(name)])
        if level == depth - 1:
            flag = onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
            outer.input.extend([value("x"), flag])
        graph = _message(1, content) + outer.SerializeToString()
    model = onnx.ModelProto(ir_version=10, opset_import=[onnx.helper.make_opsetid("", 18)])
    return bytes(model.SerializeToString()) + _message(7, graph)


def _message(field: int, content: bytes) -> bytes:
    """A field of a protobuf message that is a message: tag, length, content."""
    length, size = b"", len(content)
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + content
