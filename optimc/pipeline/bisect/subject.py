"""What is bisected: one cell of a recipe, pass by pass, through the cache of builds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.digest import digest_of
from optimc.core.errors import InputError, OptimcError
from optimc.core.model import Level, OnnxModel
from optimc.core.passes import Calibration, Input, RewriteKey
from optimc.core.worker import Limits
from optimc.pipeline.build import worker_limits
from optimc.pipeline.cache import Cache
from optimc.pipeline.data import BuildData, open_data
from optimc.pipeline.ingest import Source, read_source
from optimc.pipeline.ingest_torch import with_known
from optimc.pipeline.inner_values import InnerValues
from optimc.pipeline.manager import PassInputs, PassManager, PassOutcome
from optimc.pipeline.observer import BuildObserver
from optimc.pipeline.oracle import Oracle
from optimc.pipeline.outputs import verified_by
from optimc.pipeline.plan import Cell, Plan, make_plan
from optimc.pipeline.preprocess import Start, starting_point
from optimc.pipeline.probes import ProbeSource, probes_digest
from optimc.pipeline.verification import PassVerifier, Segment

if TYPE_CHECKING:
    from optimc.core.targets import TargetSpec
    from optimc.pipeline.recipe.schema import PassEntry, Recipe

_PROBE_SAMPLES = 32
_SKIP = "verification is off while bisecting"


@dataclass(frozen=True)
class PassStep:
    """One pass of the cell, with the spec that it may read."""

    entry: PassEntry
    spec: TargetSpec | None

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.entry.pass_.pass_name()


@dataclass(frozen=True)
class Stage:
    """The model after some passes. `outcome` is that of the last of them."""

    model: OnnxModel
    segment: Segment
    outcome: PassOutcome | None = None
    failure: str | None = None
    """Why the pass after the model could not be run at all."""


@dataclass
class Subject:
    """A cell's passes, and everything they work on."""

    recipe: Recipe
    cell: Cell
    steps: Sequence[PassStep]
    source: Source
    data: BuildData
    start: Start
    oracle: Oracle
    cache: Cache
    workspace: Path
    limits: Limits
    observer: BuildObserver
    verify: bool
    """Whether passes are verified and rolled back as in a build."""

    def __post_init__(self) -> None:
        self._calibration: Calibration | None = None
        self.inner = InnerValues(verified_by(self.recipe), self.workspace)

    def first(self) -> Stage:
        """Before any pass."""
        return Stage(self.start.model, Segment(self.start.model.digest, self.start.path))

    def path_of(self, model: OnnxModel) -> Path:
        """The model's file."""
        return model.path or self.start.path

    def run(
        self,
        index: int,
        before: Stage,
        *,
        verify: bool | None = None,
        only: frozenset[RewriteKey] | None = None,
        limit: int | None = None,
    ) -> Stage:
        """The stage behind step `index`, run on `before`: all its rewrites, `only` some, or the
        first `limit`.

        A pass that cannot run at all leaves the stage as it is, with a `failure`.
        """
        step = self.steps[index]
        _refuse_choices(step)
        name = step.name
        manager = self._manager(self.verify if verify is None else verify)
        manager.only = {} if only is None else {name: only}
        manager.limits = {} if limit is None else {name: limit}
        if only is None and limit is None:
            manager.observers = (self.observer,)
        try:
            inputs = PassInputs(step.spec, self._calibration_for(step))
            outcome = manager.run(
                step.entry.pass_, before.model, before.segment, inputs, required=False
            )
        except OptimcError as error:
            return replace(before, outcome=None, failure=error.what)
        assert isinstance(outcome.model, OnnxModel)
        return Stage(outcome.model, outcome.segment, outcome)

    def _manager(self, verify: bool) -> PassManager:
        skip = None if verify else _SKIP
        return PassManager(
            cache=self.cache,
            verifier=PassVerifier(self.oracle, self.inner, skip_reason=skip),
            # As a build with `--verify=fast` names them: what it did is in the cache.
            verifier_digest=digest_of(
                probes_digest(self.oracle.probes),
                "fast" if verify else "bisect",
                verified_by(self.recipe),
            ),
            seed=self.recipe.seed,
            workspace=self.workspace,
            judge_lossy=self.data.evaluation is None,
        )

    def _calibration_for(self, step: PassStep) -> Calibration | None:
        if Input.CALIBRATION not in step.entry.pass_.needs:
            return None
        if self._calibration is None:
            from optimc.calibration.observe import ActivationCalibration

            self._calibration = ActivationCalibration(
                self.start.model,
                self.start.data.calibration,
                seed=self.recipe.seed,
                store=self.cache,
                limits=self.limits,
                progress=self.observer.on_share,
            )
        return self._calibration


@contextmanager
def opened(
    recipe: Recipe, name: str | None, observer: BuildObserver, *, verify: bool, use_cache: bool
) -> Iterator[Subject]:
    """The cell `name` (``variant/target``) of the recipe, ready to be run pass by pass.

    Raises InputError as a build does. Nothing but entries of the cache outlives the block.
    """
    plan = make_plan(recipe)
    cell = chosen_cell(plan, recipe, name)
    cache = Cache(enabled=use_cache)
    try:
        with cache.workspace() as workspace:
            limits = worker_limits(recipe)
            observer.on_stage(f"reading {recipe.model.shown(recipe.folder)}")
            source = read_source(recipe, cache, limits, workspace)
            recipe = with_known(recipe, source.known)
            data = open_data(recipe, source.model.signature)
            start = starting_point(recipe, source, data, cache, limits)
            probes = _probes(recipe, data, start)
            with Oracle(probes, limits) as oracle:
                yield Subject(
                    recipe=recipe,
                    cell=cell,
                    steps=_steps(recipe, cell),
                    source=source,
                    data=data,
                    start=start,
                    oracle=oracle,
                    cache=cache,
                    workspace=workspace,
                    limits=limits,
                    observer=observer,
                    verify=verify,
                )
    finally:
        with contextlib.suppress(InputError):
            cache.prune()
        cache.close()


def chosen_cell(plan: Plan, recipe: Recipe, name: str | None) -> Cell:
    """The cell that is called `name`, or the only one that has passes.

    Raises InputError where there is none, or several and nobody said which.
    """
    cells = {cell.name: cell for cell in plan.cells}
    if name is not None and name not in cells:
        known = ", ".join(cells)
        raise InputError(f"no cell is called `{name}`", where="--cell", fix=f"one of: {known}")
    with_passes = [n for n, cell in cells.items() if recipe.variants[cell.variant].passes]
    if name is None and len(with_passes) > 1:
        raise InputError(
            f"the recipe has {len(with_passes)} cells with passes",
            where=str(recipe.path),
            fix=f"say which: --cell {with_passes[-1]} (or {', '.join(with_passes[:-1])})",
        )
    found = name or next(iter(with_passes), None)
    if found is None or found not in with_passes:
        raise InputError(
            "there is no pass to blame", where=found or str(recipe.path), fix="name another cell"
        )
    if found in plan.unavailable:
        raise plan.unavailable[found]
    return cells[found]


def _steps(recipe: Recipe, cell: Cell) -> list[PassStep]:
    return [
        PassStep(entry, cell.target.spec() if Input.SPEC in entry.pass_.needs else None)
        for entry in recipe.variants[cell.variant].passes
    ]


def _probes(recipe: Recipe, data: BuildData, start: Start) -> Any:
    source = ProbeSource(
        signature=start.model.signature,
        dims=data.dims,
        inputs=start.inputs,
        seed=recipe.seed,
        samples=start.data.samples(_PROBE_SAMPLES),
    )
    return source.for_passes("fast")


def _refuse_choices(step: PassStep) -> None:
    if step.entry.pass_.level is Level.TORCH or Input.TRAINING in step.entry.pass_.needs:
        raise InputError(
            f"{step.name} works on the module or trains, which bisecting does not repeat",
            fix="compare what it left with `optimc build --dump DIR` and `optimc diff`, or leave it"
            " out and bisect the others",
        )
    if Input.TUNING in step.entry.pass_.needs:
        raise InputError(
            f"{step.name} chooses by measuring (`max_drop`), which bisecting does not repeat",
            fix="name under `keep_float` what the report says it kept, and leave `max_drop` out",
        )
