"""What float16 can hold. Imports onnx_ir at the top.

IEEE 754 binary16: the greatest finite number is 65504, the least with all 11 bits is 2^-14.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

LEAST_NORMAL = 2.0**-14


def half(tensor: ir.TensorProtocol) -> NDArray[np.float16]:
    """The tensor, each element rounded once to the nearest float16."""
    with np.errstate(over="ignore", under="ignore"):
        return tensor.numpy().astype(np.float16)


def overflow(tensor: ir.TensorProtocol) -> str | None:
    """Why a finite element has no finite float16, or None."""
    array = tensor.numpy()
    lost = np.isfinite(array) & ~np.isfinite(half(tensor))
    if not lost.any():
        return None
    return f"a constant of {float(array[lost].flat[0]):.3g} is beyond float16's 65504"


def underflow(tensor: ir.TensorProtocol) -> str | None:
    """Why float16 loses digits of all elements, or None.

    Small elements beside large ones may go: against the largest they lose nothing, 2^-25 at most.
    """
    array = np.abs(tensor.numpy())
    greatest = float(array.max(initial=0.0, where=np.isfinite(array)))
    if greatest == 0.0 or greatest >= LEAST_NORMAL:
        return None
    return f"its constants are {greatest:.3g} at most, where float16 loses digits"
