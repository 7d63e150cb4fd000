"""From what a build found out to the report's tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from optimc.core.model import Level, OnnxModel
from optimc.core.targets import Engine
from optimc.measure.latency import Latency
from optimc.measure.statistics import Interval, Percentile
from optimc.pipeline.engines import Agreement, EngineProof
from optimc.pipeline.gate import CaseFigures, Figures
from optimc.pipeline.manager import PassOutcome
from optimc.pipeline.plan import Cell
from optimc.pipeline.timing import DATA, CellTiming, Footprint
from optimc.pipeline.verification import Verdict
from optimc.report import schema
from optimc.report.values import Skipped, Status

if TYPE_CHECKING:
    from optimc.core.model import Signature
    from optimc.pipeline.evaluation import MetricResult
    from optimc.pipeline.recipe.schema import DimRange, InputSpec


@dataclass
class CellResult:
    """Everything known of one cell, as the build goes on."""

    cell: Cell
    status: Status = "built"
    reason: str | None = None
    outcomes: tuple[PassOutcome, ...] = ()
    origin: OnnxModel | None = None
    """What the cell's ONNX passes started from, where passes of the torch level changed the module;
    else None, for the source."""
    engine: Engine | None = None
    proof: EngineProof | None = None
    metrics: Mapping[str, MetricResult] | str = "not measured"
    cases: Mapping[str, CellTiming] | str = "not measured"
    """By benchmark case."""
    load_ms: float | str = "not measured"
    footprint: Footprint | str = "not measured"
    options: Mapping[str, schema.ChosenOption] = field(default_factory=dict)
    """Options of the target that the recipe leaves open, as they were chosen."""
    unverified: list[str] = field(default_factory=list)
    kit: Path | None = None
    """What finishes a deferred cell where its target can be built."""
    kit_evaluation: str | None = None
    """Why the kit holds no evaluation data; None where it does."""

    def fail(self, reason: str) -> None:
        """The first failure is the one that is told."""
        if self.status in ("built", "deferred"):
            self.status, self.reason = "failed", reason

    def final_model(self, source: OnnxModel) -> OnnxModel:
        """What the cell's engine is made from; `source` where it has no passes."""
        if not self.outcomes:
            return source
        model = self.outcomes[-1].model
        assert isinstance(model, OnnxModel)
        return model

    @property
    def lossy(self) -> bool:
        """Whether a pass that may change the numbers had a part in the model."""
        return any(o.modified and o.lossy for o in self.outcomes)

    @property
    def lossy_since_export(self) -> bool:
        """The same of the passes behind the last one of the torch level; of all without any."""
        return any(o.modified and o.lossy for o in self._since_export())

    @property
    def exported(self) -> OnnxModel | None:
        """What passes on the module left, as it was exported; None where there were none."""
        models = [o.model for o in self.outcomes if o.name == "export"]
        return models[-1] if models and isinstance(models[-1], OnnxModel) else None

    def _since_export(self) -> tuple[PassOutcome, ...]:
        levels = [o.model.level is Level.TORCH for o in self.outcomes]
        return (
            self.outcomes[len(levels) - levels[::-1].index(True) :]
            if any(levels)
            else (self.outcomes)
        )


def skipped(reason: str) -> Skipped:
    """A figure that is not there."""
    return Skipped(skipped=reason)


def measured(value: float | str | None, missing: str = "not measured") -> float | Skipped:
    """A figure, or why there is none."""
    if isinstance(value, str):
        return skipped(value)
    return skipped(missing) if value is None else float(value)


def pass_report(outcome: PassOutcome) -> schema.PassReport:
    """One line of the passes' table."""
    finding = outcome.finding
    nothing = "nothing changed" if finding.verdict is Verdict.UNCHANGED else "not compared"
    return schema.PassReport(
        name=outcome.name,
        options=dict(outcome.options),
        modified=outcome.modified,
        verdict=finding.verdict.value,
        reason=finding.reason,
        max_abs_error=measured(finding.max_abs_error, nothing),
        sqnr_db=measured(finding.sqnr_db, nothing),
        nodes=outcome.nodes,
        bytes=outcome.bytes,
        seconds=round(outcome.seconds, 4),
        cache="hit" if outcome.cached else "miss",
        rewrites=len(outcome.rewrites),
        refusals=tuple(
            schema.Refusal(node=r["where"] or r["rule"], reason=f"{r['rule']}: {r['reason']}")
            for r in outcome.refusals
        ),
    )


def cell_report(result: CellResult) -> schema.Cell:
    """One cell of the report."""
    cases = result.cases
    first = next(iter(cases.values()), None) if isinstance(cases, Mapping) else None
    why = cases if isinstance(cases, str) else "no benchmark case"
    return schema.Cell(
        variant=result.cell.variant,
        target=result.cell.target_name,
        status=result.status,
        reason=result.reason,
        passes=tuple(pass_report(outcome) for outcome in result.outcomes),
        engine=engine_report(result),
        metrics=_metrics(result.metrics),
        latency=_latencies(result) if isinstance(cases, Mapping) else skipped(why),
        speedup=speedup_report(first.speedup if first else why, "source on ONNX Runtime"),
        speedup_same_runtime=speedup_report(
            first.speedup_same_runtime if first else why, f"source on {result.cell.target_name}"
        ),
        throughput_per_s=measured(_throughput(result)),
        throughput=throughput_report(result.footprint, first_sizes(result)),
        options=dict(result.options),
        unverified=tuple(result.unverified),
    )


def engine_report(result: CellResult) -> schema.EngineReport | Skipped:
    """The engine's files and proof."""
    engine, proof = result.engine, result.proof
    if engine is None or proof is None:
        return skipped(result.reason or "not built")
    identity = engine.manifest["identity"]
    sqnr = proof.against_source.sqnr_db if proof.against_source else None
    quantized = "no INT8 in this cell"
    return schema.EngineReport(
        path=f"artifacts/{result.cell.variant}/{result.cell.target_name}",
        sha256=files_digest(engine),
        bytes=engine.bytes,
        identity=identity["sha256"],
        identity_of="files" if identity["of"] == "files" else "onnx_graph",
        precision=proof.precision if proof.precision else skipped("the runtime does not say"),
        verdict=proof.finding.verdict.value,
        sqnr_db=measured(sqnr, "not compared"),
        verification=schema.Verification(
            against_onnx=_comparison(proof.against_onnx, proof),
            against_source=_comparison(proof.against_source, proof),
        ),
        int8_share=measured(proof.int8_share, quantized),
        float_islands=tuple(
            schema.FloatIsland(node=node, reason=reason) for node, reason in proof.islands
        ),
        load_ms=measured(result.load_ms),
        first_result_ms=_footprint(result, "first_result_ms"),
        peak_memory_mb=_footprint(result, "peak_memory_mb"),
        steady_memory_mb=_footprint(result, "steady_memory_mb"),
    )


def _footprint(result: CellResult, name: str) -> float | Skipped:
    found = result.footprint
    return measured(found if isinstance(found, str) else getattr(found, name))


def _throughput(result: CellResult) -> float | str:
    found = result.footprint
    if isinstance(found, str):
        return found
    return found.throughput if isinstance(found.throughput, str) else found.throughput.per_s.point


def first_sizes(result: CellResult) -> dict[str, int]:
    """The sizes of the first benchmark case."""
    cases = result.cases if isinstance(result.cases, Mapping) else {}
    return parse_case(next(iter(cases), ""))


def throughput_report(found: Footprint | str, case: Mapping[str, int]) -> schema.Throughput | None:
    """Samples per second; None where `throughput_per_s` says why there is no figure."""
    throughput = found if isinstance(found, str) else found.throughput
    if isinstance(throughput, str):
        return None
    return schema.Throughput(
        per_s=throughput.per_s.point,
        ci95=throughput.per_s.ci95,
        streams=throughput.streams,
        threads=throughput.threads,
        batch=throughput.batch,
        case=dict(case),
    )


def files_digest(engine: Engine) -> str:
    """Names the engine's files as they are, deterministic or not."""
    from optimc.core.digest import digest_of

    return digest_of(engine.manifest["files"])


def _comparison(agreement: Agreement | None, proof: EngineProof) -> schema.Comparison | Skipped:
    if agreement is None:
        return skipped(proof.finding.reason or "not compared")
    return schema.Comparison(
        max_rel_error=agreement.max_rel_error,
        sqnr_db=agreement.sqnr_db,
        samples=agreement.samples,
    )


def _metrics(metrics: Mapping[str, MetricResult] | str) -> dict[str, schema.Metric] | Skipped:
    if isinstance(metrics, str):
        return skipped(metrics)
    return {
        name: schema.Metric(
            value=result.value,
            source=result.source,
            drop=measured(result.drop if isinstance(result.drop, str) else result.drop.point),
            ci95=skipped(result.drop) if isinstance(result.drop, str) else result.drop.ci95,
            samples=result.samples,
            better=result.better,
            method=None if isinstance(result.drop, str) else result.drop.method,
            lost=_found(result.evidence.lost),
            won=_found(result.evidence.won),
            mcnemar_p=_found(result.evidence.mcnemar_p),
            agreement=_found(result.evidence.agreement),
            worst=tuple(
                schema.WorstSample(
                    number=sample.number,
                    id=result.names.get(sample.number, str(sample.number)),
                    source=sample.source,
                    candidate=sample.candidate,
                )
                for sample in result.evidence.worst
            ),
        )
        for name, result in metrics.items()
    }


Figure = TypeVar("Figure", int, float)


def _found(value: Figure | str) -> Figure | None:
    """The figure; None where the metric knows no such thing, which is no gap in the report."""
    return None if isinstance(value, str) else value


def latency_report(case: str, latency: Latency, threads: int) -> schema.Latency:
    """Percentiles of one engine on the case with this name."""

    def figure(value: Percentile | str) -> float | Skipped:
        return skipped(value) if isinstance(value, str) else value.ms

    def ends(value: Percentile | str) -> tuple[float, float] | None:
        return None if isinstance(value, str) else value.ci95

    return schema.Latency(
        case=parse_case(case),
        p50_ms=figure(latency.p50),
        p90_ms=figure(latency.p90),
        p99_ms=figure(latency.p99),
        p50_ci95=ends(latency.p50),
        p90_ci95=ends(latency.p90),
        p99_ci95=ends(latency.p99),
        runs=latency.runs,
        threads=threads,
        sessions=len(latency.load_ms),
        steady=latency.steady,
        inputs="data" if case == DATA else "seeded",
    )


def _latencies(result: CellResult) -> tuple[schema.Latency, ...]:
    assert isinstance(result.cases, Mapping)
    threads = threads_of(result.cell)
    return tuple(
        latency_report(case, timing.latency, threads) for case, timing in result.cases.items()
    )


def parse_case(name: str) -> dict[str, int]:
    """The sizes behind a case's name (``batch=1,length=128``); none for inputs from the data."""
    pairs = (item.partition("=") for item in name.split(",") if "=" in item)
    return {dim: int(size) for dim, _, size in pairs}


def threads_of(cell: Cell) -> int:
    """The threads that the cell's engine runs with."""
    import os

    return int(getattr(cell.target, "threads", None) or os.cpu_count() or 1)


def speedup_report(value: Interval | str, against: str) -> schema.Speedup | Skipped:
    """A speed-up over `against`, or why there is none."""
    if isinstance(value, str):
        return skipped(value)
    return schema.Speedup(
        value=value.point, ci95=value.ci95, confidence=0.95, sessions=value.n, against=against
    )


def noise_floor(value: Interval | str) -> schema.Ratio | Skipped:
    """The source against itself."""
    if isinstance(value, str):
        return skipped(value)
    return schema.Ratio(value=value.point, ci95=value.ci95, confidence=0.95, sessions=value.n)


def figures_of(result: CellResult) -> Figures:
    """What the gate asks of a cell."""
    metrics = result.metrics if isinstance(result.metrics, Mapping) else {}
    cases = result.cases if isinstance(result.cases, Mapping) else {}
    return Figures(
        variant=result.cell.variant,
        target=result.cell.target_name,
        built=result.status == "built",
        drops={name: metric.drop for name, metric in metrics.items()},
        metrics={name: metric.value for name, metric in metrics.items()},
        lower_is_better={name: metric.better == "lower" for name, metric in metrics.items()},
        cases={
            name: CaseFigures(
                speedup=timing.speedup,
                latency={
                    "p50": timing.latency.p50,
                    "p90": timing.latency.p90,
                    "p99": timing.latency.p99,
                },
            )
            for name, timing in cases.items()
        },
        throughput_per_s=_throughput_interval(result.footprint),
        size_mb=result.engine.bytes / 1e6 if result.engine else "not built",
        budgets=tuple(o.budget for o in result.outcomes if o.budget is not None),
        not_measured=result.metrics if isinstance(result.metrics, str) else "no such metric",
        not_timed=result.cases if isinstance(result.cases, str) else "no such case",
    )


def _throughput_interval(found: Footprint | str) -> Interval | str:
    throughput = found if isinstance(found, str) else found.throughput
    return throughput if isinstance(throughput, str) else throughput.per_s


def now() -> str:
    """UTC, ISO 8601, for the report."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unique(lines: Sequence[str]) -> tuple[str, ...]:
    """Lines once each, in order."""
    return tuple(dict.fromkeys(lines))


def environment(tools: Mapping[str, str]) -> dict[str, Any]:
    """Versions of Python and the tools that had a part."""
    import platform

    return {"python": platform.python_version(), **tools}


def inputs_report(
    signature: Signature, declared: Mapping[str, InputSpec]
) -> dict[str, schema.InputReport]:
    """The source's inputs, with the values that the recipe declares."""
    found = {}
    for spec in signature.inputs:
        said = declared.get(spec.name)
        values = (said.range or said.values) if said else None
        found[spec.name] = schema.InputReport(dtype=spec.dtype, shape=spec.shape, values=values)
    return found


def dims_report(dims: Mapping[str, DimRange]) -> dict[str, schema.DimReport]:
    """The sizes of the dynamic dims."""
    return {name: schema.DimReport(**dim.model_dump()) for name, dim in dims.items()}
