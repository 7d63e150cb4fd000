"""Which weights of a graph hold the 2:4 pattern that `sparse_weights` asks kernels for.

Source: NVIDIA TensorRT, "Structured sparsity"; A. Mishra et al., "Accelerating Sparse Deep Neural
Networks", 2021, https://arxiv.org/abs/2104.08378.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.core.lint import Finding

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel

_OPERATORS = ("Conv", "Gemm", "MatMul")


def lint_sparsity(model: OnnxModel) -> tuple[Finding, ...]:
    """One finding that counts the weights which hold the pattern: a warning where none does."""
    from optimc.core.onnx_sparsity import sparsity_of

    held = [one.two_of_four for one in sparsity_of(model.ir) if one.op_type in _OPERATORS]
    count, total = sum(held), len(held)
    found = f"{count} of {total}"
    if count:
        reason = f"the pattern 2:4 is in {found} weights of Conv, Gemm and MatMul"
        return (Finding("the weights", found, "sparsity", "note", reason, ""),)
    reason = (
        "no weight holds the pattern 2:4: nothing is gained"
        if total
        else ("the graph has no weights that it could be for")
    )
    fix = "prune the weights to 2:4 before (`prune_n_m`), or leave `sparse_weights` out"
    reason = f"`sparse_weights` is set, and {reason}"
    return (Finding("the weights", found, "sparsity", "warning", reason, fix),)
