"""Says where quantization made an engine slower: a reader would expect the contrary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from optimc.core.model import Level
from optimc.report import figures
from optimc.report.values import Skipped

if TYPE_CHECKING:
    from optimc.pipeline.recipe.schema import PassEntry, Recipe
    from optimc.report.schema import Cell, Report
    from optimc.report.steps import CellSteps, Step

    Figure: TypeAlias = tuple[float, tuple[float, float]]
    """A speed-up with its interval."""

_PREPARES = frozenset({"equalize", "smooth_quant"})
"""Passes that do nothing but prepare a quantization."""


_ONE = (1.0, (1.0, 1.0))


@dataclass(frozen=True)
class _Pair:
    """Speed-ups over one and the same engine."""

    other: str
    """What stands for the float form."""
    now: Figure
    before: Figure


def slower_in_int8(
    recipe: Recipe, report: Report, steps: Sequence[CellSteps] = ()
) -> Iterator[str]:
    """A line for each cell that is slower than its float form, with intervals that are apart.

    The float form is the cell of the same passes without the quantization; else the step before it,
    where the cell was followed from pass to pass; else the source on the same runtime, unless
    passes on modules made the model smaller.
    """
    followed = {one.cell: one for one in steps}
    for cell in report.results:
        entries = recipe.variants[cell.variant].passes
        place = _quantization(entries)
        if place is None:
            continue
        found = _sibling(recipe, report, cell)
        if found is None and cell.name in followed:
            found = _steps_around(followed[cell.name], place)
        elif found is None and Level.TORCH not in entries[0].pass_.levels():
            found = _source(cell)
        if found is not None and found.now[1][1] < found.before[1][0]:
            yield _line(cell.name, entries[place].name, found)


def _line(cell: str, pass_: str, found: _Pair) -> str:
    was = "1" if found.before == _ONE else figures.bracketed(*found.before, figures.TIMES)
    return (
        f"{cell}: {pass_} made it slower here: {figures.bracketed(*found.now, figures.TIMES)} "
        f"against {was} of {found.other}; small layers can cost more to quantize than they save, "
        "and so can float operators between them: the layers' times show which, `keep_float` "
        "leaves them out"
    )


def _quantization(entries: Sequence[PassEntry]) -> int | None:
    """The place of the first pass that quantizes."""
    return next((n for n, entry in enumerate(entries) if entry.pass_.quantizes), None)


def _speedup(cell: Cell) -> Figure | None:
    figure = cell.speedup
    return None if isinstance(figure, Skipped) else (figure.value, figure.ci95)


def _source(cell: Cell) -> _Pair | None:
    figure = cell.speedup_same_runtime
    if isinstance(figure, Skipped):
        return None
    return _Pair(figure.against, (figure.value, figure.ci95), _ONE)


def _sibling(recipe: Recipe, report: Report, cell: Cell) -> _Pair | None:
    """The float cell on the same target with the same passes."""
    wanted, now = _float_passes(recipe.variants[cell.variant].passes), _speedup(cell)
    for other in report.results if now is not None else ():
        entries = recipe.variants[other.variant].passes
        before = _speedup(other)
        if other.target != cell.target or _quantization(entries) is not None or before is None:
            continue
        if now is not None and _float_passes(entries) == wanted:
            return _Pair(other.name, now, before)
    return None


def _float_passes(entries: Sequence[PassEntry]) -> list[tuple[str, Mapping[str, object]]]:
    """Names and options of the passes before the quantization, or of all."""
    left = entries[: _quantization(entries)]
    return [(e.name, e.pass_.options()) for e in left if e.name not in _PREPARES]


def _steps_around(steps: CellSteps, place: int) -> _Pair | None:
    """The steps behind and before the pass at `place` (from 0)."""
    numbered = [(int(s.name.partition(".")[0]), s) for s in steps.steps if s.name != "source"]
    after = next((s for number, s in numbered if number == place + 1), None)
    step = next((s for number, s in reversed(numbered) if number <= place), None)
    now, before = _of_step(after), _of_step(step)
    if step is None or now is None or before is None:
        return None
    return _Pair(step.name, now, before)


def _of_step(step: Step | None) -> Figure | None:
    if step is None or isinstance(step.speedup, Skipped) or step.speedup_ci95 is None:
        return None
    return step.speedup, step.speedup_ci95
