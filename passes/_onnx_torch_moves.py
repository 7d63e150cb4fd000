"""Data movement and shapes of ONNX in torch; see `_onnx_torch`. Shapes are int64 tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optimc.passes._onnx_torch_resize import resize

if TYPE_CHECKING:
    from torch import Tensor

    from optimc.passes._onnx_torch import Call, Operator


def _list(tensor: Tensor | None) -> list[int]:
    return [] if tensor is None else [int(value) for value in tensor.flatten().tolist()]


def _identity(call: Call, x: Tensor, *others: Tensor) -> Tensor:
    return x


def _constant(call: Call) -> Tensor:
    import torch

    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in call.attributes:
            value = call.attributes[name]
            if name == "value":
                result: Tensor = value
                return result
            return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)
    raise call.unsupported("a value of another kind")


def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    import torch

    value: Tensor = call.get("value", torch.zeros(1))
    return value.reshape(()).expand(_list(shape)).clone()


def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """0 keeps a dim, unless `allowzero` says that it means 0."""
    sizes = _list(shape)
    if not call.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    if -1 in sizes and 0 not in sizes and x.numel() == 0:
        rest = math.prod(size for size in sizes if size != -1)
        sizes = [0 // rest if size == -1 else size for size in sizes]
    return x.reshape(sizes)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = int(call.get("axis", 1))
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute([int(axis) for axis in call.get("perm", range(x.dim())[::-1])])


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = call.get("axes", None) if axes is None else _list(axes)
    if given is None:
        return x.squeeze()
    return x.squeeze([int(axis) for axis in given])


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = call.get("axes", []) if axes is None else _list(axes)
    rank = x.dim() + len(given)
    for axis in sorted(int(axis) % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


def _slice(
    call: Call,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    import torch

    begins, stops = _list(starts), _list(ends)
    over = list(range(len(begins))) if axes is None else _list(axes)
    strides = [1] * len(begins) if steps is None else _list(steps)
    for begin, stop, axis, stride in zip(begins, stops, over, strides, strict=True):
        places = range(*slice(begin, stop, stride).indices(x.shape[axis]))
        if stride == 1:
            x = x.narrow(axis, places.start, len(places))
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def _concat(call: Call, *inputs: Tensor) -> Tensor:
    import torch

    return torch.cat(inputs, int(call.attributes["axis"]))


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    import torch

    axis = int(call.get("axis", 0))
    if sizes is not None:
        return list(torch.split(x, _list(sizes), axis))
    count = int(call.get("num_outputs", call.outputs))
    return list(torch.split(x, -(-x.shape[axis] // count), axis))


def _pad(
    call: Call,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    import torch

    amounts, over = _list(pads), list(range(x.dim())) if axes is None else _list(axes)
    half, mode = len(amounts) // 2, call.get("mode", "constant")
    for index, axis in enumerate(over):
        before, after = amounts[index], amounts[half + index]
        if not before and not after:
            continue
        axis, size = axis % x.dim(), x.shape[axis]
        if mode == "constant":
            fill = 0 if value is None else value.item()
            sides = [0, 0] * (x.dim() - 1 - axis) + [before, after]
            x = torch.nn.functional.pad(x, sides, value=fill)
            continue
        places = torch.arange(-before, size + after)
        if mode == "edge":
            places = places.clamp(0, size - 1)
        elif mode == "reflect":
            places = (size - 1) - ((size - 1) - places % (2 * max(size - 1, 1))).abs()
        else:
            places = places % size
        x = x.index_select(axis, places)
    return x


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = int(call.get("axis", 0)) % x.dim()
    size = x.shape[axis]
    places = (indices.flatten().long() + size) % size
    found = x.index_select(axis, places)
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = int(call.get("axis", 0))
    size = x.shape[axis]
    return x.gather(axis, (indices.long() + size) % size)


def _shape(call: Call, x: Tensor) -> Tensor:
    import torch

    sizes = list(x.shape)[slice(call.get("start", 0), call.get("end", None))]
    return torch.tensor(sizes, dtype=torch.int64)


def _size(call: Call, x: Tensor) -> Tensor:
    import torch

    return torch.tensor(x.numel(), dtype=torch.int64)


def _cast(call: Call, x: Tensor) -> Tensor:
    import torch

    dtype = ir.DataType(int(call.attributes["to"])).numpy()
    try:
        return x.to(torch.from_numpy(np.zeros(0, dtype)).dtype)
    except TypeError as error:
        raise call.unsupported(f"the type {dtype}") from error


def _expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    import torch

    wanted: Any = torch.broadcast_shapes(x.shape, tuple(_list(shape)))  # type: ignore[no-untyped-call]
    return x.expand(wanted)


def _where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    import torch

    return torch.where(condition, a, b)


def _tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(_list(repeats))


def _range(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    import torch

    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    import torch

    diagonal = 0 if k is None else int(k.item())
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    size = int(call.attributes["blocksize"])
    n, c, h, w = x.shape
    if call.get("mode", "DCR") == "DCR":
        parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // size**2, h * size, w * size)


def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    size = int(call.attributes["blocksize"])
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * size**2, h // size, w // size)


MOVES: Mapping[str, Operator] = {
    "Identity": _identity,
    "Dropout": _identity,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    "Pad": _pad,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Shape": _shape,
    "Size": _size,
    "Cast": _cast,
    "Expand": _expand,
    "Where": _where,
    "Tile": _tile,
    "Range": _range,
    "Trilu": _trilu,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": resize,
}
"""By operator type."""
