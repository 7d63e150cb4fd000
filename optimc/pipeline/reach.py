"""Which parts of a model the probes reach, and inputs that reach more.

What runs at all runs on every probe, but for the bodies of If, Loop and Scan: a branch that no
probe takes proves nothing of what a pass did to it. A copy of the model, with a mark in every body,
is run under ONNX Runtime's profiler, which tells the marks that were met in each run. Inputs that
may steer (booleans, single integers, floats of other sizes and signs) are tried in addition, and
those are kept that reach a new body or give a loop another number of rounds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.digest import digest_of
from optimc.core.errors import VerificationError
from optimc.core.leftovers import temporary_prefix
from optimc.pipeline.probes import Probe, ProbeSource, probes_digest
from optimc.pipeline.steering import ROUNDS
from optimc.pipeline.versions import compiler_digest, tool_versions

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimc.core.model import OnnxModel
    from optimc.core.store import Store
    from optimc.pipeline.oracle import Oracle

MARK = "optimc_mark_"


@dataclass(frozen=True)
class Reach:
    """What the probes reach of a model."""

    nodes: int
    """All nodes, those of bodies included."""
    unreached: Mapping[str, int] = field(default_factory=dict)
    """By body, such as ``then_branch of If `x```: nodes that no probe reaches. A body inside of one
    that is not reached is counted with it."""
    rounds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By loop: the numbers of rounds that were seen in one run of the model."""
    steering: Sequence[int] = ()
    """Which of the candidates reach what the probes do not."""

    @property
    def reached(self) -> int:
        """Nodes that some probe reaches."""
        return self.nodes - sum(self.unreached.values())


@dataclass(frozen=True)
class Body:
    """A graph inside a node. `mark` names it in the copy, `inside` the body around it."""

    mark: str
    label: str
    nodes: int
    inside: str | None
    digest: str


def reach_of(
    model: OnnxModel,
    oracle: Oracle,
    source: ProbeSource,
    store: Store,
    code: str,
) -> Reach:
    """What the oracle's probes, and the best of `source.steering()`, reach of `model`.

    Candidates are only made for models with bodies: for large inputs they are many bytes.
    Remembered in `store` under the contents of all; `code` names the code that found it out.
    """
    key = digest_of(
        ["reach", model.digest, model.names_digest, code],
        [probes_digest(oracle.probes), source.seed],
        {name: dim.model_dump(mode="json") for name, dim in source.dims.items()},
        {name: spec.model_dump(mode="json") for name, spec in source.inputs.items()},
    )
    entry = store.get("reach", key)
    if entry is None:

        def write(folder: Path) -> None:
            found = _reach(model, oracle, source)
            (folder / "reach.json").write_text(json.dumps(asdict(found)), encoding="utf-8")

        entry = store.put("reach", key, write)
    return Reach(**json.loads((entry / "reach.json").read_text(encoding="utf-8")))


def _reach(model: OnnxModel, oracle: Oracle, source: ProbeSource) -> Reach:
    nodes = model.stats.nodes
    bodies = bodies_of(model)
    if not bodies:
        return Reach(nodes)
    candidates = source.steering()
    try:
        runs = _marks(model, oracle, [*oracle.probes, *candidates])
    except VerificationError:
        return Reach(nodes, _unreached(bodies, set()))
    own, more = runs[: len(oracle.probes)], runs[len(oracle.probes) :]
    seen: set[tuple[str, int]] = set()
    for run in own:
        seen |= _news(bodies, run or {}, seen)
    steering = []
    for index, run in enumerate(more):
        news = _news(bodies, run, seen) if run is not None else set()
        if news:
            steering.append(index)
            seen |= news
    met = {mark for mark, count in seen if count}
    rounds = {
        body.label: sorted({count for mark, count in seen if mark == body.mark})
        for body in bodies
        if body.label.startswith("body of")
    }
    return Reach(nodes, _unreached(bodies, met), rounds, steering)


def _news(
    bodies: Sequence[Body], run: Mapping[str, int], seen: set[tuple[str, int]]
) -> set[tuple[str, int]]:
    """What a run shows that was not seen: a body met, a loop with another number of rounds."""
    news = set()
    for body in bodies:
        count = run.get(body.mark, 0)
        known = {number for mark, number in seen if mark == body.mark}
        if body.label.startswith("body of"):
            if count not in known and len(known) < ROUNDS:
                news.add((body.mark, count))
        elif count and not known:
            news.add((body.mark, 1))
    return news


def _unreached(bodies: Sequence[Body], met: set[str]) -> dict[str, int]:
    missed = [body for body in bodies if body.mark not in met]
    outermost = {body.mark for body in missed}
    return {body.label: body.nodes for body in missed if body.inside not in outermost}


def changed_out_of_reach(before: OnnxModel, after: OnnxModel, oracle: Oracle) -> list[str]:
    """The bodies of `after` that no probe reaches and that `before` does not have as they are."""
    bodies = bodies_of(after)
    if not bodies:
        return []
    known = {body.digest for body in bodies_of(before)}
    new = [body for body in bodies if body.digest not in known]
    if not new:
        return []
    try:
        met = {mark for run in _marks(after, oracle, oracle.probes) for mark in run or {}}
    except VerificationError:
        met = set()  # the copy with marks does not run: nothing is known
    return [body.label for body in new if body.mark not in met]


def reach_code() -> str:
    """Names the code that finds out what is reached."""
    return digest_of(compiler_digest(), tool_versions(["onnxruntime", "onnx-ir"]))


def bodies_of(model: OnnxModel) -> list[Body]:
    """Every graph inside a node, outer ones first, in graph order."""
    return [body for body, _ in _walk(model.ir.graph, None)]


def _walk(graph: ir.Graph, inside: str | None) -> Iterator[tuple[Body, ir.Graph]]:
    import onnx_ir

    for number, node in enumerate(graph):
        for name, attribute in node.attributes.items():
            if attribute.type != onnx_ir.AttributeType.GRAPH:
                continue
            inner = attribute.as_graph()
            mark = f"{inside or MARK}{number}_{name}_"
            label = f"{name} of {node.op_type} `{node.name or node.outputs[0].name}`"
            content = onnx_ir.to_proto(inner).SerializeToString(deterministic=True)
            digest = digest_of(content.hex())
            yield Body(mark, label, len(list(inner.all_nodes())), inside, digest), inner
            yield from _walk(inner, mark)


def _marks(
    model: OnnxModel, oracle: Oracle, probes: Sequence[Probe]
) -> list[dict[str, int] | None]:
    """For each probe how often each mark was met; None where the model refuses the probe."""
    import onnx_ir

    from optimc.core.model import OnnxModel

    copy = model.clone()
    for body, graph in _walk(copy.ir.graph, None):
        old = graph.outputs[0]
        marked = onnx_ir.node("Identity", [old], name=body.mark)
        graph.append(marked)
        value = marked.outputs[0]
        value.name, value.type, value.shape = f"{body.mark}value", old.type, old.shape
        graph.outputs[0] = value
    with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
        path = Path(folder) / "model.onnx"
        OnnxModel(copy.ir).write_onnx(path)
        return oracle.marks(path, probes, MARK)
