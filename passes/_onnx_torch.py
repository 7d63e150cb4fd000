"""An ONNX graph as a torch function, node by node, so that gradients flow through it.

For the main graph of models of opset 13 and later. QuantizeLinear becomes fake quantization:
its integers are float32 numbers here, and their gradient passes straight through the rounding
(Bengio et al. 2013, arXiv:1308.3432), so that data movement between Q and DQ works on them. No kept
library takes today's opsets with QuantizeLinear (onnx2torch 1.5 ends at opset 17 and knows none).
The operators are in `_onnx_torch_math`, `_onnx_torch_layers` and `_onnx_torch_moves`. Imports
onnx_ir; torch only where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.core.errors import PreconditionError
from optimc.passes._quantize_units import node_label

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Call:
    """What an operator gets beside its inputs."""

    label: str
    """What messages call the node."""
    opset: int
    attributes: Mapping[str, Any]
    """By name; tensors as torch tensors, lists as Python lists."""
    outputs: int
    """How many results the node has names for."""

    def get(self, name: str, default: Any) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)

    def unsupported(self, what: str) -> PreconditionError:
        """The error for a form of the operator that has no torch form here."""
        return PreconditionError(
            f"{self.label} has {what}, for which there is no torch form",
            fix="leave the pass that trains out of this variant",
        )


Operator: TypeAlias = "Callable[..., Tensor | Sequence[Tensor]]"
"""``operator(call, *inputs)``; an input that is left out is None."""


@dataclass(frozen=True)
class Step:
    """One node: results named `outputs` of values named `inputs` (None where one is left out)."""

    node: ir.Node
    operator: Operator
    call: Call
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    dying: tuple[str, ...] = ()
    """Values that no later node reads."""

    def run(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named results."""
        arguments = [None if name is None else values[name] for name in self.inputs]
        found = self.operator(self.call, *arguments)
        results = found if isinstance(found, (list, tuple)) else (found,)
        if len(results) < len(self.outputs):
            raise self.call.unsupported(f"{len(self.outputs)} results")
        return {name: r for name, r in zip(self.outputs, results, strict=False) if name}


class TorchGraph:
    """A model as a function of torch tensors.

    Raises PreconditionError, with the node, where an operator has no torch form.
    """

    def __init__(self, model: ir.Model) -> None:
        import torch

        graph = model.graph
        self.opset = int(model.opset_imports.get("", 0))
        self.inputs = [str(value.name) for value in graph.inputs]
        self.outputs = [str(value.name) for value in graph.outputs]
        self.constants: dict[str, Tensor] = {
            name: torch.from_numpy(np.array(_array(value)))
            for name, value in graph.initializers.items()
        }
        self.steps = _with_ends(
            [self._step(node) for node in graph], {*self.outputs, *self.constants}
        )

    def _step(self, node: ir.Node) -> Step:
        operator = operators().get(node.op_type) if node.domain in ("", "ai.onnx") else None
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        if operator is None:
            raise PreconditionError(
                f"{node_label(node)} is a {kind}, for which there is no torch form",
                fix="leave the pass that trains out of this variant",
            )
        attributes = {name: _attribute(value) for name, value in node.attributes.items()}
        call = Call(node_label(node), self.opset, attributes, len(node.outputs))
        inputs = tuple(None if value is None else str(value.name) for value in node.inputs)
        outputs = tuple(str(value.name or "") for value in node.outputs)
        return Step(node, operator, call, inputs, outputs)

    def __call__(
        self, feeds: Mapping[str, Tensor], constants: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The named outputs for `feeds`; `constants` take the place of initializers' values."""
        values = {**self.constants, **(constants or {}), **feeds}
        for step in self.steps:
            values.update(step.run(values))
            for name in step.dying:
                del values[name]
        return {name: values[name] for name in self.outputs}

    def one_by_one(
        self, reference: Mapping[str, Tensor], constants: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[Step, dict[str, Tensor]]]:
        """Each node's results where its inputs are the `reference` ones, not those computed here.

        So an error of one node shows there, and not in all that follow it.
        """
        values = {**self.constants, **(constants or {})}
        for step in self.steps:
            given = {n: values.get(n, reference.get(n)) for n in step.inputs if n is not None}
            yield step, step.run(given)  # type: ignore[arg-type]


@cache
def operators() -> Mapping[str, Operator]:
    """All that have a torch form, by type."""
    from optimc.passes._onnx_torch_layers import LAYERS
    from optimc.passes._onnx_torch_math import MATH
    from optimc.passes._onnx_torch_moves import MOVES

    return {
        **MATH,
        **LAYERS,
        **MOVES,
        "QuantizeLinear": quantize,
        "DequantizeLinear": dequantize,
    }


def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """QuantizeLinear: ``clamp(round(x / s) + z)`` as float32 numbers.

    The rounding counts as the identity in the gradient. With `dequantize` behind it, the scale then
    has the gradient of a learned step size (Esser et al. 2020, "Learned Step Size Quantization",
    arXiv:1902.08153, equation 3): ``round(x/s) - x/s`` within the range, its end outside.
    """
    import torch

    dtype = torch.uint8 if zero is None else zero.dtype
    if zero is None and "output_dtype" in call.attributes:
        dtype = _torch_dtype(int(call.attributes["output_dtype"]))
    if call.get("block_size", 0):
        raise call.unsupported("scales in blocks")
    limits = torch.iinfo(dtype)
    return rounded(x, *_along(call, x, scale, zero), limits.min, limits.max)


def rounded(x: Tensor, scale: Tensor, zero: Tensor | float, low: float, high: float) -> Tensor:
    """``clamp(round(x / scale) + zero, low, high)``, straight through the rounding."""
    result: Tensor = _rounding().apply(x, scale, zero, low, high)
    return result


@cache
def _rounding() -> Any:
    """`rounded` with its gradient, in one: torch would keep and walk through six tensors."""
    import torch

    class Rounding(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | float, low: float, high: float
        ) -> Tensor:
            steps = x / scale
            integers = steps.round().add_(zero)
            inside = (integers >= low).logical_and_(integers <= high)
            ctx.save_for_backward(steps, inside, scale)
            return integers.clamp_(low, high)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            steps, inside, scale = ctx.saved_tensors
            passed = (gradients[0] * inside).div_(scale)
            of_scale = None
            if ctx.needs_input_grad[1]:
                of_scale = -(passed * steps).sum_to_size(scale.shape)
            return passed if ctx.needs_input_grad[0] else None, of_scale, None, None, None

    return Rounding


def dequantize(call: Call, q: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """DequantizeLinear: ``(q - z) * s``."""
    if call.get("block_size", 0):
        raise call.unsupported("scales in blocks")
    scale, shift = _along(call, q, scale, zero)
    floats = q.to(scale.dtype)
    return (floats if isinstance(shift, float) else floats - shift) * scale


def _along(
    call: Call, x: Tensor, scale: Tensor, zero: Tensor | None
) -> tuple[Tensor, Tensor | float]:
    """The scale and the zero point in a shape that broadcasts with `x`."""
    shape: list[int] = []
    if scale.numel() > 1:
        axis = int(call.get("axis", 1)) % x.dim()
        shape = [-1 if index == axis else 1 for index in range(x.dim())]
    scale = scale.reshape(shape)
    if zero is None or not zero.any():
        return scale, 0.0
    return scale, zero.to(scale.dtype).reshape(shape)


def _torch_dtype(number: int) -> Any:
    import torch

    return torch.from_numpy(np.zeros(0, ir.DataType(number).numpy())).dtype


def _array(value: ir.Value) -> NDArray[Any]:
    tensor = value.const_value
    assert tensor is not None
    return tensor.numpy()


def _attribute(attribute: ir.Attr) -> Any:
    """A number, a string, a list, or a torch tensor."""
    import torch

    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return torch.from_numpy(np.array(value.numpy()))
    if attribute.type == ir.AttributeType.GRAPH:
        return None
    return list(value) if isinstance(value, (list, tuple)) else value


def _with_ends(steps: Sequence[Step], kept: set[str]) -> list[Step]:
    """The steps with what dies at each: no activation is held longer than it is read."""
    alive = set(kept)
    result = []
    for step in reversed(steps):
        named = dict.fromkeys([*(n for n in step.inputs if n), *(n for n in step.outputs if n)])
        dying = tuple(name for name in named if name not in alive)
        alive.update(dying)
        result.append(Step(step.node, step.operator, step.call, step.inputs, step.outputs, dying))
    return result[::-1]
