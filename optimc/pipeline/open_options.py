"""Options of targets that the recipe leaves open (`threads: auto`), tried on finished cells.

Which value is the fastest depends on the machine and on the cell, so it is measured in each cell
against the usual value, in turns. The engine with the chosen values proves itself as every engine
does; the sources that it is held against get the same values. The choice is kept in the cache and
written to the lock, and `--locked` replays it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from optimc.core.errors import CellError, InputError, OptimcError
from optimc.pipeline.lock import lock_path
from optimc.pipeline.parallel import run_side_by_side
from optimc.pipeline.trials import Trial, fastest
from optimc.report.schema import ChosenOption

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel
    from optimc.core.targets import Engine, OptionValue, Target
    from optimc.pipeline.assemble import CellResult
    from optimc.pipeline.build import Build
    from optimc.pipeline.oracle import Oracle

Proved: TypeAlias = "Callable[[Target], str]"
"""Tells why the cell's engine for a target must not be taken; empty where it may."""

MOST_SECONDS = 5.0
"""For one option of one cell; see `optimc.pipeline.trials` for what is not decided by then."""


def choose_options(
    build: Build, models: Mapping[str, OnnxModel], oracle: Oracle, skip_reason: str | None
) -> None:
    """Gives cells whose target has open options the fastest values, as `CellResult.options`."""
    for result in build.cells_alive():
        asked = build.recipe.targets[result.cell.target_name]
        if not asked.open_options():
            continue
        model = models[result.cell.name]

        def proved(target: Target, result: CellResult = result, model: OnnxModel = model) -> str:
            trial = replace(result, cell=replace(result.cell, target=target))
            return why_not_taken(build, trial, model, oracle, skip_reason)

        chosen = _chosen(build, result, asked, model, proved)
        if chosen and _settled(build, result, asked, chosen, models, oracle, skip_reason):
            result.options = chosen


def _chosen(
    build: Build, result: CellResult, asked: Target, model: OnnxModel, proved: Proved
) -> dict[str, ChosenOption]:
    """The values by the lock or by measuring; none where there is neither."""
    usual = ", ".join(f"{name}: {tried[0]}" for name, tried in asked.open_options().items())
    if build.locked is not None:
        locked = _locked(build, result, asked)
        if not locked:
            build.notes.append(f"{result.cell.name}: {usual}: the lock holds no other choice")
        return locked
    if not build.options.measure:
        note = f"{result.cell.target_name}: {usual}: nothing else was tried, as measuring is off"
        build.notes.append(note)
        return {}
    return _measured(build, result, asked, model, proved)


def why_not_taken(
    build: Build, trial: CellResult, model: OnnxModel, oracle: Oracle, skip_reason: str | None
) -> str:
    """Why an engine that computes other numbers must not be taken; empty where it may.

    It has to prove itself as every engine does. Where the recipe limits its first metric and has a
    tuning split, the metric has to hold there: the evaluation split is for the gate alone.
    """
    from optimc.pipeline.tuning import can_tune

    try:
        engine, proof = build.proved(trial, model, model, oracle, skip_reason)
        if proof.finding.broke:
            return proof.finding.reason or "it did not prove itself"
        limit = _limit(build, trial)
        if limit is None or not can_tune(build.recipe):
            return ""
        drop = build.tuning.drop_of_engine(engine)
    except OptimcError as error:
        return error.what
    finally:
        if "tuning" in build.__dict__:
            build.tuning.close()
    if drop.point <= limit:
        return ""
    return f"{build.tuning.metric} drops by {drop.point:.4g} on the tuning data, limit {limit:g}"


def _limit(build: Build, trial: CellResult) -> float | None:
    """How far the first metric may drop, by the gate and by passes; None where nothing says it."""
    limits = [outcome.budget.limit for outcome in trial.outcomes if outcome.budget is not None]
    drops = build.recipe.gate.drop if build.recipe.gate is not None else {}
    limits += [drops[name] for name in list(build.recipe.metrics)[:1] if name in drops]
    return min(limits, default=None)


def _locked(build: Build, result: CellResult, asked: Target) -> dict[str, ChosenOption]:
    """What the lock says of the cell. Raises InputError where the target does not take it."""
    assert build.locked is not None
    try:
        values = dict(build.locked["choices"].get("options", {}).get(result.cell.name, {}))
        settled = asked.settled(values)
        if not values.keys() <= asked.open_options().keys() or settled.open_options():
            raise ValueError("these are not the options that the recipe leaves open")
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"choices.options of {result.cell.name} cannot be replayed: {error}",
            where=str(lock_path(build.recipe.path)),
            fix="build once without --locked to write it anew",
        ) from error
    return {
        name: ChosenOption(value=value, why="as the lock says") for name, value in values.items()
    }


def _measured(
    build: Build, result: CellResult, asked: Target, model: OnnxModel, proved: Proved
) -> dict[str, ChosenOption]:
    """One option after the other, each with what was chosen for those before."""
    found: dict[str, ChosenOption] = {}
    for option, tried in asked.open_options().items():
        before = {name: chosen.value for name, chosen in found.items()}
        targets = {value: asked.settled({**before, option: value}) for value in tried}
        build.observer.on_stage(f"trying {option} for {result.cell.name}")
        engines = _engines(build, result.cell.name, option, targets, model)
        for value in [v for v in engines if v != tried[0] and option in asked.inexact_options]:
            why = proved(targets[value])
            if why:
                del engines[value]
                note = f"{option}: {value} was not tried: {why}"
                build.notes.append(f"{result.cell.name}: {note}")
        nothing = asked.not_tried().get(option, "there is nothing else to try here")
        found[option] = _tried(build, result.cell.name, option, engines, nothing)
    return found


def _engines(
    build: Build,
    name: str,
    option: str,
    targets: Mapping[OptionValue, Target],
    model: OnnxModel,
) -> dict[OptionValue, Engine]:
    """The engines with each value, in their order; what does not build is left out and noted."""
    built: dict[OptionValue, Engine] = {}

    def build_one(value: OptionValue) -> None:
        try:
            built[value] = build.engines.build(f"{name}, {option}: {value}", targets[value], model)
        except CellError as error:
            build.notes.append(f"{name}: {option}: {value} was not tried: {error.what}")

    run_side_by_side(targets, build_one)
    return {value: built[value] for value in targets if value in built}


def _tried(
    build: Build, name: str, option: str, engines: Mapping[OptionValue, Engine], nothing: str
) -> ChosenOption:
    """The value that is taken, and why, which the notes say too; `nothing` where there is one."""
    by_name = {str(value): value for value in engines}
    first, *others = by_name
    trial = Trial(first, {})
    if others:
        try:
            named = {str(value): engine for value, engine in engines.items()}
            trial = fastest(build, name, named, MOST_SECONDS)
        except OptimcError as error:
            # One of them breaks when it is timed. What breaks in the usual one shows again later.
            trial = Trial(first, dict.fromkeys(others, f"not known: {error.what}"))
    listed = "; ".join(f"{one} is {trial.told_against(one, first)}" for one in others)
    why = listed or nothing
    build.notes.append(f"{name}: {option}: {trial.taken}: {why}")
    build.observer.on_detail(f"{name:<28} {option}: {trial.taken}")
    return ChosenOption(value=by_name[trial.taken], why=why)


def _settled(
    build: Build,
    result: CellResult,
    asked: Target,
    chosen: Mapping[str, ChosenOption],
    models: Mapping[str, OnnxModel],
    oracle: Oracle,
    skip_reason: str | None,
) -> bool:
    """Gives the cell the engine with the `chosen` values, where it proves itself."""
    target = asked.settled({name: one.value for name, one in chosen.items()})
    if target == result.cell.target:
        return True
    model = models[result.cell.name]
    trial = replace(result, cell=replace(result.cell, target=target))
    listed = ", ".join(f"{name}: {one.value}" for name, one in chosen.items())
    try:
        engine, proof = build.proved(trial, model, model, oracle, skip_reason)
        broke = proof.finding.reason if proof.finding.broke else None
    except CellError as error:
        broke = error.what
    if broke is None:
        result.cell, result.engine, result.proof = trial.cell, engine, proof
        return True
    if build.locked is not None:
        result.fail(f"the engine with {listed}, as the lock says, did not prove itself: {broke}")
    build.notes.append(f"{result.cell.name}: {listed}: rolled back: {broke}")
    return False
