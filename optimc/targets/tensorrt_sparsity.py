"""Which weights of a graph hold the 2:4 pattern that `sparse_weights` asks kernels for.

Of every four values along the axis that is summed over, two at least are 0: for a Conv along its
input channels, for each output channel and place in the kernel; for a product along its inner dim.
Source: NVIDIA TensorRT, "Structured sparsity"; A. Mishra et al., "Accelerating Sparse Deep Neural
Networks", 2021, https://arxiv.org/abs/2104.08378.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from optimc.core.lint import Finding
from optimc.targets.tensorrt_lint import attribute

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from optimc.core.model import OnnxModel

_GROUP = 4
_MOST = 2
"""Values of a group that may differ from 0."""


def lint_sparsity(model: OnnxModel) -> tuple[Finding, ...]:
    """One finding that counts the weights which hold the pattern: a warning where none does."""
    held = [_is_sparse(weight) for weight in _weights(model.ir)]
    count, total = sum(held), len(held)
    if not total:
        reason = "`sparse_weights` is set, and the graph has no weights that it could be for"
    elif not count:
        reason = "`sparse_weights` is set, and no weight holds the pattern 2:4: nothing is gained"
    else:
        reason = f"the pattern 2:4 is in {count} of {total} weights of Conv, Gemm and MatMul"
    fix = "prune the weights to 2:4 before, or leave `sparse_weights` out"
    severity = "warning" if not count else "note"
    what = f"{count} of {total}"
    return (Finding("the weights", what, "sparsity", severity, reason, fix if not count else ""),)


def _weights(model: ir.Model) -> Iterator[NDArray[np.generic]]:
    """The constant weights, each as [..., summed over]; those with fewer than four are left out."""
    for node in model.graph.all_nodes():
        axis = _summed_axis(node)
        constant = _constant(node.inputs[1]) if axis is not None else None
        if axis is None or constant is None or constant.ndim < 2:
            continue
        weight = np.moveaxis(constant, axis, -1)
        if weight.shape[-1] >= _GROUP:
            yield weight


def _summed_axis(node: ir.Node) -> int | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Conv":
        return 1
    if node.op_type == "MatMul":
        return -2
    if node.op_type == "Gemm":
        return 1 if attribute(node, "transB", 0) else 0
    return None


def _constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The value's array, or that of the integers that a DQ makes it from."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    if value is None or value.const_value is None:
        return None
    array: NDArray[np.generic] = value.const_value.numpy()
    return array


def _is_sparse(weight: NDArray[np.generic]) -> bool:
    """Whether of each four values along the last axis two at least are 0, in `weight` [..., n]."""
    nonzero = weight != 0
    missing = -nonzero.shape[-1] % _GROUP
    padded = np.pad(nonzero, [(0, 0)] * (nonzero.ndim - 1) + [(0, missing)])
    return bool((padded.reshape(-1, _GROUP).sum(axis=1) <= _MOST).all())
