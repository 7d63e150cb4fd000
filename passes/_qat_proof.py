"""Whether a torch form computes what its graph says: node by node, against ONNX Runtime.

Each node gets ONNX Runtime's own inputs, so its error is its own: one ulp turns a rounding now and
then, and compared at the outputs alone such a turn could not be told from a wrong operator.
Runs in a worker; imports onnx_ir.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optimc.core.errors import PreconditionError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from optimc.passes._onnx_torch import Step, TorchGraph

    Array = NDArray[Any]

TOLERANCE = 1e-4
"""Of a node's float result, relative to its largest element: sums in another order."""
TURNED = 0.01
"""The share of integers behind a Q that may be off by one (a single one always may)."""


def prove(
    graph: TorchGraph,
    path: Path,
    feeds: Mapping[str, Tensor],
    constants: Mapping[str, Tensor] | None = None,
) -> float:
    """The largest error of any node of the model at `path`, as `TOLERANCE` counts it.

    Raises PreconditionError, with the node, where one is larger.
    """
    import torch

    reference = values_of(path, {name: feed.numpy() for name, feed in feeds.items()})
    tensors = {name: _tensor(array) for name, array in reference.items()}
    worst = 0.0
    with torch.no_grad():
        for step, results in graph.one_by_one({**tensors, **feeds}, constants):
            for name, result in results.items():
                worst = max(worst, _compared(step, reference[name], result.numpy()))
    return worst


def values_of(path: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What every node of the main graph gives, by ONNX Runtime with graph optimizations off."""
    from optimc.core.onnx_session import reference_session

    model = ir.load(path)
    graph = model.graph
    given = set(graph.outputs)
    graph.outputs.extend(
        value for node in graph for value in node.outputs if value.name and value not in given
    )
    model = ir.external_data.load_to_model(model)
    session = reference_session(ir.to_proto(model).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    inputs = {one.name for one in session.get_inputs()}
    fed = {name: feed for name, feed in feeds.items() if name in inputs}
    return dict(zip(names, session.run(names, fed), strict=True))


def _compared(step: Step, wanted: Array, found: Array) -> float:
    """The error of one result. Raises PreconditionError where it is too large."""
    if wanted.shape != found.shape:
        raise _different(step, f"the shape {list(found.shape)} instead of {list(wanted.shape)}")
    expected, actual = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True):
        raise _different(step, "infinities or NaNs in other places")
    errors = np.abs(expected[finite] - actual[finite])
    if step.node.op_type == "QuantizeLinear":
        turned = int((errors > 0).sum())
        if errors.max(initial=0.0) > 1 or turned > max(1, TURNED * errors.size):
            raise _different(step, f"{turned} of {errors.size} integers that are others")
        return 0.0
    error = float(errors.max(initial=0.0)) / max(
        float(np.abs(expected[finite]).max(initial=0)), 1e-30
    )
    if error > (TOLERANCE if wanted.dtype.kind == "f" else 0.0):
        raise _different(step, f"an error of {error:.1e} of its scale, the bound is {TOLERANCE:g}")
    return error


def _different(step: Step, what: str) -> PreconditionError:
    return PreconditionError(
        f"{step.call.label}: its torch form gives {what}, against ONNX Runtime",
        fix="leave the pass that trains out of this variant, and report the model",
    )


def _tensor(array: Array) -> Tensor:
    """8-bit integers are float32 numbers in the torch form."""
    import torch

    return torch.from_numpy(
        array.astype(np.float32)
        if array.dtype.itemsize == 1 and array.dtype.kind in "iu"
        else array
    )
