"""`optimc build`: from a recipe to artifacts, a report and an exit code."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.digest import digest_of
from optimc.core.errors import CellError, InputError, OptimcError, WorkerError
from optimc.core.files import check_folder
from optimc.core.leftovers import remove_leftovers
from optimc.core.model import Level, OnnxModel
from optimc.core.passes import Input, Pass
from optimc.core.torch_model import TorchModel
from optimc.core.worker import Limits
from optimc.pipeline.assemble import CellResult
from optimc.pipeline.cache import Cache
from optimc.pipeline.cases import check_data_cases
from optimc.pipeline.data import check_overlap, open_data
from optimc.pipeline.engines import EngineBuilder, warned
from optimc.pipeline.evaluation import check_metrics
from optimc.pipeline.ingest import read_source
from optimc.pipeline.ingest_torch import with_known
from optimc.pipeline.inner_values import InnerValues
from optimc.pipeline.kits import prepare_kit
from optimc.pipeline.legalization import legalize_cells
from optimc.pipeline.lint import lint_cells
from optimc.pipeline.lock import lock_path, read_lock, refuse_differences
from optimc.pipeline.manager import CompiledModel, PassInputs, PassManager, PassOutcome
from optimc.pipeline.naming import check_module_names
from optimc.pipeline.observer import BuildObserver, Dumper, working_on
from optimc.pipeline.open_options import choose_options
from optimc.pipeline.oracle import Oracle
from optimc.pipeline.outputs import verified_by
from optimc.pipeline.parallel import run_side_by_side
from optimc.pipeline.plan import Step, make_plan
from optimc.pipeline.preprocess import starting_point
from optimc.pipeline.probes import Effort, Probe, ProbeSource, probes_digest
from optimc.pipeline.reach import Reach, reach_code, reach_of
from optimc.pipeline.recipe.model_sources import ModuleSource
from optimc.pipeline.target_checks import check_targets
from optimc.pipeline.torch_level import TorchLevel, export_outcome, held_to_source
from optimc.pipeline.tuning import TuningMetric, check_tuning, pass_inputs
from optimc.pipeline.verification import PASSED, PassVerifier, Segment, Verdict

if TYPE_CHECKING:
    from optimc.calibration.observe import ActivationCalibration
    from optimc.core.passes import Calibration
    from optimc.core.targets import Engine
    from optimc.measure.metric import Records
    from optimc.pipeline.engines import EngineProof
    from optimc.pipeline.recipe.schema import Recipe
    from optimc.report.schema import Report
    from optimc.report.values import Status

_CALIBRATION_PROBES = 32
DEFAULT_MEMORY_SHARE = 0.8
"""Share of the machine's memory that a worker may use where the recipe sets no limit."""


@dataclass(frozen=True)
class BuildOptions:
    """What the command line says of one build."""

    out: Path
    command: str
    variant: str | None = None
    target: str | None = None
    overridden: bool = False
    """Whether `--set` changed the recipe: then the lock, which names the recipe, is not written."""
    locked: bool = False
    use_cache: bool = True
    measure: bool = True
    fail_on_rollback: bool = False
    verify: Effort = "fast"
    limits: Mapping[str, int] = field(default_factory=dict)
    dump: Path | None = None

    @property
    def partial(self) -> bool:
        """Whether this is not the whole recipe as it stands, so that the lock is left alone."""
        return bool(self.variant or self.target or self.overridden or self.limits)


@dataclass(frozen=True)
class Point:
    """Where a build has come to on the way down the plan."""

    model: CompiledModel
    segment: Segment
    origin: OnnxModel | None = None
    """The exported module, behind passes of the torch level."""


class Build:
    """One build: its stages in their order, see `run`. Counts what it executed."""

    def __init__(self, recipe: Recipe, options: BuildOptions, observer: BuildObserver) -> None:
        self.recipe = recipe
        self.options = options
        self.observer = observer
        self.limits = worker_limits(recipe)
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.locked: dict[str, Any] | None = None
        """The lock's content, with `--locked`."""
        self.records: dict[str, dict[str, Records]] = {}
        """By cell and metric: what each engine answered, sample by sample."""
        self.observed: ActivationCalibration | None = None
        """What was observed of the source, where a pass asked for it."""
        self.files: tuple[Path, ...] = ()
        """The report's files, once they are written."""

    def run(self) -> Report:
        """Builds, measures, judges and writes everything. Raises OptimcError for what is wrong."""
        cache = Cache(enabled=self.options.use_cache)
        try:
            with cache.workspace() as workspace:
                return self._run(cache, workspace)
        finally:
            with contextlib.suppress(InputError):  # it must not hide why the build ended
                cache.prune()
            cache.close()

    def _run(self, cache: Cache, workspace: Path) -> Report:
        from optimc.pipeline.finish import finish

        self.plan = make_plan(self.recipe, variant=self.options.variant, target=self.options.target)
        check_folder(self.options.out, "-o DIR")
        for folder in (self.options.out, self.recipe.folder, Path(tempfile.gettempdir())):
            remove_leftovers(folder)  # of builds that were killed
        dumps = [Dumper(self.options.dump)] if self.options.dump else []
        self.observers: Sequence[BuildObserver] = (self.observer, *dumps)
        if self.options.locked:
            read_lock(lock_path(self.recipe.path))  # before any work: it may not be there
        self.observer.on_stage(f"reading {self.recipe.model.shown(self.recipe.folder)}")
        self.source = read_source(self.recipe, cache, self.limits, workspace)
        check_module_names(self.recipe, self.source.known)
        self.recipe = with_known(self.recipe, self.source.known)
        self.data = open_data(self.recipe, self.source.model.signature)
        check_data_cases(self.recipe, self.data.evaluation)
        check_overlap(self.recipe, self.data, cache)
        if self.options.measure:
            check_metrics(self.recipe, self.data.evaluation, self.source.model.signature)
        check_tuning(self.recipe, self.data)
        check_targets(self.recipe, self.source.model.signature, self.data.sizes)
        self._check_lock()
        self.start = starting_point(self.recipe, self.source, self.data, cache, self.limits)
        self._note_what_is_special()
        self.cache, self.workspace = cache, workspace
        self._build_cells()
        return finish(self)

    def _check_lock(self) -> None:
        """With `--locked`: refuses before any work what is known to differ by now."""
        from optimc.pipeline.locking import lock_inputs

        if self.options.locked:
            path = lock_path(self.recipe.path)
            self.locked = read_lock(path)
            refuse_differences(self.locked, lock_inputs(self), path)

    def _note_what_is_special(self) -> None:
        self.notes += [*self.source.notes, *self.start.notes]
        if self.data.random:
            ranges = "checks" if self.data.table else "ranges and checks"
            self.warnings.append(
                f"no calibration data is named: {ranges} are of seeded random data"
            )
        if self.data.table is not None:
            samples = self.data.table.about.get("samples", "unknown")
            self.notes.append(f"ranges are of a calibration table (samples: {samples})")
        if self.data.evaluation is None:
            self.warnings.append("no evaluation data is named: no metric was measured")
        if self.options.verify == "off":
            self.warnings.append("verification is off: nothing was compared")
        for name, count in self.options.limits.items():
            self.warnings.append(f"pass {name} was stopped after {count} rewrites (--limit)")

    def _build_cells(self) -> None:
        """Passes, engines and their proofs, for every cell of the plan."""
        self.results = {cell.name: CellResult(cell) for cell in self.plan.cells}
        for name, error in self.plan.unavailable.items():
            result = self.results[name]
            # Who names the target on the command line asks for it, optional or not.
            optional = result.cell.target.optional and self.options.target is None
            left: Status = "deferred" if result.cell.target.defers else "skipped"
            result.status = left if optional else "failed"
            result.reason = _reason(error, name)
        probes = self._probes()
        skip = "verification is off" if self.options.verify == "off" else None
        with Oracle(probes.for_passes(self.options.verify), self.limits) as oracle:
            steering = self._steering(probes, oracle)
            pass_oracle = oracle.beside((*oracle.probes, *steering))
            engine_oracle = oracle.beside((*probes.for_engines(self.options.verify), *steering))
            self.probed = {"passes": len(pass_oracle.probes), "engines": len(engine_oracle.probes)}
            self.observer.on_stage("running passes")
            inner = InnerValues(verified_by(self.recipe), self.workspace)
            self.engines = EngineBuilder(
                self.cache, self.limits, self.workspace, self.recipe.seed, inner, self.data.sizes
            )
            models = self._run_passes(
                PassVerifier(pass_oracle, inner, skip_reason=skip, ahead=engine_oracle), pass_oracle
            )
            lint_cells(self, models)
            self.observer.on_stage("building and verifying engines")
            self.engines.progress = self.observer.on_share
            built = {name: m for name, m in models.items() if name not in self.plan.unavailable}
            self.observer.on_cells(len(built))
            run_side_by_side(
                built.items(),
                lambda item: self._build_engine(
                    self.results[item[0]], item[1], engine_oracle, skip
                ),
            )
            for name in models.keys() - built.keys():
                prepare_kit(self, self.results[name], models[name], engine_oracle)
            choose_options(self, models, engine_oracle, skip)
            self.legalized = legalize_cells(self, models, engine_oracle, skip)
        for result in self.cells_alive():
            if result.origin is not None and not self.options.measure:
                names = ", ".join(o.name for o in result.outcomes if o.model.level is Level.TORCH)
                result.unverified.append(f"accuracy behind {names}: measuring is off")
            result.unverified += [
                f"no probe reaches the {body} ({count} nodes)"
                for body, count in (self.reach.unreached if self.reach else {}).items()
            ]

    def _steering(self, probes: ProbeSource, oracle: Oracle) -> list[Probe]:
        """Finds out what the probes reach, and the inputs that reach more of it."""
        self.reach: Reach | None = None
        if self.options.verify == "off":
            return []
        try:
            found = reach_of(self.start.model, oracle, probes, self.cache, reach_code())
        except WorkerError as error:
            self.warnings.append(f"what the probes reach is not known: {error.what}")
            return []
        self.reach = found
        if not found.steering:
            return []
        candidates = probes.steering()
        return [candidates[index] for index in found.steering]

    def _probes(self) -> ProbeSource:
        return ProbeSource(
            signature=self.start.model.signature,
            dims=self.data.dims,
            inputs=self.start.inputs,
            seed=self.recipe.seed,
            samples=self.start.data.samples(_CALIBRATION_PROBES),
        )

    def _run_passes(self, verifier: PassVerifier, oracle: Oracle) -> dict[str, OnnxModel]:
        """Every step of the plan once, depth first; the final model of each cell that lives."""
        self.manager = PassManager(
            cache=self.cache,
            verifier=verifier,
            verifier_digest=digest_of(
                probes_digest(oracle.probes), self.options.verify, verified_by(self.recipe)
            ),
            seed=self.recipe.seed,
            workspace=self.workspace,
            limits=self.options.limits,
            observers=self.observers,
            judge_lossy=self._judges_lossy_passes(),
            modules=self.torch,
            folder=self.recipe.folder,
            worker_limits=self.limits,
        )
        models: dict[str, OnnxModel] = {}
        try:
            self._walk(self.plan.root, self._first_model(), (), models)
        finally:
            self.torch.close()
            if "tuning" in self.__dict__:
                self.tuning.close()
        return models

    def _first_model(self) -> Point:
        """The module where a pass works on it, else the source as ONNX."""
        modules = isinstance(self.recipe.model, ModuleSource)
        if modules and any(Level.TORCH in _pass_of(c).levels() for c in self.plan.root.children):
            return Point(self.torch.source, Segment(self.torch.source.digest, Path()))
        return self._start_point()

    def _start_point(self) -> Point:
        return Point(self.start.model, Segment(self.start.model.digest, self.start.path))

    @cached_property
    def torch(self) -> TorchLevel:
        """The modules, for recipes whose model has them."""
        return TorchLevel(self)

    @cached_property
    def tuning(self) -> TuningMetric:
        """The first metric on the tuning split, for passes that choose."""
        return TuningMetric(self)

    def _judges_lossy_passes(self) -> bool:
        """Whether the default SQNR bound holds: only where no metric can judge instead."""
        judges = self.data.evaluation is not None and bool(self.recipe.metrics)
        return not judges or not self.options.measure

    def _walk(
        self,
        step: Step,
        at: Point,
        outcomes: tuple[PassOutcome, ...],
        models: dict[str, OnnxModel],
    ) -> None:
        torch_children = [c for c in step.children if _stays(at, c)]
        if step.cells or len(torch_children) < len(step.children):
            try:
                lowered, exported = self._lowered(at, outcomes)
            except OptimcError as error:
                self._fail_below(step, outcomes, _reason(error), but=torch_children)
            else:
                self._leave(step, lowered, exported, models)
                for child in step.children:
                    if child not in torch_children:
                        self._run_step(child, lowered, exported, models)
        for child in torch_children:
            self._run_step(child, at, outcomes, models)

    def _leave(
        self,
        step: Step,
        at: Point,
        outcomes: tuple[PassOutcome, ...],
        models: dict[str, OnnxModel],
    ) -> None:
        """Notes what the cells whose last pass this is have come to."""
        assert isinstance(at.model, OnnxModel)
        for cell in step.cells:
            self.results[cell.name].outcomes = outcomes
            self.results[cell.name].origin = at.origin
            models[cell.name] = at.model

    def _run_step(
        self,
        step: Step,
        at: Point,
        outcomes: tuple[PassOutcome, ...],
        models: dict[str, OnnxModel],
    ) -> None:
        """One pass, and everything below it."""
        assert step.entry is not None
        required = step.entry.required or self.options.fail_on_rollback
        at_torch = isinstance(at.model, TorchModel)
        try:
            more = pass_inputs(self, step, len(outcomes), at_torch=at_torch)
            inputs = PassInputs(step.spec, self._calibration(step), **more)
            origin = at.origin or self.start.model
            self.manager.verifier.expect(origin.digest, last=bool(step.cells))
            outcome = self.manager.run(
                step.entry.pass_, at.model, at.segment, inputs, required=required
            )
        except CellError as error:
            self._fail_below(step, outcomes, _reason(error))
            return
        if outcome.failure is not None:
            self._fail_below(step, (*outcomes, outcome), outcome.failure)
            return
        said = f"{outcome.name} for {outcome.runtime}" if outcome.runtime else outcome.name
        self.notes += [f"{said}: {note}" for note in outcome.notes]
        after = Point(outcome.model, outcome.segment, at.origin)
        self._walk(step, after, (*outcomes, outcome), models)

    def _lowered(
        self, at: Point, outcomes: tuple[PassOutcome, ...]
    ) -> tuple[Point, tuple[PassOutcome, ...]]:
        """Where ONNX passes go on from `at`: the exported module, with what came of the export."""
        if not isinstance(at.model, TorchModel):
            return at, outcomes
        if at.model.folder is None:
            return self._start_point(), outcomes
        if self.data.evaluation is None or not self.recipe.metrics:
            held_to_source(outcomes)
        self.observer.on_progress("export", 0.0, "from torch to ONNX")
        found = self.torch.lowered(at.model)
        outcome = export_outcome(at.model, found)
        for observer in self.observers:
            observer.after_pass(outcome)
        return Point(found.model, outcome.segment, found.model), (*outcomes, outcome)

    def _fail_below(
        self,
        step: Step,
        outcomes: tuple[PassOutcome, ...],
        reason: str,
        but: Sequence[Step] = (),
    ) -> None:
        """Fails the cells of `step`, those below the steps `but` left out."""
        others = {cell.name for child in but for cell in child.all_cells()}
        for cell in step.all_cells():
            if cell.name in others:
                continue
            self.results[cell.name].outcomes = outcomes
            self.results[cell.name].fail(reason)
            self.observer.on_detail(f"{cell.name} failed: {reason}")

    def _calibration(self, step: Step) -> Calibration | None:
        assert step.entry is not None
        if Input.CALIBRATION not in step.entry.pass_.needs:
            return None
        return self.calibration()

    def calibration(self) -> Calibration:
        """The statistics of the source's values, observed once a build at most."""
        if self.data.table is not None:
            return self.data.table
        if self.observed is None:
            from optimc.calibration.observe import ActivationCalibration

            self.observed = ActivationCalibration(
                self.start.model,
                self.start.data.calibration,
                seed=self.recipe.seed,
                store=self.cache,
                limits=self.limits,
                progress=self.observer.on_share,
            )
        return self.observed

    def proved(
        self,
        result: CellResult,
        model: OnnxModel,
        graph: OnnxModel,
        oracle: Oracle,
        skip_reason: str | None,
    ) -> tuple[Engine, EngineProof]:
        """The engine of `graph`, compared with the cell's `model` and with the source.

        The two are the same but where the target legalized its graph. Raises CellError.
        """
        cell = result.cell
        engine = self.engines.build(cell.name, cell.target, graph, oracle.probes)
        proof = self.engines.prove(
            cell.name,
            engine,
            target=cell.target,
            lossy=result.lossy_since_export,
            model=model,
            model_path=self.path_of(model),
            source=self.origin(result),
            source_path=self.path_of(self.origin(result)),
            oracle=oracle,
            skip_reason=skip_reason,
        )
        return engine, proof

    def _build_engine(
        self, result: CellResult, model: OnnxModel, oracle: Oracle, skip: str | None
    ) -> None:
        try:
            with working_on(self.observer, result.cell.name):
                engine, proof = self.proved(result, model, model, oracle, skip)
        except CellError as error:
            result.fail(_reason(error))
            self.observer.on_detail(f"{result.cell.name} failed: {_reason(error)}")
            return
        result.engine, result.proof = engine, proof
        self.notes += warned(result.cell.name, result.cell.target, engine)
        if proof.finding.reason and proof.finding.verdict in PASSED:
            self.notes.append(f"{result.cell.name}: {proof.finding.reason}")
        result.unverified += _unverified(result)
        if proof.finding.broke:
            result.fail(f"the engine did not prove itself: {proof.finding.reason}")
        state = "failed" if result.status == "failed" else proof.finding.verdict.replace("_", " ")
        self.observer.on_detail(f"{result.cell.name:<28} {state}, {engine.bytes / 1e6:.2f} MB")

    def origin(self, result: CellResult) -> OnnxModel:
        """What the cell's engine is proved against: the source, or, where passes of the torch level
        changed it, the module that they left, as it was exported."""
        return result.origin or self.start.model

    def path_of(self, model: OnnxModel) -> Path:
        """The model's file in the cache; models that passes left unchanged are the first one."""
        return model.path or self.start.path

    def cells_alive(self) -> list[CellResult]:
        """The cells that are built so far."""
        return [result for result in self.results.values() if result.status == "built"]


def worker_limits(recipe: Recipe) -> Limits:
    """The recipe's limits; without one for memory, most of what the machine has."""
    memory = recipe.limits.memory_mb
    if memory is None:
        import psutil

        memory = DEFAULT_MEMORY_SHARE * psutil.virtual_memory().total / 1e6
    return Limits(memory, recipe.limits.seconds, tuple(map(str, recipe.model.libraries)))


def _pass_of(step: Step) -> Pass:
    assert step.entry is not None
    return step.entry.pass_


def _stays(at: Point, step: Step) -> bool:
    """Whether the step's pass works on the module itself."""
    return isinstance(at.model, TorchModel) and Level.TORCH in _pass_of(step).levels()


def _reason(error: OptimcError, cell: str | None = None) -> str:
    """The error on one line; the name of the `cell` that it stands beside is not said again."""
    fix = f" (fix: {error.fix})" if error.fix else ""
    where = f"{error.where}: " if error.where and error.where != cell else ""
    return f"{where}{error.what}{fix}"


def _unverified(result: CellResult) -> list[str]:
    found = [
        f"pass {o.name}: {o.finding.reason}"
        for o in result.outcomes
        if o.finding.verdict is Verdict.UNVERIFIED
    ]
    proof = result.proof
    if proof is not None and proof.finding.verdict is Verdict.UNVERIFIED:
        found.append(f"engine: {proof.finding.reason}")
    return found
