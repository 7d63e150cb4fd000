"""`optimc finish KIT`: builds, proves, measures and judges a deferred cell where its target is."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc import __version__
from optimc.core.errors import CellError, InputError, OptimcError, UnavailableError
from optimc.core.files import atomic_folder, check_folder
from optimc.core.model import OnnxModel
from optimc.core.targets import DimSizes, Engine
from optimc.core.worker import Limits
from optimc.pipeline import assemble
from optimc.pipeline.assemble import CellResult, figures_of, skipped
from optimc.pipeline.cache import Cache
from optimc.pipeline.cases import samples_in
from optimc.pipeline.compare import compare_on_data, compare_outputs
from optimc.pipeline.device_times import device_times_note
from optimc.pipeline.engines import Agreement, EngineBuilder, EngineProof
from optimc.pipeline.gate import GateResult, judge
from optimc.pipeline.inner_values import InnerValues
from optimc.pipeline.judging import Judge, aligned, in_both
from optimc.pipeline.kit_file import (
    EVALUATION,
    KIT,
    REPORT,
    KitFile,
    kit_model,
    kit_probes,
    kit_target,
    read_kit,
)
from optimc.pipeline.plan import Cell
from optimc.pipeline.probes import Probe, seeded_array
from optimc.pipeline.recipe.schema import BEST, cells_matching
from optimc.pipeline.timing import SOURCE, BuildTimings, Case, Subject, Timer
from optimc.pipeline.verification import ENGINE_TOLERANCE, Finding, Verdict, judge_engine
from optimc.pipeline.versions import tool_versions
from optimc.report import schema
from optimc.report.canonical import load_report
from optimc.report.write import write_report
from optimc.targets.client import EngineWorker

if TYPE_CHECKING:
    from optimc.measure.metric import Metric
    from optimc.pipeline.evaluation import Evaluator
    from optimc.pipeline.observer import BuildObserver

ENGINE = "engine"
_SOURCE_ON_TARGET = "source on the kit's target"
_TOOLS = ("onnx", "onnx-ir", "onnxruntime", "numpy")


@dataclass
class KitRun:
    """One kit that is being finished, see `run`."""

    folder: Path
    observer: BuildObserver
    command: str
    untrusted: bool = False
    measure: bool = True
    notes: list[str] = field(default_factory=list)
    files: tuple[Path, ...] = ()
    """The report's files, once they are written."""

    def run(self) -> schema.Report:
        """Builds, proves, measures, judges and writes into the kit.

        Raises InputError for what is no kit, UnavailableError where its target is not here.
        """
        self.kit = read_kit(self.folder)
        self.target = kit_target(self.kit, self.folder)
        self._check_trust()
        before = load_report(self.folder / REPORT)
        missing = type(self.target).unavailable()
        if missing is not None:
            raise UnavailableError(missing.reason, where=self.kit.cell, fix=missing.remedy)
        check_folder(self.folder, "KIT")
        self.limits = _limits(self.kit)
        self.model = kit_model(self.kit, self.folder, "model")
        self.source = kit_model(self.kit, self.folder, "source")
        cache = Cache()
        try:
            with cache.workspace() as workspace:
                return self._run(before, cache, workspace)
        finally:
            with contextlib.suppress(InputError):  # it must not hide why the run ended
                cache.prune()
            cache.close()

    def _check_trust(self) -> None:
        plugins = self.target.libraries()
        if self.untrusted and plugins:
            raise InputError(
                f"the kit's plugins are native code ({plugins[0].name}), which --untrusted refuses",
                where=str(self.folder / KIT),
                fix="leave out --untrusted if you trust these libraries",
            )

    def _run(self, before: schema.Report, cache: Cache, workspace: Path) -> schema.Report:
        kit = self.kit
        sizes = {name: DimSizes(d.min, d.typical, d.max) for name, d in kit.dims.items()}
        inner = InnerValues({}, workspace)
        self.cache = cache
        self.builder = EngineBuilder(cache, self.limits, workspace, kit.seed, inner, sizes)
        self.builder.progress = self.observer.on_share
        self.result = CellResult(Cell(kit.variant, kit.target, self.target))
        self.result.metrics = kit.evaluation or "not measured"
        self.observer.on_stage("building and verifying the engine")
        self._build_and_prove(inner)
        timings = BuildTimings(noise_floor="nothing was built")
        source_metrics: dict[str, float] = {}
        if self.result.status == "built":
            source_metrics = self._evaluate()
            timings = self._time()
        gate = self._judge()
        self.observer.on_stage("writing")
        report = self._report(before, gate, timings, source_metrics)
        self.files = write_report(report, self.folder)
        return report

    def _build_and_prove(self, inner: InnerValues) -> None:
        result = self.result
        try:
            engine = self.builder.build(self.kit.cell, self.target, self.model)
            self._deliver(engine)
            result.engine = engine
            result.proof = self._proof(engine, inner)
        except CellError as error:
            result.fail(f"{error.what} (fix: {error.fix})" if error.fix else error.what)
            return
        finding = result.proof.finding
        if finding.broke:
            result.fail(f"the engine did not prove itself: {finding.reason}")
        elif finding.verdict is Verdict.UNVERIFIED:
            result.unverified.append(f"engine: {finding.reason}")
        result.unverified += [f"output {n}: {why}" for n, why in self.kit.uncompared.items()]
        self.observer.on_detail(f"{self.kit.cell}: {finding.verdict}, {engine.bytes / 1e6:.2f} MB")

    def _deliver(self, engine: Engine) -> None:
        with atomic_folder(self.folder / ENGINE) as place:
            shutil.copytree(
                engine.folder,
                place,
                ignore=shutil.ignore_patterns("entry.json"),
                dirs_exist_ok=True,
            )

    def _proof(self, engine: Engine, inner: InnerValues) -> EngineProof:
        """The engine on the kit's probes, against what its graph and the source gave."""
        kit = self.kit
        feeds, graph, source = kit_probes(kit, self.folder, self.model.signature)
        probes = [Probe(p.label, f, p.real) for p, f in zip(kit.probes, feeds, strict=True)]
        with EngineWorker(engine, name=f"the engine {kit.cell}", limits=self.limits) as worker:
            worker.reopen()
            taken = worker.precisions()
            answers = [worker.run(probe.feeds) for probe in probes]
        precision = _precision(self.model)
        allowed = 0.0 if kit.lossy else ENGINE_TOLERANCE[precision]
        stable = [name for name in kit.compared if all(name in run for run in source)]
        judged = in_both(
            *(
                Judge(
                    inner,
                    of,
                    frozenset(),
                    stable,
                    runs,
                    aligned(runs, answers, self.model.signature),
                    allowed,
                ).judged()
                for of, runs in ((self.source, source), (self.model, graph))
            )
        )
        if not judged.names:
            return _proved(judged.concluded(Finding(Verdict.UNVERIFIED)), (), taken, kit.lossy)
        finding = judge_engine(
            precision,
            lossy=kit.lossy,
            probes=probes,
            source=source,
            graph=graph,
            engine=answers,
            names=judged.names,
        )
        agreements = []
        for reference in (graph, source):
            pair = (reference, answers, judged.names)
            found = compare_on_data(probes, *pair) if kit.lossy else compare_outputs(*pair)
            agreements.append(Agreement(found.max_rel, found.sqnr_db, len(answers)))
        return _proved(judged.concluded(finding), agreements, taken, kit.lossy)

    def _evaluate(self) -> dict[str, float]:
        """The metrics of the engine and of the source, where the kit has the data."""
        if not self.measure or self.kit.evaluation is not None or not self.kit.metrics:
            if self.kit.evaluation is None:
                self.result.metrics = "no metric by name" if self.measure else _NOT_ASKED
            return {}
        self.observer.on_stage("measuring accuracy")
        assert self.result.engine is not None
        try:
            evaluator = self._evaluator()
            evaluator.evaluate_source(self._reference())
            self.result.metrics = evaluator.evaluate(self.kit.cell, self.result.engine)
        except CellError as error:
            self.result.metrics = error.what
            self.result.fail(f"evaluation: {error.what}")
            return {}
        return evaluator.source_values()

    def _evaluator(self) -> Evaluator:
        from optimc.calibration.npz import NpzSource
        from optimc.pipeline.evaluation import Evaluator

        inputs = {spec.name: f"in.{i}" for i, spec in enumerate(self.model.signature.inputs)}
        labels = "labels" if self.kit.evaluation_labels else None
        dataset = NpzSource(npz=EVALUATION, inputs=inputs, labels=labels).open(self.folder, 0)
        return Evaluator(
            metrics=_known_metrics(self.kit, self.folder),
            dataset=dataset,
            raw=dataset,
            dims=self.kit.dims,
            signature=self.source.signature,
            cache=self.cache,
            limits=self.limits,
            seed=self.kit.seed,
            progress=self.observer.on_share,
        )

    def _reference(self) -> Engine:
        """The source on ONNX Runtime."""
        from optimc.targets.onnxruntime import OnnxRuntime

        target = OnnxRuntime(runtime="onnxruntime", threads=1)
        return self.builder.build("the source for onnxruntime", target, self.source)

    def _time(self) -> BuildTimings:
        result, kit = self.result, self.kit
        if not self.measure:
            result.cases = result.load_ms = result.footprint = _NOT_ASKED
            return BuildTimings(noise_floor=_NOT_ASKED)
        self.observer.on_stage("measuring latency")
        assert result.engine is not None
        references, same = {SOURCE: self._reference()}, SOURCE
        try:
            own = self.builder.build("the source for the target", self.target, self.source)
            references[_SOURCE_ON_TARGET], same = own, _SOURCE_ON_TARGET
        except OptimcError as error:
            self.notes.append(f"{kit.target} does not take the source: {error.what}")
        timer = Timer(
            limits=self.limits,
            seconds=kit.benchmark.at_most,
            seed=kit.seed,
            lock=self.cache.folder / "measuring.lock",
            progress=self.observer.on_share,
        )
        subject = Subject(result.engine, SOURCE, same)
        timings = timer.run({kit.cell: subject}, references, self._cases(), None)
        if kit.cell in timings.failures:
            result.fail(timings.failures[kit.cell])
            return timings
        result.cases = {case: cells[kit.cell] for case, cells in timings.cases.items()}
        result.load_ms = timings.load_ms[kit.cell]
        result.footprint = timings.footprints[kit.cell]
        note = device_times_note(kit.cell, result.engine, self.limits, self._cases()[0].feeds[0])
        self.notes += [note] if note else []
        if same == SOURCE:
            self.notes.append("speedup_same_runtime is against the source on ONNX Runtime")
        return timings

    def _cases(self) -> list[Case]:
        import numpy as np

        rng = np.random.default_rng(self.kit.seed)
        typical = {name: dim.typical for name, dim in self.kit.dims.items()}
        cases = []
        # A kit may hold no evaluation data to draw inputs from: their usual sizes stand for them.
        wanted = self.kit.benchmark.cases
        for asked in ({},) if isinstance(wanted, str) or not wanted else wanted:
            sizes = {**typical, **asked}
            feeds = {
                spec.name: seeded_array(spec, self.kit.inputs.get(spec.name), sizes, rng)
                for spec in self.model.signature.inputs
            }
            batch = samples_in(self.model.signature, feeds)
            cases.append(Case(sizes, [feeds], [feeds], batch=batch))
        return cases

    def _judge(self) -> GateResult:
        """The gate's limits for this cell alone."""
        gate, cell = self.kit.gate, (self.kit.variant, self.kit.target)
        asked = gate is None or gate.ship == BEST
        if gate is not None and not asked:
            asked = any(cells_matching(pattern, (cell,)) for pattern in gate.patterns)
        if not asked:
            self.notes.append("the gate does not ask for this cell")
            gate = None
        self.notes += [f"metric {n} is left out: {w}" for n, w in self.kit.metrics_left_out.items()]
        return judge(gate, [figures_of(self.result)])

    def _report(
        self,
        before: schema.Report,
        gate: GateResult,
        timings: BuildTimings,
        source_metrics: Mapping[str, float],
    ) -> schema.Report:
        """The build's report of this cell, completed."""
        from optimc.pipeline.finish import _machine

        cell = assemble.cell_report(self.result)
        engine = cell.engine
        if isinstance(engine, schema.EngineReport):
            engine = engine.model_copy(update={"path": ENGINE})
        passes = before.results[0].passes if before.results else ()
        changes: dict[str, Any] = {"metrics": dict(source_metrics) or before.source.metrics}
        if timings.source:
            changes["latency"] = tuple(
                assemble.latency_report(case, figures, 1)
                for case, figures in timings.source.items()
            )
        else:
            changes["latency"] = skipped(str(timings.noise_floor))
        tools = tool_versions({*_TOOLS, *type(self.target).tools})
        best = gate.best
        return before.model_copy(
            update={
                "optimc": __version__,
                "created": assemble.now(),
                "command": self.command,
                "lock": skipped("a kit has no lock of its own; the build's names what it is of"),
                "machine": _machine(),
                "environment": assemble.environment(tools),
                "source": before.source.model_copy(update=changes),
                "results": (cell.model_copy(update={"passes": passes, "engine": engine}),),
                "noise_floor": assemble.noise_floor(timings.noise_floor),
                "best": schema.CellName(variant=best.variant, target=best.target) if best else None,
                "gate": gate.gate,
                "notes": assemble.unique([*before.notes, *self.notes]),
            }
        )


_NOT_ASKED = "measuring is off (--no-measure)"


def _known_metrics(kit: KitFile, folder: Path) -> dict[str, Metric]:
    """The kit's metrics; code of others is not run."""
    from optimc.measure.metric import SampleMetric
    from optimc.measure.metrics import metric_for

    found: dict[str, Metric] = {}
    for name, options in kit.metrics.items():
        metric = metric_for(name, options)
        if not isinstance(metric, SampleMetric):
            fix = "finish a kit as `optimc build` left it"
            raise InputError(f"metrics.{name} would run code", where=str(folder / KIT), fix=fix)
        found[name] = metric
    return found


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


def _limits(kit: KitFile) -> Limits:
    import psutil

    memory = kit.limits.memory_mb
    if memory is None:
        memory = 0.8 * psutil.virtual_memory().total / 1e6
    return Limits(memory, kit.limits.seconds)
