"""The metrics of every cell against the source, and the bounds that need no gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.core.errors import CellError
from optimc.core.passes import Budget
from optimc.core.targets import Target
from optimc.pipeline.assemble import CellResult
from optimc.pipeline.evaluation import Evaluator, loaded_metrics
from optimc.pipeline.observer import working_on
from optimc.pipeline.parallel import run_side_by_side
from optimc.pipeline.references import NOT_ASKED, reference_target, source_engine
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from optimc.pipeline.build import Build

RELATIVE_DROP = 0.01
"""The default bound of lossy passes where a metric judges them and the recipe sets no limit."""


def evaluate(build: Build) -> dict[str, float]:
    """The metrics of every living cell against the source; returns the source's own values."""
    dataset = build.data.evaluation
    if not build.options.measure or dataset is None or not build.recipe.metrics:
        reason = NOT_ASKED
        if build.options.measure:
            reason = "no evaluation data" if dataset is None else "the recipe names no metrics"
        for result in build.results.values():
            result.metrics = reason
        return {}
    evaluator = Evaluator(
        metrics=loaded_metrics(build.recipe),
        dataset=dataset,
        raw=build.start.data.evaluation or dataset,
        dims=build.data.dims,
        signature=build.source.model.signature,
        cache=build.cache,
        limits=build.limits,
        seed=build.recipe.seed,
        progress=build.observer.on_share,
    )
    engine = source_engine(build, reference_target(_any_target(build)))
    build.observer.on_cells(len(build.cells_alive()) + 1)
    with working_on(build.observer, "the source"):
        evaluator.evaluate_source(engine)
    run_side_by_side(build.cells_alive(), lambda result: _evaluate_cell(build, evaluator, result))
    build.records = evaluator.kept
    return evaluator.source_values()


def _evaluate_cell(build: Build, evaluator: Evaluator, result: CellResult) -> None:
    assert result.engine is not None
    try:
        with working_on(build.observer, result.cell.name):
            result.metrics = evaluator.evaluate(result.cell.name, result.engine)
    except CellError as error:
        result.metrics = error.what
        result.fail(f"evaluation: {error.what}")
        return
    _default_bound(build, result)


def _any_target(build: Build) -> Target:
    return next(iter(build.plan.cells)).target


def _default_bound(build: Build, result: CellResult) -> None:
    """A lossy cell whose metric no limit judges may lose 1 % of it, relative, at most."""
    if not result.lossy or isinstance(result.metrics, str):
        return
    limited = set(build.recipe.gate.drop) if build.recipe.gate else set()
    budget = next((o.budget for o in result.outcomes if o.budget is not None), None)
    if budget is not None:
        if not limited:
            _held_to_budget(result, budget)
        return
    for name, metric in result.metrics.items():
        if limited or isinstance(metric.drop, str) or isinstance(metric.source, Skipped):
            return
        allowed = RELATIVE_DROP * abs(metric.source)
        if metric.drop.point > allowed:
            result.fail(
                f"{name} drops by {metric.drop.point:.4g}, the default bound is 1 % of "
                f"{metric.source:.4g} (fix: limit it yourself: gate: {{drop: {{{name}: ...}}}})"
            )
        return  # the first metric is the one that choices and limits use


def _held_to_budget(result: CellResult, budget: Budget) -> None:
    """What `max_drop` promised on the tuning split must not be refuted by the evaluation split.

    Where it was not met there, the gate says so already.
    """
    assert not isinstance(result.metrics, str)
    drop = next(iter(result.metrics.values())).drop
    if budget.met and not isinstance(drop, str) and drop.lower > budget.limit:
        result.fail(
            f"{budget.name} was met on the tuning data, but on the evaluation data it drops by"
            f" {drop.point:.4g}, at least {drop.lower:.4g} (fix: more tuning data)"
        )
