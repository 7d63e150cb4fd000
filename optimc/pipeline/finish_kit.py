"""`optimc finish KIT`: builds, proves, measures and judges a deferred cell where its target is."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.errors import CellError, InputError, OptimcError, UnavailableError
from optimc.core.files import atomic_folder, check_folder
from optimc.core.targets import DimSizes, Engine
from optimc.core.worker import Limits
from optimc.pipeline.assemble import CellResult, figures_of
from optimc.pipeline.cache import Cache
from optimc.pipeline.cases import samples_in
from optimc.pipeline.device_times import device_times_note
from optimc.pipeline.engines import EngineBuilder, warned
from optimc.pipeline.gate import GateResult, judge
from optimc.pipeline.inner_values import InnerValues
from optimc.pipeline.kit_file import (
    EVALUATION,
    KIT,
    REPORT,
    KitFile,
    kit_model,
    kit_target,
    read_kit,
)
from optimc.pipeline.kit_proof import prove_on_probes
from optimc.pipeline.kit_report import ENGINE, completed_report
from optimc.pipeline.plan import Cell
from optimc.pipeline.probes import seeded_array
from optimc.pipeline.profiling import NO_PROFILER, Asked, Origins, profiled
from optimc.pipeline.recipe.schema import BEST, cells_matching
from optimc.pipeline.references import NOT_ASKED
from optimc.pipeline.timing import SOURCE, BuildTimings, Case, Subject, Timer, exclusive
from optimc.pipeline.verification import Verdict
from optimc.report import schema
from optimc.report.canonical import load_report
from optimc.report.profile import EngineProfile
from optimc.report.values import Skipped
from optimc.report.write import write_report

if TYPE_CHECKING:
    from optimc.measure.metric import Metric
    from optimc.pipeline.evaluation import Evaluator
    from optimc.pipeline.observer import BuildObserver

_SOURCE_ON_TARGET = "source on the kit's target"


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
    own_source: Engine | None = None
    """The source's engine for the target, once there is one."""

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
        profiles = self._profile()
        gate = self._judge()
        self.observer.on_stage("writing")
        report = completed_report(
            before, self.result, self.command, self.notes, gate, timings, source_metrics
        ).model_copy(update={"profiles": profiles})
        self.files = write_report(report, self.folder)
        return report

    def _build_and_prove(self, inner: InnerValues) -> None:
        result = self.result
        try:
            engine = self.builder.build(self.kit.cell, self.target, self.model)
            self._deliver(engine)
            result.engine = engine
            self.notes += warned(self.kit.cell, self.target, engine)
            result.proof = prove_on_probes(
                self.kit, self.folder, engine, self.model, self.source, inner, self.limits
            )
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

    def _evaluate(self) -> dict[str, float]:
        """The metrics of the engine and of the source, where the kit has the data."""
        if not self.measure or self.kit.evaluation is not None or not self.kit.metrics:
            if self.kit.evaluation is None:
                self.result.metrics = "no metric by name" if self.measure else NOT_ASKED
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
            result.cases = result.load_ms = result.footprint = NOT_ASKED
            return BuildTimings(noise_floor=NOT_ASKED)
        self.observer.on_stage("measuring latency")
        assert result.engine is not None
        references, same = {SOURCE: self._reference()}, SOURCE
        try:
            own = self.builder.build("the source for the target", self.target, self.source)
            references[_SOURCE_ON_TARGET], same, self.own_source = own, _SOURCE_ON_TARGET, own
        except OptimcError as error:
            self.notes.append(f"{kit.target} does not take the source: {error.what}")
        timer = Timer(
            limits=self.limits,
            seconds=kit.benchmark.at_most,
            seed=kit.seed,
            lock=self._lock,
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

    def _profile(self) -> tuple[EngineProfile, ...] | Skipped:
        """The layers of the engine, and of the source where the target takes it."""
        result = self.result
        if not self.measure or result.engine is None or result.status != "built":
            return Skipped(skipped=NOT_ASKED if not self.measure else "nothing was built")
        self.observer.on_stage("profiling layers")
        case = self._cases()[0]
        feeds = case.feeds[0]
        name, source = self.kit.cell, f"source on {self.kit.target}"
        origins = Origins(self.model, self.source), Origins(self.source, self.source)
        asked = [Asked(name, name, result.engine, case.sizes, feeds, origins[0])]
        if self.own_source is not None:
            asked.insert(0, Asked(source, None, self.own_source, case.sizes, feeds, origins[1]))
        found: list[EngineProfile] = []
        with exclusive(self._lock, self.observer.on_share):
            for one in asked:
                found += profiled(one, self.limits, self.notes)
        return tuple(found) or Skipped(skipped=NO_PROFILER)

    @property
    def _lock(self) -> Path:
        """Held by whoever measures on this machine."""
        return self.cache.folder / "measuring.lock"

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


def _limits(kit: KitFile) -> Limits:
    import psutil

    memory = kit.limits.memory_mb
    if memory is None:
        memory = 0.8 * psutil.virtual_memory().total / 1e6
    return Limits(memory, kit.limits.seconds)
