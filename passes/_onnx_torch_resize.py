"""ONNX's Resize in torch, nearest and linear; see `_onnx_torch`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from optimc.passes._onnx_torch import Call


def resize(
    call: Call,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Nearest and linear, axis by axis."""
    mode = call.get("mode", "nearest")
    if mode == "cubic" or call.get("antialias", 0):
        raise call.unsupported("cubic interpolation or antialiasing")
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.unsupported("a keep_aspect_ratio_policy")
    over = [int(axis) % x.dim() for axis in call.get("axes", range(x.dim()))]
    given = scales is not None and scales.numel() > 0
    for index, axis in enumerate(over):
        size = x.shape[axis]
        if given:
            assert scales is not None
            factor = float(scales.flatten()[index])
            wanted = math.floor(size * factor)
        else:
            assert sizes is not None
            wanted = int(sizes.flatten()[index])
            factor = wanted / size
        if wanted != size or factor != 1.0:
            x = _resized(call, x, axis, _places(call, size, wanted, factor), mode)
    return x


def _places(call: Call, size: int, wanted: int, factor: float) -> Any:
    """Where each element of the result lies in the input, as numbers of the specification."""
    result = np.arange(wanted, dtype=np.float32)
    kind = call.get("coordinate_transformation_mode", "half_pixel")
    if kind == "half_pixel" or (kind == "pytorch_half_pixel" and wanted > 1):
        return (result + 0.5) / np.float32(factor) - 0.5
    if kind == "pytorch_half_pixel":
        return result * 0
    if kind == "asymmetric":
        return result / np.float32(factor)
    if kind == "align_corners":
        return result * (size - 1) / max(wanted - 1, 1)
    raise call.unsupported(f"the coordinate_transformation_mode {kind}")


def _resized(call: Call, x: Tensor, axis: int, places: Any, mode: str) -> Tensor:
    import torch

    last = x.shape[axis] - 1
    if mode == "nearest":
        rounding = call.get("nearest_mode", "round_prefer_floor")
        rounded = {
            "round_prefer_floor": np.ceil(places - 0.5),
            "round_prefer_ceil": np.floor(places + 0.5),
            "floor": np.floor(places),
            "ceil": np.ceil(places),
        }[rounding]
        return x.index_select(axis, torch.from_numpy(rounded.clip(0, last).astype(np.int64)))
    places = places.clip(0, last)
    low = np.floor(places)
    share = torch.from_numpy((places - low).astype(np.float32))
    share = share.reshape([-1 if i == axis else 1 for i in range(x.dim())])
    below = x.index_select(axis, torch.from_numpy(low.astype(np.int64)))
    above = x.index_select(axis, torch.from_numpy((low + 1).clip(0, last).astype(np.int64)))
    return below * (1 - share) + above * share
