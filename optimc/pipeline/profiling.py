"""How long each layer takes: of what ships, and of the source on the same targets.

By each runtime's own profiler, in a worker of its own, after everything else was timed: profiling
slows an engine down, so that no latency is taken from here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError, OptimcError
from optimc.pipeline.module_paths import GraphNode, nodes_of, same_nodes
from optimc.pipeline.timing import Case, exclusive
from optimc.report.profile import EngineProfile, ProfiledLayer
from optimc.report.values import Skipped
from optimc.targets.client import EngineWorker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.core.model import OnnxModel
    from optimc.core.targets import Engine, TimedLayer
    from optimc.core.worker import Limits
    from optimc.pipeline.assemble import CellResult
    from optimc.pipeline.build import Build
    from optimc.pipeline.gate import GateResult

WARMUP = 3
NO_PROFILER = "no runtime here has a profiler"
_MOST_RUNS, _LEAST_RUNS = 50, 5
_SECONDS = 1.0
"""About how long one engine is profiled for."""


class Origins:
    """Which nodes of the source the nodes and values of an engine's graph come from."""

    def __init__(
        self, model: OnnxModel, source: OnnxModel, exported: OnnxModel | None = None
    ) -> None:
        """`model` is what the engine was made from: the source itself, or what came of it.

        `exported` is what passes on the module left, where there were some: its values have names
        of their own, and it is told from the source by the modules of both.
        """
        self._nodes = nodes_of(model)
        self._source = nodes_of(source if exported is None else exported)
        self._same = None if exported is None else same_nodes(self._source, nodes_of(source))
        makers = {value: node for node in self._source for value in node.outputs}
        if model.digest == source.digest:
            self._origins = list(self._source)
            return
        provenance = model.provenance
        self._origins = []
        for node in self._nodes:
            names = [provenance.get(value, "") for value in node.outputs]
            if exported is not None:
                names += node.outputs  # passes keep them where a value means the same
            found = (makers.get(name) for name in names)
            self._origins.append(next((maker for maker in found if maker is not None), None))

    _origins: list[GraphNode | None]

    def name_of(self, layer: TimedLayer, nodes: Sequence[str]) -> str:
        """What tables call a layer that does the work of `nodes`: numbers in names of an export
        count anew, so that the layer of another node may have its name in the source."""
        return layer.name if self._same is None or not nodes else nodes[0]

    def of(self, layers: Iterable[TimedLayer]) -> list[tuple[str, ...]]:
        """For each layer the names of the source's nodes that it does the work of.

        A node that no layer names was taken in by the layer that makes its input, as runtimes do
        with activations. A node of the source that nothing comes from was taken in by what all its
        readers became, as passes do with what they fold into weights.
        """
        layers = list(layers)
        owners: dict[GraphNode, int] = {}
        for node, owner in self._owned(layers):
            if node is not None:
                owners.setdefault(node, owner)
        readers: dict[str, list[GraphNode]] = {}
        for node in self._source:
            for value in node.inputs:
                readers.setdefault(value, []).append(node)
        for node in reversed(self._source):
            of_readers = {owners.get(r) for value in node.outputs for r in readers.get(value, ())}
            if node not in owners and len(of_readers) == 1:
                reader = of_readers.pop()
                if reader is not None:
                    owners[node] = reader
        found: list[list[str]] = [[] for _ in layers]
        for node in self._source:
            origin = node if self._same is None else self._same.get(node)
            if node in owners and origin is not None:
                found[owners[node]].append(origin.called)
        return [tuple(names) for names in found]

    def _owned(self, layers: Sequence[TimedLayer]) -> Iterator[tuple[GraphNode | None, int]]:
        """Each node of the engine's graph that a layer runs, by its origin, with that layer."""
        named: dict[str, int] = {}
        for index, layer in enumerate(layers):
            for part in layer.parts:
                named.setdefault(part, index)
        made_by: dict[str, int] = {}
        for node, origin in zip(self._nodes, self._origins, strict=True):
            parts = (*node.outputs, node.name)
            owner = next((named[part] for part in parts if part in named), None)
            if owner is None:
                owner = next((made_by[value] for value in node.inputs if value in made_by), None)
            if owner is not None:
                made_by.update(dict.fromkeys(node.outputs, owner))
                yield origin, owner


def profile(build: Build, gate: GateResult, case: Case) -> tuple[EngineProfile, ...] | Skipped:
    """The layers of what ships and of the source on its targets, on one case.

    Where nothing ships, those of the fastest cell: one wants to know where its time goes.
    """
    chosen = chosen_cells(build, gate)
    if not chosen:
        return Skipped(skipped="nothing was built")
    from optimc.pipeline.references import source_engine

    found: list[EngineProfile] = []
    with exclusive(build.cache.folder / "measuring.lock", build.observer.on_share):
        for target_name in dict.fromkeys(result.cell.target_name for result in chosen):
            target = next(r.cell.target for r in chosen if r.cell.target_name == target_name)
            try:
                engine = source_engine(build, target)
            except OptimcError:
                continue  # the notes say that the target does not take the source
            name, feeds = f"source on {target_name}", case.reference[0]
            origins = Origins(build.source.model, build.source.model)
            asked = Asked(name, None, engine, case.sizes, feeds, origins)
            found += profiled(asked, build.limits, build.notes)
        for result in chosen:
            assert result.engine is not None
            model = result.final_model(build.start.model)
            origins = Origins(model, build.source.model, result.exported)
            name = result.cell.name
            feeds = case.feeds[0]
            asked = Asked(name, name, result.engine, case.sizes, feeds, origins)
            found += profiled(asked, build.limits, build.notes)
    return tuple(found) or Skipped(skipped=NO_PROFILER)


def chosen_cells(build: Build, gate: GateResult) -> list[CellResult]:
    """What ships; where nothing ships, the fastest cell; nothing where none was built."""
    alive = {result.cell.name: result for result in build.cells_alive()}
    if gate.gate.verdict == "passed":
        if gate.best is not None:
            return [alive[gate.best.name]]
        names = {check.cell for check in gate.gate.checks if check.required}
        return [result for name, result in alive.items() if name in names]
    fastest = max(alive.values(), key=_speedup, default=None)
    return [] if fastest is None else [fastest]


def _speedup(result: CellResult) -> float:
    if not isinstance(result.cases, Mapping) or not result.cases:
        return 0.0
    speedup = next(iter(result.cases.values())).speedup
    return 0.0 if isinstance(speedup, str) else speedup.point


@dataclass(frozen=True)
class Asked:
    """An engine whose layers are to be timed."""

    name: str
    cell: str | None
    """The cell's name, None for the source."""
    engine: Engine
    sizes: Mapping[str, int]
    """Of the dims in `feeds`."""
    feeds: Mapping[str, NDArray[Any]]
    origins: Origins


def profiled(asked: Asked, limits: Limits, notes: list[str]) -> list[EngineProfile]:
    """The profile of one engine; nothing where its runtime has no profiler or, with a line in
    `notes`, it fails."""
    name, feeds = asked.name, asked.feeds
    try:
        with EngineWorker(asked.engine, name=f"the engine {name}", limits=limits) as worker:
            worker.run(feeds)
            started = time.perf_counter()
            worker.run(feeds)
            one_s = time.perf_counter() - started
            runs = int(min(_MOST_RUNS, max(_LEAST_RUNS, _SECONDS / max(one_s, 1e-6))))
            layers = worker.profile(feeds, WARMUP, runs)
    except CellError as error:
        notes.append(f"{name} was not profiled: {error.what}")
        return []
    if layers is None:
        return []
    made = tuple(
        ProfiledLayer(
            name=asked.origins.name_of(layer, nodes),
            operator=layer.operator,
            dtype=layer.dtype,
            ms=round(layer.ms, 6),
            nodes=nodes,
        )
        for layer, nodes in zip(layers, asked.origins.of(layers), strict=True)
    )
    return [
        EngineProfile(
            engine=name,
            cell=asked.cell,
            runtime=asked.engine.runtime,
            case=dict(asked.sizes),
            runs=runs,
            layers=made,
        )
    ]
