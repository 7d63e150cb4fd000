"""Analyses: facts about a model that passes share, computed once and invalidated by changes.

A result is plain data that speaks of names, so it holds for every clone of the model. A pass that
changes the model invalidates all results but those it declares in `Pass.preserves`; a pass that
changes nothing leaves all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel

Result = TypeVar("Result")


class Analysis(ABC, Generic[Result]):
    """A fact about a model; stateless."""

    @staticmethod
    @abstractmethod
    def compute(model: OnnxModel) -> Any:
        """The fact, as plain data without references into the graph."""


class QuantizationNodes(Analysis[tuple[str, ...]]):
    """The nodes that quantize, dequantize or compute on integers: float arithmetic around them
    must not be rewritten, because one ulp flips a rounding."""

    @staticmethod
    def compute(model: OnnxModel) -> tuple[str, ...]:
        """Names of the nodes (of their first output where a node has none), in graph order."""
        return tuple(
            node.name or node.outputs[0].name or node.op_type
            for node in model.ir.graph.all_nodes()
            if node.op_type in _QUANTIZATION or node.op_type.startswith("QLinear")
        )


_QUANTIZATION = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QuantizeLinear",
    }
)


class Analyses:
    """The results known of one model."""

    def __init__(
        self, model: OnnxModel, known: dict[type[Analysis[Any]], Any] | None = None
    ) -> None:
        self._model = model
        self._known = {} if known is None else known

    def get(self, kind: type[Analysis[Result]]) -> Result:
        """The result of `kind`, computed when it is asked for the first time."""
        if kind not in self._known:
            self._known[kind] = kind.compute(self._model)
        result: Result = self._known[kind]
        return result

    def preserved(self, kinds: frozenset[type[Analysis[Any]]]) -> dict[type[Analysis[Any]], Any]:
        """What of the known results still holds after a pass that preserves `kinds`."""
        return {kind: result for kind, result in self._known.items() if kind in kinds}
