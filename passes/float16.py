"""Half precision: IEEE 754 binary16, with 11 significant bits, up to 65504.

    half(x) = x * (1 + d)    |d| <= 2^-11    for 2^-14 <= |x| <= 65504

Below 2^-14 digits are lost, above 65504 there is infinity (IEEE 754-2019, table 3.5). What sums,
squares, divides or raises to powers leaves that range most easily, and stays in float32, as in
mixed-precision training (Micikevicius et al. 2018, "Mixed Precision Training", section 3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from optimc.core.errors import PreconditionError
from optimc.core.model import Level, Model, OnnxModel
from optimc.core.passes import Effect, Pass, PassContext, PassResult, tolerance

if TYPE_CHECKING:
    import onnx_ir as ir


class Float16(Pass):
    """Converts weights and arithmetic from float32 to float16; inputs and outputs stay float32.

    It halves the file. Accelerators have faster kernels for it; CPUs have few, and cast back and
    forth: `storage_only` gives them the smaller file alone.

    Rewrites: gives convolutions, matrix products, what holds large weights, and the operators
        between them float16 inputs, constants and results, with a Cast wherever float32 begins or
        ends. One numbered rewrite is one operator. With `storage_only` it is one weight, stored in
        float16 behind a Cast to float32; weights under 256 elements stay. With
        `keep_interface: false`, each float32 input and output becomes float16, under its name.
    Refuses: normalizations, softmax, exponentials, powers, roots, sums and means of more than 64
        elements, squares, divisions by what is not constant, recurrent layers, coordinates (Resize,
        TopK, NonMaxSuppression and the like); operators with constants beyond 65504 or all below
        2^-14, and what reads such large numbers; operators with subgraphs (If, Loop, Scan), those
        for which ONNX allows no float16, and those of other domains; single operators between
        others that stay in float32; what `keep_float` names. A model that is quantized, or in which
        nothing can be converted, is an error.
    Accuracy: within 1e-2 of each output's scale. Where a model breaks that, find the operator with
        `optimc build --limit float16=N` and name it in `keep_float`.
    Options: keep_float, storage_only, keep_interface. Run `simplify` and `fuse` before it:
        constants in float16 are not folded, and fused weights would be rounded twice.
    """

    keep_float: list[str] = Field(default=[])
    """Operators that stay in float32: patterns (`*`, `?`, `[...]`) of node names, of source names
    of their outputs, or operator types such as `Gemm`. With `storage_only`: names of weights."""
    storage_only: bool = False
    """Whether only the weights are stored in float16, and everything is computed in float32."""
    keep_interface: bool = True
    """Whether inputs and outputs stay float32. Without, whoever feeds the engine halves its copies,
    and has to convert: the manifest and the bundles say the types."""

    level: ClassVar[Level] = Level.ONNX
    reads_names: ClassVar[bool] = True
    required_by_default: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx", "onnx-ir")

    @property
    def changes_dtypes(self) -> bool:
        """Whether inputs and outputs change."""
        return not self.keep_interface

    @property
    def effect(self) -> Effect:
        """TOLERANCE with the bound of float16 engines."""
        return tolerance(1e-2)

    def check(self, model: Model, context: PassContext) -> None:
        """Raises PreconditionError for quantized models and for patterns without effect."""
        from optimc.core.analyses import QuantizationNodes
        from optimc.passes._patterns import check_nodes, near_patterns

        assert isinstance(model, OnnxModel)
        quantized = context.analysis(QuantizationNodes, model)
        if quantized:
            raise PreconditionError(
                f"the model is quantized: {len(quantized)} nodes such as `{quantized[0]}`, before"
                " which a rounding to float16 would flip integers",
                fix="take float16 or the quantization out of this variant",
            )
        graph = model.ir.graph
        if not self.storage_only:
            check_nodes("keep_float", self.keep_float, graph)
            return
        for pattern in self.keep_float:
            if not any(_names_weight(name, pattern) for name in graph.initializers):
                raise PreconditionError(
                    f"keep_float: `{pattern}` names no weight of the model",
                    fix=near_patterns(pattern, graph.initializers),
                )

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class. Raises PreconditionError where nothing can be converted."""
        self.check(model, context)
        before = model.digest
        stats = (
            self._store(model.ir, context)
            if self.storage_only
            else self._convert(model.ir, context)
        )
        log = context.log
        if not self.keep_interface:
            from optimc.passes._float16_interface import halve_interface

            stats["interface"] = halve_interface(model.ir, log)
        result = model.sealed()
        return PassResult(result, result.digest != before, stats, log.rewrites, log.refusals)

    def _store(self, model: ir.Model, context: PassContext) -> dict[str, int]:
        from optimc.passes._float16_store import storable, store

        def kept(name: str) -> str | None:
            return next((p for p in self.keep_float if _names_weight(name, p)), None)

        weights = storable(model, context.log, kept)
        if not weights:
            _check_half(model, context, "no weight of this model can be stored in float16")
        return {"weights": store(model, weights, context.log)}

    def _convert(self, model: ir.Model, context: PassContext) -> dict[str, int]:
        from optimc.passes._float16_convert import convert
        from optimc.passes._float16_select import select
        from optimc.passes._simplify_shapes import infer_shapes
        from optimc.passes._simplify_work import where
        from optimc.passes.quantize_int8 import matches

        def kept(node: ir.Node) -> str | None:
            return next((p for p in self.keep_float if matches(node, p)), None)

        infer_shapes(model)
        log = context.log
        nodes = select(model, log, kept)
        if not nodes:
            _check_half(model, context, "nothing in this model can be converted to float16")
        chosen = [node for node in nodes if log.allow(f"float16 {node.op_type}", where(node))]
        return {"converted": len(chosen), "casts": convert(model, chosen)}


def _check_half(model: ir.Model, context: PassContext, what: str) -> None:
    """Raises PreconditionError where there is no float16 yet, and none comes."""
    from optimc.core.onnx_signature import holds_float16

    if not holds_float16(model):
        refusals = context.log.refusals[:3]
        raise PreconditionError(
            what + "".join(f"; {refusal.where}: {refusal.reason}" for refusal in refusals),
            fix="take float16 out of this variant, or keep less in float32",
        )


def _names_weight(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern)
