"""The proof of a kit's engine, on the probes and the answers that the kit brought with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimc.core.model import OnnxModel
from optimc.core.targets import Engine
from optimc.core.worker import Limits
from optimc.pipeline.compare import Outputs, compare_on_data, compare_outputs
from optimc.pipeline.engines import Agreement, EngineProof
from optimc.pipeline.inner_values import InnerValues
from optimc.pipeline.judging import Judge, Judged, aligned, in_both
from optimc.pipeline.kit_file import KitFile, kit_probes
from optimc.pipeline.probes import Probe
from optimc.pipeline.verification import ENGINE_TOLERANCE, Finding, Verdict, judge_engine
from optimc.targets.client import EngineWorker


def prove_on_probes(
    kit: KitFile,
    folder: Path,
    engine: Engine,
    model: OnnxModel,
    source: OnnxModel,
    inner: InnerValues,
    limits: Limits,
) -> EngineProof:
    """The engine on the kit's probes, against what its graph and the source gave.

    `model` is what the engine was built from, `source` what came in. Raises CellError where the
    engine does not run.
    """
    from optimc.core.onnx_signature import holds_four_bits

    feeds, of_model, of_source = kit_probes(kit, folder, model.signature)
    probes = [Probe(p.label, f, p.real) for p, f in zip(kit.probes, feeds, strict=True)]
    with EngineWorker(engine, name=f"the engine {kit.cell}", limits=limits) as worker:
        worker.reopen()
        taken = worker.precisions()
        answers = [worker.run(probe.feeds) for probe in probes]
    precision = _precision(model)
    allowed = 0.0 if kit.lossy else ENGINE_TOLERANCE[precision]
    stable = [name for name in kit.compared if all(name in run for run in of_source)]

    def judge(of: OnnxModel, runs: Sequence[Outputs]) -> Judged:
        fitting = aligned(runs, answers, model.signature)
        return Judge(inner, of, frozenset(), stable, runs, fitting, allowed).judged()

    judged = in_both(judge(source, of_source), judge(model, of_model))
    if not judged.names:
        return _proved(judged.concluded(Finding(Verdict.UNVERIFIED)), (), taken, kit.lossy)
    finding = judge_engine(
        precision,
        lossy=kit.lossy,
        probes=probes,
        source=of_source,
        graph=of_model,
        engine=answers,
        names=judged.names,
        four_bits=holds_four_bits(model.ir),
    )
    agreements = []
    for reference in (of_model, of_source):
        pair = (reference, answers, judged.names)
        found = compare_on_data(probes, *pair) if kit.lossy else compare_outputs(*pair)
        agreements.append(Agreement(found.max_rel, found.sqnr_db, len(answers)))
    return _proved(judged.concluded(finding), agreements, taken, kit.lossy)


def _precision(model: OnnxModel) -> str:
    """What decides the tolerance: the coarsest float type of a strongly typed graph."""
    from optimc.core.onnx_signature import holds_float16

    return "f16" if holds_float16(model.ir) else "f32"


def _proved(
    finding: Finding, agreements: Sequence[Agreement], taken: Mapping[str, Any], lossy: bool
) -> EngineProof:
    graph, source = agreements if agreements else (None, None)
    islands = tuple((str(i["node"]), str(i["reason"])) for i in taken.get("islands", ()))
    share = taken.get("int8_share") if lossy else None
    return EngineProof(finding, graph, source, taken.get("precision"), share, islands)
