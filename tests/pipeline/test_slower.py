"""Where quantization made an engine slower, the report says so and says what it stands against."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from optimc.passes.fuse import Fuse
from optimc.passes.prune_depth import PruneDepth
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.passes.smooth_quant import SmoothQuant
from optimc.pipeline.slower import slower_in_int8
from optimc.report.schema import Cell
from optimc.report.steps import CellSteps, Step
from optimc.testing.example_report import example_report

FAST, SLOW = (2.0, (1.9, 2.1)), (1.5, (1.4, 1.6))
LIKE_FAST = (1.85, (1.7, 2.0))


def recipe(**variants: list[Any]) -> Any:
    entries = {
        name: SimpleNamespace(
            passes=tuple(SimpleNamespace(name=p.pass_name(), pass_=p) for p in passes)
        )
        for name, passes in variants.items()
    }
    return SimpleNamespace(variants=entries)


def report(**speedups: tuple[float, tuple[float, float]]) -> Any:
    """Cells on `ort` with these speed-ups, over the source on whatever runtime."""
    like = next(cell for cell in example_report().results if cell.name == "int8/ort")

    def cell(variant: str, value: float, ends: tuple[float, float]) -> Cell:
        return like.model_copy(
            update={
                "variant": variant,
                **{
                    kind: getattr(like, kind).model_copy(update={"value": value, "ci95": ends})
                    for kind in ("speedup", "speedup_same_runtime")
                },
            }
        )

    cells = tuple(cell(name, *figure) for name, figure in speedups.items())
    return example_report().model_copy(update={"results": cells})


INT8 = [Fuse(), SmoothQuant(), QuantizeInt8()]


def test_the_cell_of_the_same_passes_is_what_it_is_held_against() -> None:
    variants = recipe(fp32=[Fuse()], bare=[], int8=INT8)
    (line,) = slower_in_int8(variants, report(bare=(9.0, (8.0, 9.9)), fp32=FAST, int8=SLOW))
    assert line.startswith(
        "int8/ort: quantize_int8 made it slower here: 1.5× [1.4, 1.6] against 2.0× [1.9, 2.1] of"
        " fp32/ort; "
    )
    assert "`keep_float`" in line


@pytest.mark.parametrize("figure", [FAST, LIKE_FAST])
def test_intervals_that_meet_say_nothing(figure: Any) -> None:
    variants = recipe(fp32=[Fuse()], int8=INT8)
    assert list(slower_in_int8(variants, report(fp32=FAST, int8=figure))) == []


def test_without_such_a_cell_the_source_stands_for_it() -> None:
    (line,) = slower_in_int8(recipe(int8=INT8), report(int8=(0.8, (0.7, 0.9))))
    assert "0.8× [0.7, 0.9] against 1 of source on the same runtime" in line
    assert list(slower_in_int8(recipe(int8=INT8), report(int8=SLOW))) == []
    pruned = recipe(int8=[PruneDepth(blocks=1), *INT8])
    assert list(slower_in_int8(pruned, report(int8=(0.8, (0.7, 0.9))))) == []


def test_a_pruned_cell_is_held_against_the_step_before() -> None:
    def step(name: str, figure: Any) -> Step:
        value, ends = figure
        return Step(
            name=name, parameters=1, bytes=1, macs=1, drop=0.0, speedup=value, speedup_ci95=ends
        )

    def followed(last: Any) -> CellSteps:
        source = step("source", (1.0, None))
        steps = (source, step("1. prune_depth", FAST), step("4. quantize_int8", last))
        return CellSteps(cell="int8/ort", steps=steps)

    variants = recipe(int8=[PruneDepth(blocks=1), *INT8])
    cells = report(int8=(1.2, (1.1, 1.3)))
    (line,) = slower_in_int8(variants, cells, [followed(SLOW)])
    assert "1.5× [1.4, 1.6] against 2.0× [1.9, 2.1] of 1. prune_depth" in line
    assert list(slower_in_int8(variants, cells, [followed(LIKE_FAST)])) == []
