"""The part of ``report.json`` that says what each quantized tensor can hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from optimc.report.values import Finite, MeasuredError, Node, Text


class QuantizedRange(Node):
    """One tensor between a quantization and a dequantization."""

    tensor: Annotated[Text, Field(description="The source's name where it is known.")]
    kind: Literal["activation", "weight"]
    dtype: Text
    low: Annotated[Finite, Field(description="The least value that it can hold.")]
    high: Annotated[Finite, Field(description="The greatest value that it can hold.")]
    scales: Annotated[int, Field(ge=1, description="1, or one for each channel or block.")]
    sqnr_db: Annotated[
        MeasuredError | None, Field(description="Of the rounding alone; null: not known.")
    ] = None


class CellRanges(Node):
    """The quantized tensors of one cell's model, in the order of the graph."""

    cell: Text
    ranges: tuple[QuantizedRange, ...]
