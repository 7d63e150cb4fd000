"""Small ONNX models for `quantize_int8`: each shows something that a placement must get right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimc.core.model import OnnxModel
from optimc.testing.graphs import GraphBuilder


def quantizable_models() -> Mapping[str, OnnxModel]:
    """The models by name; built anew at each call."""
    return {
        "branches and pools": branches_and_pools(),
        "constants": constants(),
        "depthwise": depthwise(),
        "matmul": matmul(),
        "middle outputs": middle_outputs(),
        "option a": option_a(),
        "residual": residual(),
        "transposed": transposed(),
        "uneven channels": uneven_channels(),
    }


def conv(b: GraphBuilder, x: str, channels: int, filters: int, **attributes: Any) -> str:
    """A convolution with bias whose results stay near 1."""
    size = 3 if "kernel_shape" not in attributes else 1
    group = attributes.get("group", 1)
    assert isinstance(group, int)
    scale = 1.0 / (size * (channels // group) ** 0.5)
    weight = b.weight(filters, channels // group, size, size, scale=scale)
    return b.node("Conv", x, weight, b.weight(filters, scale=0.1), **attributes)


def residual() -> OnnxModel:
    """A block of ResNet: stem, pooling, shortcut, mean over space, a linear layer with factors."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 12, 12])
    h = b.node("Relu", conv(b, x, 3, 8, pads=[1, 1, 1, 1]))
    skip = b.node("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    h = b.node("Relu", conv(b, skip, 8, 8, pads=[1, 1, 1, 1]))
    h = conv(b, h, 8, 8, pads=[1, 1, 1, 1])
    h = b.node("Relu", b.node("Add", h, skip))
    h = b.node("Relu", conv(b, h, 8, 16, pads=[1, 1, 1, 1], strides=[2, 2]))
    h = b.node("ReduceMean", h, b.constant([-1, -2]), keepdims=0)
    weight, bias = b.weight(20, 16, scale=0.3), b.weight(20)
    b.node("Gemm", h, weight, bias, transB=1, alpha=0.5, beta=2.0, to="logits")
    b.output("logits", ["batch", 20])
    return b.model()


def option_a() -> OnnxModel:
    """The shortcut of CIFAR's ResNets: every second pixel, zero channels on both sides."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 8, 8])
    h = b.node("Relu", conv(b, x, 3, 8, pads=[1, 1, 1, 1]))
    starts, ends = b.constant([0, 0]), b.constant([8, 8])
    skip = b.node("Slice", h, starts, ends, b.constant([2, 3]), b.constant([2, 2]))
    skip = b.node("Pad", skip, b.constant([0, 4, 0, 0, 0, 4, 0, 0]))
    h = b.node("Relu", conv(b, h, 8, 16, pads=[1, 1, 1, 1], strides=[2, 2]))
    h = conv(b, h, 16, 16, pads=[1, 1, 1, 1])
    h = b.node("Relu", b.node("Add", skip, h))
    b.node("ReduceMean", h, b.constant([2, 3]), keepdims=1, to="features")
    b.output("features", ["batch", 16, 1, 1])
    return b.model()


def depthwise() -> OnnxModel:
    """An inverted residual of MobileNetV2: Clip, grouped convolution, a linear bottleneck."""
    b = GraphBuilder()
    low, high = b.constant(0.0, "zero"), b.constant(6.0, "six")
    x = b.input("image", ["batch", 4, 8, 8])
    h = b.node("Clip", conv(b, x, 4, 12, kernel_shape=[1, 1]), low, high)
    h = b.node("Clip", conv(b, h, 12, 12, pads=[1, 1, 1, 1], group=12), low, high)
    h = b.node("Conv", h, b.weight(4, 12, 1, 1, scale=0.3))  # no bias
    h = b.node("Add", x, b.node("Add", h, conv(b, h, 4, 4, kernel_shape=[1, 1])))
    h = b.node("GlobalAveragePool", conv(b, h, 4, 16, kernel_shape=[1, 1]))
    h = b.node("Flatten", h, axis=1)
    b.node("MatMul", h, b.weight(16, 24, scale=0.3), to="features")
    b.output("features", ["batch", 24])
    return b.model()


def branches_and_pools() -> OnnxModel:
    """Branches that meet in a Concat; average pooling with padding, SiLU, LeakyRelu, a Reshape."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 8, 8])
    stem = conv(b, x, 3, 8, pads=[1, 1, 1, 1])
    stem = b.node("Mul", stem, b.node("Sigmoid", stem))
    pads = [1, 1, 1, 1]
    left = b.node("AveragePool", stem, kernel_shape=[3, 3], pads=pads, count_include_pad=1)
    right = b.node("LeakyRelu", conv(b, stem, 8, 8, pads=pads), alpha=0.1)
    half = b.node("MaxPool", stem, kernel_shape=[2, 2], strides=[2, 2])
    sizes = b.constant([1.0, 1.0, 2.0, 2.0])
    again = b.node("Resize", half, "", sizes, mode="nearest")
    h = b.node("Concat", left, right, again, axis=1)
    h = b.node("Relu", conv(b, h, 24, 16, kernel_shape=[1, 1]))
    h = b.node("Reshape", h, b.constant([0, 16, 64]))
    h = b.node("Transpose", h, perm=[0, 2, 1])
    b.node("MatMul", h, b.weight(16, 16, scale=0.3), to="tokens")
    b.output("tokens", ["batch", 64, 16])
    return b.model()


def transposed() -> OnnxModel:
    """A small encoder and decoder: ConvTranspose, plain and in groups, of a signed input."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 8, 8])
    h = conv(b, x, 3, 8, pads=[1, 1, 1, 1], strides=[2, 2])
    h = b.node(
        "ConvTranspose", h, b.weight(8, 6, 2, 2, scale=0.3), b.weight(6, scale=0.1), strides=[2, 2]
    )
    h = b.node("Relu", h)
    h = b.node("ConvTranspose", h, b.weight(6, 2, 3, 3, scale=0.3), pads=[1, 1, 1, 1], group=2)
    b.node("Conv", h, b.weight(3, 4, 1, 1, scale=0.5), to="mask")
    b.output("mask", ["batch", 3, 8, 8])
    return b.model()


def matmul() -> OnnxModel:
    """One head of attention, with its mask of infinities and its Softmax in float."""
    import numpy as np

    b = GraphBuilder()
    x = b.input("tokens", ["batch", 16, 16])
    query = b.node("Add", b.node("MatMul", x, b.weight(16, 16, scale=0.3)), b.weight(16))
    key = b.node("MatMul", x, b.weight(16, 16, scale=0.3))
    value = b.node("MatMul", x, b.weight(16, 16, scale=0.3))
    scores = b.node("MatMul", query, b.node("Transpose", key, perm=[0, 2, 1]))
    mask = b.constant(np.triu(np.full((16, 16), -np.inf, np.float32), 1), "mask")
    weights = b.node("Softmax", b.node("Add", scores, mask), axis=-1)
    h = b.node("MatMul", weights, value)
    b.node("MatMul", h, b.weight(16, 32, scale=0.3), to="output")
    b.output("output", ["batch", 16, 32])
    return b.model()


def constants() -> OnnxModel:
    """Constants where activations stand: an Add and a Mul with one, an Add of a scalar."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 3, 6, 6])
    h = conv(b, x, 3, 8, pads=[1, 1, 1, 1])
    h = b.node("Mul", h, b.constant(b.rng.uniform(0.5, 2.0, (1, 8, 1, 1))))
    h = b.node("Relu", b.node("Add", h, b.weight(1, 8, 1, 1)))
    h = conv(b, b.node("Add", b.constant(-0.25), h), 8, 4)
    b.node("Relu", h, to="map")
    b.output("map", ["batch", 4, 4, 4])
    return b.model()


def middle_outputs() -> OnnxModel:
    """Outputs in the middle of the graph, one weight in two convolutions, one input read twice."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 4, 6, 6])
    shared = b.weight(4, 4, 3, 3, scale=0.2)
    first = b.node("Conv", x, shared, pads=[1, 1, 1, 1], to="first")
    second = b.node("Conv", first, shared, pads=[1, 1, 1, 1])
    doubled = b.node("Add", second, second)
    h = b.node("Concat", b.node("Abs", first), doubled, axis=1)
    b.node("Transpose", conv(b, h, 8, 4), perm=[0, 2, 3, 1], to="last")
    b.output("first", ["batch", 4, 6, 6])
    b.output("last", ["batch", 4, 4, 4])
    return b.model()


def uneven_channels() -> OnnxModel:
    """Channels of very different size: all zeros, tiny with a large bias, a thousand times more."""
    b = GraphBuilder()
    x = b.input("image", ["batch", 2, 5, 5])
    weight = b.rng.normal(0, 0.2, (6, 2, 3, 3)).astype("float32")
    weight[0] = 0.0
    weight[1] = 0.0
    weight[2] *= 1e-12
    weight[3] *= 1e-4
    bias = b.constant([0.5, 0.0, 0.7, 0.1, -0.2, 0.3])
    h = b.node("Conv", x, b.constant(weight), bias, pads=[1, 1, 1, 1])
    mix = b.rng.normal(0, 0.2, (3, 6, 3, 3)).astype("float32")
    mix[0] *= 1000.0
    b.node("Conv", h, b.constant(mix), to="map")
    b.output("map", ["batch", 3, 3, 3])
    return b.model()
