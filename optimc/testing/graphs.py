"""Small ONNX models for tests, made by hand: each shows something that passes meet in real ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimc.core.model import OnnxModel
from optimc.testing.runs import as_model

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray


class GraphBuilder:
    """Writes an ONNX graph node by node; values are their names. Weights come from one seed."""

    def __init__(
        self, opset: int = 18, seed: int = 0, counter: Iterator[int] | None = None
    ) -> None:
        import numpy as np

        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self._counter = counter or itertools.count(1)
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, NDArray[Any]] = {}

    def inner(self) -> GraphBuilder:
        """The builder of a subgraph, which gives no name that this one gives."""
        return GraphBuilder(self.opset, int(self.rng.integers(2**31)), self._counter)

    def input(self, name: str, shape: Sequence[int | str] | None, dtype: str = "float32") -> str:
        """An input of the model."""
        self._inputs.append(_value_info(name, shape, dtype))
        return name

    def constant(self, array: Any, name: str | None = None, dtype: str | None = None) -> str:
        """An initializer; Python numbers become int64 or float32."""
        import numpy as np

        array = np.asarray(array, dtype=dtype)
        if dtype is None and array.dtype == np.float64:
            array = array.astype(np.float32)
        name = name or self.unique("c")
        self._constants[name] = array
        return name

    def weight(self, *shape: int, scale: float = 0.5) -> str:
        """A float32 initializer, normally distributed."""
        return self.constant(self.rng.normal(0, scale, shape).astype("float32"), self.unique("w"))

    def node(
        self,
        op_type: str,
        *inputs: str,
        name: str | None = None,
        to: str | None = None,
        **attrs: Any,
    ) -> str:
        """A node with one output, whose name it returns (`to` gives one)."""
        return self.nodes(op_type, *inputs, name=name, to=[to or self.unique("v")], **attrs)[0]

    def nodes(
        self, op_type: str, *inputs: str, to: Sequence[str], name: str | None = None, **attrs: Any
    ) -> list[str]:
        """A node with the outputs `to`."""
        from onnx import helper

        name = name or f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, list(inputs), list(to), name=name, **attrs))
        return list(to)

    def cast(self, value: str, dtype: str) -> str:
        """A Cast, whose attribute `to` is a dtype, not the name of a result."""
        import numpy as np
        from onnx import helper

        name = self.unique("v")
        node = helper.make_node("Cast", [value], [name], name=f"cast_{len(self._nodes)}")
        node.attribute.append(
            helper.make_attribute("to", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        )
        self._nodes.append(node)
        return name

    def output(self, name: str, shape: Sequence[int | str] | None, dtype: str = "float32") -> str:
        """Makes the value an output of the model."""
        self._outputs.append(_value_info(name, shape, dtype))
        return name

    def graph(self, name: str = "graph") -> onnx.GraphProto:
        """What was built, as a graph: also the way to make the branches of an If."""
        from onnx import helper, numpy_helper

        constants = [numpy_helper.from_array(a, n) for n, a in self._constants.items()]
        return helper.make_graph(self._nodes, name, self._inputs, self._outputs, constants)

    def proto(self) -> onnx.ModelProto:
        """What was built, as an ONNX model."""
        from onnx import helper

        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(self.graph(), opset_imports=[opset], ir_version=10)

    def model(self) -> OnnxModel:
        """What was built, as the ONNX front end leaves it, with inferred shapes."""
        import onnx

        return as_model(onnx.shape_inference.infer_shapes(self.proto()))

    def unique(self, prefix: str) -> str:
        """A name that no other value has."""
        return f"{prefix}{next(self._counter)}"


def _value_info(name: str, shape: Sequence[int | str] | None, dtype: str) -> onnx.ValueInfoProto:
    import numpy as np
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, None if shape is None else list(shape))


def small_models() -> Mapping[str, OnnxModel]:
    """The models by name; built anew at each call."""
    return {
        "aliased outputs": aliased_outputs(),
        "branches": branches(),
        "convolutions": convolutions(),
        "folded shapes": folded_shapes(),
        "nothing to do": nothing_to_do(),
        "quantized": quantized(),
        "shared weights": shared_weights(),
    }


def convolutions() -> OnnxModel:
    """Conv, BatchNormalization, Relu with a residual, a Pad, pooling and a linear layer."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 8, 8])
    h = _conv_batchnorm(b, x, 3, 4)
    h = b.node("Relu", h)
    skip = h
    padded = b.node("Pad", h, b.constant([0, 0, 1, 1, 0, 0, 1, 1]))
    h = b.node("Conv", padded, b.weight(4, 4, 3, 3), b.constant([0.0] * 4))
    h = b.node("Relu", b.node("Relu", b.node("Add", h, skip)))
    h = b.node("Flatten", b.node("GlobalAveragePool", h), axis=1)
    b.node("Gemm", h, b.weight(5, 4), b.weight(5), transB=1, to="logits")
    b.output("logits", ["batch", 5])
    return b.model()


def _conv_batchnorm(b: GraphBuilder, x: str, channels: int, filters: int) -> str:
    h = b.node("Conv", x, b.weight(filters, channels, 3, 3), pads=[1, 1, 1, 1])
    scale = b.constant(b.rng.uniform(0.5, 2.0, filters))
    variance = b.constant(b.rng.uniform(0.5, 2.0, filters))
    shift, mean = b.weight(filters), b.weight(filters)
    return b.node("BatchNormalization", h, scale, shift, mean, variance, epsilon=1e-3)


def folded_shapes() -> OnnxModel:
    """What exporters write around a reshape: Shape, Gather, arithmetic, casts, a dynamic batch."""
    b = GraphBuilder()
    x = b.input("tokens", ["batch", 6, 4])
    shape = b.node("Shape", x)
    batch = b.node("Gather", shape, b.constant([0]), axis=0)
    heads = b.node("Div", b.node("Gather", shape, b.constant([2]), axis=0), b.constant([2]))
    target = b.node("Concat", batch, b.constant([6]), heads, b.constant([2]), axis=0)
    split = b.node("Transpose", b.node("Reshape", x, target), perm=[0, 2, 1, 3])
    again = b.node("Transpose", split, perm=[0, 1, 3, 2])
    scale = b.node("Sqrt", b.constant([2.0]))
    h = b.node("MatMul", split, b.node("Div", again, scale))
    h = b.node("Mul", h, b.constant(1.0))
    b.node("Softmax", b.node("Unsqueeze", h, b.constant([0])), axis=-1, to="attention")
    b.output("attention", [1, "batch", 2, 6, 6])
    return b.model()


def shared_weights() -> OnnxModel:
    """Equal initializers and equal subexpressions, one initializer with two readers, dead code."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 4])
    matrix = b.rng.normal(0, 0.5, (4, 4)).astype("float32")
    first, second = b.constant(matrix, "first"), b.constant(matrix.copy(), "second")
    left = b.node("Relu", b.node("MatMul", x, first))
    right = b.node("Relu", b.node("MatMul", x, second))
    tied = b.node("MatMul", right, b.node("Transpose", first, perm=[1, 0]))
    b.node("MatMul", x, b.constant(matrix * 2, "dead"))
    b.node("Add", b.node("Identity", left), tied, to="y")
    b.output("y", ["batch", 4])
    return b.model()


def aliased_outputs() -> OnnxModel:
    """Outputs that are an input, another output, or a constant: their names have to stay."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 3])
    b.node("Identity", x, to="same_as_input")
    b.node("Relu", x, to="first")
    b.node("Identity", "first", to="same_as_first")
    b.node("Relu", x, to="equal_to_first")
    b.node("Identity", b.constant([1.5, -2.0]), to="constant")
    for name in ("same_as_input", "first", "same_as_first", "equal_to_first"):
        b.output(name, ["batch", 3])
    b.output("constant", [2])
    return b.model()


def branches() -> OnnxModel:
    """An If that the input decides and one that a constant decides; inner names are repeated."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 3])
    flag = b.input("flag", [], "bool")
    taken = b.node("Greater", b.constant(2.0), b.constant(1.0))
    shared = b.node("Mul", x, b.constant(2.0, "two"))
    then_branch, else_branch = _branch("Relu", shared, True), _branch("Neg", x, False)
    h = b.node("If", flag, then_branch=then_branch, else_branch=else_branch)
    then_branch, else_branch = _branch("Tanh", shared, True), _branch("Abs", shared, True)
    h = b.node("Add", h, b.node("If", taken, then_branch=then_branch, else_branch=else_branch))
    b.node("Identity", h, to="y")
    b.output("y", ["batch", 3])
    return b.model()


def _branch(op_type: str, source: str, constant: bool) -> onnx.GraphProto:
    b = GraphBuilder()
    h = b.node(op_type, source, to="inner")
    if constant:
        h = b.node("Add", h, b.constant([0.5], "bias"), to="shifted")
    b.node("Identity", h, to="result")
    b.output("result", ["batch", 3])
    return b.graph("branch")


def quantized() -> OnnxModel:
    """A convolution between Q and DQ, with arithmetic behind them that has to stay as it is."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 2, 5, 5])
    weight = b.constant(b.rng.integers(-127, 128, (2, 2, 3, 3)), dtype="int8")
    steps = b.constant([0.01, 0.02])
    zeros = b.constant([0, 0], dtype="int8")
    dequantized = b.node("DequantizeLinear", weight, steps, zeros, axis=0)
    h = b.node("Conv", _quantize(b, x, 0.03, 128), dequantized, b.constant([0.0, 0.0]))
    h = b.node("Mul", _quantize(b, h, 0.05, 128), b.constant(1.0))
    b.node("Relu", b.node("Relu", h), to="y")
    b.output("y", ["batch", 2, 3, 3])
    return b.model()


def _quantize(b: GraphBuilder, value: str, scale: float, zero: int) -> str:
    step, zero_point = b.constant(scale), b.constant(zero, dtype="uint8")
    levels = b.node("QuantizeLinear", value, step, zero_point)
    return b.node("DequantizeLinear", levels, step, zero_point)


def nothing_to_do() -> OnnxModel:
    """A model that is as simple as it gets."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 4])
    b.node("Tanh", b.node("MatMul", x, b.weight(4, 2)), to="y")
    b.output("y", ["batch", 2])
    return b.model()
