"""The part of ``report.json`` that says how long each layer of an engine takes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from optimc.report.values import Count, Finite, Node, Text


class ProfiledLayer(Node):
    """One layer as the runtime ran it."""

    name: Text
    operator: Text
    dtype: Annotated[Text, Field(description="The numpy name of the type it computes in.")]
    ms: Annotated[Finite, Field(ge=0, description="The median over the profiled runs.")]
    nodes: Annotated[
        tuple[Text, ...],
        Field(description="The source's nodes that it does the work of; empty: none is known."),
    ] = ()


class EngineProfile(Node):
    """The layers of one engine, timed by its runtime's own profiler, apart from the latencies."""

    engine: Annotated[Text, Field(description="A cell's name, or `source on <target>`.")]
    cell: Annotated[Text | None, Field(description="The cell's name; null: the source.")]
    runtime: Text
    case: Annotated[dict[Text, int], Field(description="As in a latency's case.")]
    runs: Count
    layers: tuple[ProfiledLayer, ...]
