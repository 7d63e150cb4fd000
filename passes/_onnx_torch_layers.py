"""Layers of ONNX in torch: convolutions, pools, normalizations; see `_onnx_torch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from optimc.passes._onnx_torch import Call, Operator


def _ints(call: Call, name: str, default: Sequence[int]) -> list[int]:
    return [int(value) for value in call.get(name, default)]


def _pads(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """What is added at each side of the space, all starts first, as the attribute `pads` has it."""
    rank = len(kernel)
    auto = call.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return _ints(call, "pads", [0] * 2 * rank)
    if auto == "VALID":
        return [0] * 2 * rank
    strides, dilations = _ints(call, "strides", [1] * rank), _ints(call, "dilations", [1] * rank)
    starts, ends = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        steps = -(-size // stride)
        total = max((steps - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        starts.append(less if auto == "SAME_UPPER" else more)
        ends.append(more if auto == "SAME_UPPER" else less)
    return starts + ends


def _padded(x: Tensor, pads: Sequence[int], value: float) -> Tensor:
    """`x` with its last dims padded; torch wants the last dim first."""
    import torch

    if not any(pads):
        return x
    half = len(pads) // 2
    sides = [side for i in reversed(range(half)) for side in (pads[i], pads[half + i])]
    return torch.nn.functional.pad(x, sides, value=value)


def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    import torch

    rank = x.dim() - 2
    pads = _pads(call, x.shape[2:], weight.shape[2:])
    # Even padding is the kernel's own; the other kind costs a copy.
    even = pads[:rank] == pads[rank:]
    function: Any = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
    result: Tensor = function(
        x if even else _padded(x, pads, 0.0),
        weight,
        bias,
        _ints(call, "strides", [1] * rank),
        pads[:rank] if even else [0] * rank,
        _ints(call, "dilations", [1] * rank),
        int(call.get("group", 1)),
    )
    return result


def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    import torch

    rank = x.dim() - 2
    if "output_shape" in call.attributes or call.get("auto_pad", "NOTSET") != "NOTSET":
        raise call.unsupported("an output_shape or auto_pad")
    functions: Any = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
    whole: Tensor = functions[rank - 1](
        x,
        weight,
        bias,
        _ints(call, "strides", [1] * rank),
        [0] * rank,
        _ints(call, "output_padding", [0] * rank),
        int(call.get("group", 1)),
        _ints(call, "dilations", [1] * rank),
    )
    # A negative padding cuts.
    return _padded(whole, [-pad for pad in _ints(call, "pads", [0] * 2 * rank)], 0.0)


def _max_pool(call: Call, x: Tensor) -> Tensor:
    import torch

    kernel = _ints(call, "kernel_shape", [])
    rank = len(kernel)
    functional = torch.nn.functional
    function: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    result: Tensor = function(
        _padded(x, _pads(call, x.shape[2:], kernel), -float("inf")),
        kernel,
        _ints(call, "strides", [1] * rank),
        0,
        _ints(call, "dilations", [1] * rank),
        bool(call.get("ceil_mode", 0)),
    )
    return result


def _average_pool(call: Call, x: Tensor) -> Tensor:
    import torch

    kernel = _ints(call, "kernel_shape", [])
    rank = len(kernel)
    if any(step != 1 for step in _ints(call, "dilations", [1] * rank)):
        raise call.unsupported("dilations")
    functional: Any = torch.nn.functional
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    pads, strides = _pads(call, x.shape[2:], kernel), _ints(call, "strides", [1] * rank)
    ceil = bool(call.get("ceil_mode", 0))
    result: Tensor = function(_padded(x, pads, 0.0), kernel, strides, 0, ceil)
    if any(pads) and not call.get("count_include_pad", 0):
        inside = _padded(torch.ones_like(x[:1, :1]), pads, 0.0)
        result = result / function(inside, kernel, strides, 0, ceil)
    return result


def _global_pool(name: str, call: Call, x: Tensor) -> Tensor:
    result: Tensor = getattr(x, name)(list(range(2, x.dim())), True)
    return result


def _batch_norm(
    call: Call, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """With its running statistics, whatever is trained."""
    import torch

    if call.get("training_mode", 0):
        raise call.unsupported("training_mode")
    epsilon = call.get("epsilon", 1e-5)
    return torch.nn.functional.batch_norm(x, mean, variance, scale, shift, False, 0.0, epsilon)


def _instance_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    import torch

    epsilon = call.get("epsilon", 1e-5)
    return torch.nn.functional.instance_norm(x, weight=scale, bias=shift, eps=epsilon)


def _layer_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    import torch

    shape = list(x.shape[int(call.get("axis", -1)) % x.dim() :])
    normal = torch.nn.functional.layer_norm(x, shape, eps=call.get("epsilon", 1e-5))
    return normal * scale if shift is None else normal * scale + shift


LAYERS: Mapping[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": partial(_global_pool, "mean"),
    "GlobalMaxPool": partial(_global_pool, "amax"),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
}
"""By operator type."""
