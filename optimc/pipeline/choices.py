"""Outputs that come from a choice: ArgMax, TopK, NonMaxSuppression and the like.

There a difference in rounding chooses something else, so that such outputs cannot be compared by
their numbers. What they are chosen by can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optimc.core.model import SOURCE_KEY
from optimc.pipeline.compare import Outputs, compare_arrays, magnitude

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from optimc.core.model import OnnxModel

_CHOOSING = {"ArgMax": 1, "ArgMin": 1, "Hardmax": 1, "TopK": 1, "NonMaxSuppression": 2}
"""Operators that choose, with the number of their inputs that are chosen by."""
_CUTTING = frozenset(
    {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
    | {"Cast", "Ceil", "Floor", "Round", "Sign"}
)
"""Operators that make integers or booleans of floats."""

_COARSE = 0.01


@dataclass(frozen=True)
class Choice:
    """Where an output is chosen, and by which values (source names, where they have some)."""

    operator: str
    by: tuple[str, ...]


def choice_before(model: OnnxModel, output: str) -> Choice | None:
    """The choice nearest before `output` in the main graph, or None where there is none."""
    value = next((v for v in model.ir.graph.outputs if v.name == output), None)
    if value is None:
        return None
    cut = value.dtype is None or not value.dtype.is_floating_point()
    seen: set[ir.Value] = {value}
    waiting = deque([(value, cut)])
    while waiting:
        value, cut = waiting.popleft()
        node = value.producer()
        if node is None:
            continue
        by = _chosen_by(node, value, cut)
        if by:
            return Choice(node.op_type, tuple(_source(v) for v in by))
        # A mask is of booleans: what NonZero counts was cut from floats before it.
        cut = cut or node.op_type in ("NonZero", "Unique", "Compress")
        for read in node.inputs:
            if read is not None and read not in seen:
                seen.add(read)
                waiting.append((read, cut))
    return None


def _chosen_by(node: ir.Node, value: ir.Value, cut: bool) -> list[ir.Value]:
    """The float values that decide what `node` chooses; none where it does not choose."""
    count = _CHOOSING.get(node.op_type, 0)
    if node.op_type == "TopK" and value is node.outputs[0]:
        count = 0  # the greatest values move as little as what they are taken from
    if cut and node.op_type in _CUTTING and (node.op_type != "Cast" or _integer(value)):
        count = 2
    floats = [v for v in node.inputs[:count] if v is not None and v.const_value is None]
    return [v for v in floats if v.dtype is None or v.dtype.is_floating_point()]


def _integer(value: ir.Value) -> bool:
    return value.dtype is None or not value.dtype.is_floating_point()


def _source(value: ir.Value) -> str:
    return str(value.meta.get(SOURCE_KEY) or value.name)


def mismatch(name: str, reference: Sequence[Outputs], candidate: Sequence[Outputs]) -> str:
    """How often an output differs: `differs on 3 of 12 probes (1.2 % of its elements)`.

    Elements of floats count where they differ by more than 1 % of the output's scale.
    """
    pairs = [(a[name], b[name]) for a, b in zip(reference, candidate, strict=True)]
    probes = sum(not compare_arrays(a, b, name).bit_equal for a, b in pairs)
    told = f"differs on {probes} of {len(pairs)} probes"
    if any(a.shape != b.shape for a, b in pairs):
        return f"{told} (in its shape too)"
    scale = max((magnitude(a) for a, _ in pairs), default=0.0)
    differing = sum(_differing(a, b, _COARSE * scale) for a, b in pairs)
    if not differing:
        return f"{told} (by no more than {100 * _COARSE:g} % of its scale)"
    share = 100 * differing / max(1, sum(a.size for a, _ in pairs))
    return f"{told} ({share:.3g} % of its elements)"


def _differing(a: NDArray[Any], b: NDArray[Any], bound: float) -> int:
    if a.dtype.kind in "biuOSU":
        return int(np.count_nonzero(a != b))
    close = np.isclose(a.astype(np.float64), b.astype(np.float64), 0.0, bound, equal_nan=True)
    return int(np.count_nonzero(~close))
