"""The part of ``report.json`` that follows one cell from pass to pass."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from optimc.report.values import Count, Interval, Measured, MeasuredCount, Node, Text


class Step(Node):
    """What stood after one pass; the first step is the source."""

    name: Annotated[Text, Field(description="The pass; of the first step `source`.")]
    parameters: Count
    bytes: Annotated[Count, Field(description="Of the weights.")]
    macs: Annotated[
        MeasuredCount, Field(description="Of one sample at the typical sizes of the other dims.")
    ]
    drop: Annotated[Measured, Field(description="Of the first metric, on the tuning split.")]
    drop_ci95: Interval | None = None
    speedup: Annotated[Measured, Field(description="Over the source on the cell's own target.")]
    speedup_ci95: Interval | None = None


class CellSteps(Node):
    """One cell whose passes changed the module: accuracy, MACs, size and latency after each."""

    cell: Text
    metric: Annotated[Text | None, Field(description="null: the recipe names none.")] = None
    steps: tuple[Step, ...]
