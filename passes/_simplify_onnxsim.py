"""`simplify` by onnxsim: a tool that grew very large, so it runs apart and its result is checked.

The whole result counts as one rewrite. onnxsim keeps names, but a fused value may bear the name of
one that had other numbers: source names are kept only where running both models proves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.analyses import QuantizationNodes
from optimc.core.custom_ops import DIGESTS_KEY
from optimc.core.errors import OptimcError
from optimc.core.model import SOURCE_KEY, OnnxModel
from optimc.core.worker import Limits, Worker

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from optimc.core.passes import PassContext

_RULE = "onnxsim"
_WHERE = "the whole graph"
_MAX_BYTES = 2**30
_MAX_ROUNDS = 5
_SECONDS = 600.0
_SIZES = (1, 2, 32)
_SAME = 1e-4


def run_onnxsim(model: OnnxModel, context: PassContext, fold_limit: int) -> OnnxModel:
    """The simplified model, or `model` with the reason in the log where it cannot be had."""
    reason = None
    if model.stats.bytes > _MAX_BYTES:
        reason = f"the model has {model.stats.bytes:,} bytes of weights, onnxsim copies them often"
    if DIGESTS_KEY in model.ir.metadata_props:
        reason = "onnxsim does not load the libraries of the model's custom operators"
    if context.analysis(QuantizationNodes, model):
        reason = "float arithmetic stays as it is in a quantized graph"
    if reason is None:
        try:
            result = _to_fixpoint(model, context.workspace, fold_limit)
        except (OptimcError, ValueError) as error:
            reason = f"onnxsim failed: {' '.join(str(error).split())[:300]}"
    if reason is not None:
        context.log.refuse(_RULE, _WHERE, reason)
        return model.sealed()
    if result.digest == model.digest or not context.log.allow(_RULE, _WHERE):
        return model.sealed()
    return result


def _to_fixpoint(model: OnnxModel, workspace: Path, fold_limit: int) -> OnnxModel:
    service = "optimc.passes._simplify_onnxsim:OnnxsimService"
    with Worker(service, name="onnxsim", limits=Limits(seconds=_SECONDS)) as worker:
        for turn in range(_MAX_ROUNDS):
            source, target = workspace / f"{turn}.onnx", workspace / f"{turn}-simplified.onnx"
            model.write_onnx(source)
            reply = worker.call(
                "simplify", source=str(source), target=str(target), fold_limit=fold_limit
            )
            after = _read(target, model, reply.data["agreeing"])
            if after.digest == model.digest:
                return model
            model = after
    return model


def _read(path: Path, before: OnnxModel, agreeing: list[str]) -> OnnxModel:
    """Reads onnxsim's result and gives it the interface and the provenance of `before`."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    from optimc.core.onnx_digest import tensor_digest
    from optimc.core.onnx_names import make_names_unique

    model = onnx_ir.load(path)
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.ir_version = before.ir.ir_version
    _restore_interface(before.ir, model)
    make_names_unique(model)
    sources = before.provenance
    old = {name: value.const_value for name, value in before.ir.graph.initializers.items()}
    for name, value in model.graph.initializers.items():
        known = old.get(name)
        if known is None or value.const_value is None or name not in sources:
            continue
        if tensor_digest(value.const_value) == tensor_digest(known):
            value.meta[SOURCE_KEY] = sources[name]
    kept = {*agreeing, *(value.name for value in model.graph.inputs)}
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.name is not None and value.name in kept and value.name in sources:
            value.meta[SOURCE_KEY] = sources[value.name]
    return OnnxModel(model)


def _restore_interface(before: ir.Model, after: ir.Model) -> None:
    for side in ("inputs", "outputs"):
        old, new = getattr(before.graph, side), getattr(after.graph, side)
        if [v.name for v in old] != [v.name for v in new]:
            raise ValueError(f"it changed the names of the {side}")
        for was, now in zip(old, new, strict=True):
            if was.dtype != now.dtype:
                raise ValueError(f"it changed the dtype of `{was.name}`")
            now.shape = was.shape


class OnnxsimService:
    """Runs onnxsim in a worker."""

    def simplify(
        self, arrays: Mapping[str, Any], source: str, target: str, fold_limit: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Simplifies the file `source` to `target`; returns the values that agree in both."""
        import onnx
        import onnxsim

        simplified, _ = onnxsim.simplify(source, tensor_size_threshold=f"{fold_limit}B")
        onnx.checker.check_model(simplified, full_check=True)
        onnx.save(simplified, target)
        return {"agreeing": _agreeing(onnx.load(source), simplified)}, {}


def _agreeing(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """Values of one name that nodes of both main graphs compute and that have the same numbers."""
    from optimc.core.onnx_session import (
        max_relative_error,
        reference_session,
        run_or_none,
        seeded_feeds,
    )

    computed = [{name for node in m.graph.node for name in node.output} for m in (before, after)]
    names = sorted((computed[0] & computed[1]) - {""})
    old, new = (reference_session(_with_outputs(model, names)) for model in (before, after))
    agreeing = set(names)
    ran = False
    for size in _SIZES:
        feeds = seeded_feeds(old, size)
        expected = run_or_none(old, names, feeds)
        if expected is None:
            continue
        ran = True
        for name, a, b in zip(names, expected, new.run(names, feeds), strict=True):
            if not hasattr(a, "dtype") or max_relative_error(a, b) > _SAME:
                agreeing.discard(name)
    return sorted(agreeing) if ran else []


def _with_outputs(model: onnx.ModelProto, names: list[str]) -> bytes:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in given)
    data: bytes = copy.SerializeToString()
    return data
