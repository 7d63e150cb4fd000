"""Arithmetic of ONNX in torch: elementwise operators, products, reductions; see `_onnx_torch`.

The operators are those of the ONNX specification, https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from optimc.passes._onnx_torch import Call, Operator


def _plain(name: str, call: Call, *inputs: Tensor) -> Tensor:
    """An operator that torch has under another name."""
    import torch

    result: Tensor = getattr(torch, name)(*inputs)
    return result


def _functional(name: str, call: Call, *inputs: Tensor) -> Tensor:
    import torch

    result: Tensor = getattr(torch.nn.functional, name)(*inputs)
    return result


def _divide(call: Call, a: Tensor, b: Tensor) -> Tensor:
    import torch

    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _power(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """ONNX keeps the base's type."""
    import torch

    return torch.pow(a, b).to(a.dtype)


def _folded(name: str, call: Call, *inputs: Tensor) -> Tensor:
    """Max, Min and Sum take any number of inputs."""
    import torch

    function: Callable[[Tensor, Tensor], Tensor] = getattr(torch, name)
    return reduce(function, inputs)


def _mean(call: Call, *inputs: Tensor) -> Tensor:
    return _folded("add", call, *inputs) / len(inputs)


def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.leaky_relu(x, call.get("alpha", 0.01))


def _elu(call: Call, x: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.elu(x, call.get("alpha", 1.0))


def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    import torch

    return torch.where(x < 0, x * slope, x)


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    alpha, beta = float(call.get("alpha", 0.2)), float(call.get("beta", 0.5))
    return (x * alpha + beta).clamp(0, 1)


def _hard_swish(call: Call, x: Tensor) -> Tensor:
    return x * (x / 6 + 0.5).clamp(0, 1)


def _gelu(call: Call, x: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.gelu(x, approximate=call.get("approximate", "none"))


def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """The upper bound wins where the bounds cross."""
    import torch

    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _softmax(name: str, call: Call, x: Tensor) -> Tensor:
    import torch

    result: Tensor = getattr(torch, name)(x, call.get("axis", -1))
    return result


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.t() if call.get("transA", 0) else a
    b = b.t() if call.get("transB", 0) else b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    result = a @ b
    result = result if alpha == 1.0 else result * alpha
    if c is None:
        return result
    return result + (c if beta == 1.0 else c * beta)


def _einsum(call: Call, *inputs: Tensor) -> Tensor:
    import torch

    return torch.einsum(call.attributes["equation"], *inputs)


def _reduced(
    function: Callable[[Tensor, list[int], bool], Tensor],
    call: Call,
    x: Tensor,
    axes: Tensor | None = None,
) -> Tensor:
    """A reduction; `axes` are an attribute in older opsets, and all where none are given."""
    given = call.get("axes", None) if axes is None else axes.flatten().tolist()
    if not given and call.get("noop_with_empty_axes", 0):
        return x
    over = [int(axis) % x.dim() for axis in given] if given else list(range(x.dim()))
    return function(x, over, bool(call.get("keepdims", 1)))


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(name: str, call: Call, x: Tensor) -> Tensor:
    if call.get("select_last_index", 0):
        raise call.unsupported("select_last_index")
    result: Tensor = getattr(x, name)(call.get("axis", 0), bool(call.get("keepdims", 1)))
    return result


_SAME_NAME = {
    "Abs": "abs",
    "Neg": "neg",
    "Sqrt": "sqrt",
    "Exp": "exp",
    "Log": "log",
    "Erf": "erf",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "Sin": "sin",
    "Cos": "cos",
    "Reciprocal": "reciprocal",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Sign": "sign",
    "Not": "logical_not",
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "MatMul": "matmul",
    "Equal": "eq",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "Less": "lt",
    "LessOrEqual": "le",
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
}
_REDUCTIONS: Mapping[str, Callable[[Any, list[int], bool], Any]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
}

MATH: Mapping[str, Operator] = {
    **{kind: partial(_plain, name) for kind, name in _SAME_NAME.items()},
    **{kind: partial(_reduced, function) for kind, function in _REDUCTIONS.items()},
    "Softplus": partial(_functional, "softplus"),
    "Softsign": partial(_functional, "softsign"),
    "Mish": partial(_functional, "mish"),
    "Div": _divide,
    "Pow": _power,
    "Max": partial(_folded, "maximum"),
    "Min": partial(_folded, "minimum"),
    "Sum": partial(_folded, "add"),
    "Mean": _mean,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Gelu": _gelu,
    "Clip": _clip,
    "Softmax": partial(_softmax, "softmax"),
    "LogSoftmax": partial(_softmax, "log_softmax"),
    "Gemm": _gemm,
    "Einsum": _einsum,
    "ArgMax": partial(_arg, "argmax"),
    "ArgMin": partial(_arg, "argmin"),
}
"""By operator type."""
