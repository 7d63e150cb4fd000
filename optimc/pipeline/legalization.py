"""What only one runtime knows, tried on finished cells: kept where it verifies and is faster here.

A target rewrites the standard graph into operators of its own (`Target.legalize`). The engine of
that graph proves itself like any other, against the standard graph and the source. Whether it is
faster depends on the machine, so it is measured against the cell's plain engine, in turns; the
choice is kept in the cache and written to the lock, and `--locked` replays it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError
from optimc.pipeline.parallel import run_side_by_side
from optimc.pipeline.trials import fastest
from optimc.pipeline.verification import Verdict

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel
    from optimc.core.targets import Engine
    from optimc.pipeline.assemble import CellResult
    from optimc.pipeline.build import Build
    from optimc.pipeline.engines import EngineProof
    from optimc.pipeline.oracle import Oracle

MOST_SECONDS = 20.0
"""A trial that is not decided by then is as good as a tie, and the plain engine stays."""
_PLAIN, _LEGAL = "plain", "legalized"


@dataclass(frozen=True)
class Candidate:
    """A legalized engine that proved itself."""

    engine: Engine
    proof: EngineProof
    what: str
    """What the target did, in words."""


def legalize_cells(
    build: Build, models: Mapping[str, OnnxModel], oracle: Oracle, skip_reason: str | None
) -> dict[str, bool]:
    """Puts legalized engines into the cells where they stay; by cell: whether one was chosen.

    Cells of targets that legalize nothing are not in the result. What was tried and why it did not
    stay is in the build's notes.
    """
    legal: list[tuple[CellResult, OnnxModel, str]] = []
    for result in build.cells_alive():
        # One after the other: the rewriting libraries keep state of their own.
        if _wanted(build, result):
            found = _legalized(build, result, models[result.cell.name])
            legal += [(result, *found)] if found is not None else []
    candidates: dict[str, Candidate] = {}

    def prove(item: tuple[CellResult, OnnxModel, str]) -> None:
        result, model, what = item
        name = result.cell.name
        try:
            engine, proof = build.proved(result, models[name], model, oracle, skip_reason)
        except CellError as error:
            build.notes.append(f"{name}: {what}: rolled back: {error.what}")
            return
        reason = _refusal(result, proof)
        if reason is not None:
            build.notes.append(f"{name}: {what}: {reason}")
        else:
            candidates[name] = Candidate(engine, proof, what)

    run_side_by_side(legal, prove)
    chosen = [(result, candidates.get(result.cell.name)) for result, _, _ in legal]
    return {r.cell.name: _choose(build, r, found) for r, found in chosen if found is not None}


def _wanted(build: Build, result: CellResult) -> bool:
    """Whether a legalized engine of the cell may come to anything in this build."""
    mode, name = result.cell.target.legalization, result.cell.name
    if mode != "measured":
        return mode == "always"
    if build.locked is not None:
        return bool(_locked_choices(build).get(name))
    if not build.options.measure:
        build.notes.append(
            f"{result.cell.target_name}: operators of its own were not tried, as measuring is off"
        )
    return build.options.measure


def _locked_choices(build: Build) -> Mapping[str, Any]:
    assert build.locked is not None
    return dict(build.locked["choices"].get("legalized", {}))


def _legalized(build: Build, result: CellResult, model: OnnxModel) -> tuple[OnnxModel, str] | None:
    try:
        return build.engines.legalized(result.cell.target, model)
    except CellError as error:
        build.notes.append(f"{result.cell.name}: nothing was legalized: {error.what}")
        return None


def _refusal(result: CellResult, proof: EngineProof) -> str | None:
    """Why a legalized engine cannot stay, whatever its speed."""
    if proof.finding.broke:
        return f"rolled back: {proof.finding.reason}"
    if proof.finding.verdict is Verdict.UNVERIFIED and result.cell.target.legalization != "always":
        return f"not kept: {proof.finding.reason}"
    return None


def _choose(build: Build, result: CellResult, candidate: Candidate) -> bool:
    """Takes the candidate where it is to stay, and notes why."""
    name = result.cell.name
    if result.cell.target.legalization == "always":
        kept, why = True, "asked for by the recipe"
    elif build.locked is not None:
        kept, why = True, "as the lock says"
    else:
        kept, why = _measured(build, result, candidate)
    build.notes.append(f"{name}: {candidate.what}: {'kept' if kept else 'not kept'}, {why}")
    if kept:
        result.engine, result.proof = candidate.engine, candidate.proof
    return kept


def _measured(build: Build, result: CellResult, candidate: Candidate) -> tuple[bool, str]:
    """Whether the candidate is faster than the plain engine on this machine, and the figures."""
    assert result.engine is not None
    build.observer.on_stage("trying the runtimes' own operators")
    engines = {_PLAIN: result.engine, _LEGAL: candidate.engine}
    trial = fastest(build, result.cell.name, engines, MOST_SECONDS)
    return trial.taken == _LEGAL, trial.told_against(_LEGAL, "without")
