"""Running passes and models in tests, in this process: one pass, one model, seeded inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.model import OnnxModel
from optimc.core.passes import (
    Calibration,
    Device,
    Pass,
    PassContext,
    PassResult,
    RewriteKey,
    RewriteLog,
    Training,
    Tuning,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.core.targets import TargetSpec

    Feeds = Mapping[str, NDArray[Any]]


def run_pass(
    pass_: Pass,
    model: OnnxModel,
    *,
    spec: TargetSpec | None = None,
    calibration: Calibration | None = None,
    quantized_from: OnnxModel | None = None,
    tuning: Tuning | None = None,
    device: Device | None = None,
    training: Training | None = None,
    unfinished: Path | None = None,
    choice: Any = None,
    limit: int | None = None,
    only: frozenset[RewriteKey] | None = None,
    seed: int = 0,
) -> PassResult:
    """Runs `pass_` on a clone of `model` as the pass manager does; `model` stays as it is.

    `limit` stops it after that many rewrites, `only` names those it may do. The result's model is
    an `OnnxModel` with nothing remembered of the input. Raises what the pass raises.
    """
    clone = model.clone()
    with tempfile.TemporaryDirectory(prefix="optimc-pass-") as folder:
        context = PassContext(
            reads=pass_.needs | pass_.wants,
            log=RewriteLog(limit, only=only),
            seed=seed,
            workspace=Path(folder),
            target_spec=spec,
            calibration_data=calibration,
            quantized_from=quantized_from,
            tuning_data=tuning,
            timed_device=device,
            choice=choice,
            training_data=training,
            unfinished=unfinished,
        )
        pass_.check(clone, context)
        result = pass_.run(clone, context)
    assert isinstance(result.model, OnnxModel)
    return replace(result, model=result.model.sealed())


def run_model(model: OnnxModel, feeds: Sequence[Feeds]) -> list[dict[str, NDArray[Any]]]:
    """The outputs for each of `feeds`, by ONNX Runtime with graph optimizations off."""
    import onnxruntime

    from optimc.targets.feeds import in_its_types

    with tempfile.TemporaryDirectory(prefix="optimc-run-") as folder:
        path = Path(folder) / "model.onnx"
        model.write_onnx(path)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        fed = [in_its_types(model.signature, one) for one in feeds]
        return [dict(zip(names, session.run(names, dict(f)), strict=True)) for f in fed]


def seeded_feeds(model: OnnxModel, *, sizes: Sequence[int] = (1, 3), seed: int = 0) -> list[Feeds]:
    """Inputs for `model`, one set for each of `sizes`, which all dynamic dims take together.

    Floats are standard normal, integers 0 or 1.
    """
    import numpy as np

    from optimc.pipeline.probes import seeded_array

    signature = model.signature
    rng = np.random.default_rng(seed)
    rounds = list(sizes) if signature.symbols else [sizes[0], sizes[0]]
    return [
        {
            spec.name: seeded_array(spec, None, dict.fromkeys(signature.symbols, size), rng)
            for spec in signature.inputs
        }
        for size in rounds
    ]


def as_model(graph: Any) -> OnnxModel:
    """An `OnnxModel` of an onnx.ModelProto or onnx_ir.Model as the ONNX front end leaves it.

    Nothing is checked; weights are not copied.
    """
    import onnx
    import onnx_ir

    from optimc.frontends import onnx_normal
    from optimc.frontends.onnx import name_dim

    if isinstance(graph, onnx.ModelProto):
        graph = onnx_ir.from_proto(graph)
    onnx_normal.inline_functions(graph)
    onnx_normal.initializers_off_inputs(graph)
    onnx_normal.name_dims(graph, {}, name_dim)
    onnx_normal.finish(graph)
    return OnnxModel(graph)
