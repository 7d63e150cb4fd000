"""One `optimc diff`: both sides on the same inputs, some values at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError, InputError
from optimc.core.worker import Limits
from optimc.pipeline.diff.comparing import Gathered, Limit, Trends, row_of
from optimc.pipeline.diff.matching import Pair, ancestors, match_inputs, match_values
from optimc.pipeline.diff.sides import Side, has_subgraphs, opened
from optimc.pipeline.observer import BuildObserver
from optimc.pipeline.values import Chunks, RuntimeName, ValueRunner
from optimc.report.diff import DiffReport, ValueRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.pipeline.probes import Probe

    Arrays = Mapping[str, NDArray[Any]]

_SAMPLES = 8
"""Calibration samples of a recipe."""


@dataclass(frozen=True)
class DiffOptions:
    """What the command line says."""

    a: Path
    b: Path
    limit: Limit
    runtime: RuntimeName | None = None
    """What runs B."""
    optimized: bool | None = None
    """Whether ONNX Runtime may rewrite B."""
    inputs: Path | None = None
    recipe: Path | None = None
    seed: int = 0
    outputs_only: bool = False
    untrusted: bool = False


def compare_models(
    options: DiffOptions, workspace: Path, limits: Limits, observer: BuildObserver
) -> DiffReport:
    """Compares A, the reference, with B. Raises InputError where they cannot be compared."""
    with ExitStack() as stack:
        observer.on_stage("reading both models")
        for name in ("a", "b"):
            (workspace / name).mkdir()
        a = stack.enter_context(
            opened(
                options.a,
                runtime=None,
                optimized=None,
                limits=limits,
                workspace=workspace / "a",
                untrusted=options.untrusted,
            )
        )
        b = stack.enter_context(
            opened(
                options.b,
                runtime=options.runtime,
                optimized=options.optimized,
                limits=limits,
                workspace=workspace / "b",
                untrusted=options.untrusted,
            )
        )
        probes = _probes(options, a)
        return _Comparison(a, b, options, probes, limits, observer).run()


class _Comparison:
    def __init__(
        self,
        a: Side,
        b: Side,
        options: DiffOptions,
        probes: Sequence[Probe],
        limits: Limits,
        observer: BuildObserver,
    ) -> None:
        self.a, self.b, self.options = a, b, options
        self.probes, self.limits, self.observer = probes, limits, observer
        self.inputs = match_inputs(a, b)
        self.notes = [*a.notes, *b.notes]
        pairs = match_values(a, b, self.inputs)
        self.outputs = _matched_outputs(a, b, pairs)
        self.pairs = pairs
        self.gathered: dict[str, Gathered] = {pair.a.name: Gathered() for pair in pairs}
        self.from_outputs: dict[str, Gathered] = {name: Gathered() for name in self.outputs}

    def run(self) -> DiffReport:
        feeds_a = [probe.feeds for probe in self.probes]
        feeds_b = [{self.inputs[n]: a for n, a in feeds.items()} for feeds in feeds_a]
        with (
            ValueRunner(self.a.runnable, self.limits, "the runtime of A") as first,
            ValueRunner(self.b.runnable, self.limits, "the runtime of B") as second,
        ):
            self.observer.on_stage("comparing outputs")
            # By themselves first: with inner values as outputs, a runtime fuses less.
            self._compare_outputs(_run(first, feeds_a, "A"), _run(second, feeds_b, "B"))
            if not self.options.outputs_only:
                self.observer.on_stage("comparing inner values")
                self._compare_inner(first, feeds_a, second, feeds_b)
        return self._report()

    def _compare_outputs(self, first: Sequence[Arrays], second: Sequence[Arrays]) -> None:
        for mine, theirs in zip(first, second, strict=True):
            for name, other in self.outputs.items():
                self.from_outputs[name].add(mine.get(name), theirs.get(other))

    def _compare_inner(
        self,
        first: ValueRunner,
        feeds_a: Sequence[Arrays],
        second: ValueRunner,
        feeds_b: Sequence[Arrays],
    ) -> None:
        own = set(self.outputs)
        pairs = {p.a.name: p for p in self.pairs if not own & set(p.a.names)}
        chunks = Chunks(list(pairs))
        for chunk in chunks:
            wanted = [pairs[name].b.name for name in chunk]
            try:
                mine = first.run_all(feeds_a, chunk)
                theirs = second.run_all(feeds_b, wanted)
            except CellError as error:
                chunks.failed(chunk, error)
                continue
            chunks.seen(max(_bytes(mine, chunk), _bytes(theirs, wanted)))
            for x, y in zip(mine, theirs, strict=True):
                for name, other in zip(chunk, wanted, strict=True):
                    self.gathered[name].add(x.get(name), y.get(other))
            self.observer.on_share(chunks.share, f"{len(pairs)} values")
        for name, reason in chunks.refused.items():
            self.gathered[name].skipped = reason

    def _report(self) -> DiffReport:
        rows = self._rows()
        limit = self.options.limit
        outputs = list(self.from_outputs.values())
        same = all(g.skipped is None and not limit.exceeded(g) for g in outputs)
        matched_a = {p.a.name for p in self.pairs}
        matched_b = {p.b.name for p in self.pairs}
        return DiffReport(
            a=self.a.label,
            b=self.b.label,
            a_run=self.a.how,
            b_run=self.b.how,
            inputs=tuple(probe.label for probe in self.probes),
            limit=limit.text,
            same=same,
            rows=tuple(rows),
            unmatched_a=tuple(v.name for v in self.a.values if v.name not in matched_a),
            unmatched_b=tuple(v.name for v in self.b.values if v.name not in matched_b),
            notes=tuple(dict.fromkeys((*self.notes, *self._said()))),
        )

    def _rows(self) -> list[ValueRow]:
        compared = {p.a.name for p in self.pairs}
        trends = Trends(self.options.limit, dict(ancestors(self.a, compared)))
        places = {name: n for n, v in enumerate(self.a.values, start=1) for name in v.names}
        rows = []
        left = dict(self.outputs)
        for pair in self.pairs:
            own = next((name for name in pair.a.names if name in left), None)
            if own is not None:
                del left[own]
            elif self.options.outputs_only:
                continue
            gathered = self.gathered[pair.a.name] if own is None else self.from_outputs[own]
            rows.append(
                row_of(
                    places[pair.a.name],
                    (own or pair.a.name, pair.b.name if own is None else self.outputs[own]),
                    (pair.a.operator, pair.b.operator),
                    pair.how,
                    gathered,
                    trends.of(pair.a.name, gathered),
                    output=own is not None,
                )
            )
        for name, other in left.items():  # an input or a constant that is an output, too
            gathered = self.from_outputs[name]
            trend = trends.of(name, gathered)
            operators = ("output", "output")
            rows.append(
                row_of(
                    places.get(name, len(places) + 1),
                    (name, other),
                    operators,
                    "name" if name == other else "position",
                    gathered,
                    trend,
                    output=True,
                )
            )
        return sorted(rows, key=lambda row: row.number)

    def _said(self) -> list[str]:
        found = []
        sides = (self.a, self.b)
        if any(has_subgraphs(side.runnable.path) for side in sides):
            found.append("values inside of subgraphs (If, Loop, Scan) are not compared")
        if any(side.runnable.fuses for side in sides) and not self.options.outputs_only:
            found.append(
                "a runtime does not fuse over a value that it hands out: inner values show its "
                "kernels, the outputs were run as they are"
            )
        by_place = [p for p in self.pairs if p.how == "position"]
        if by_place:
            found.append(f"{len(by_place)} values were matched by position alone: look twice")
        return found


def _matched_outputs(a: Side, b: Side, pairs: Sequence[Pair]) -> dict[str, str]:
    """B's name of each of A's outputs. Raises InputError where they do not correspond."""
    mine = [spec.name for spec in a.signature.outputs]
    theirs = [spec.name for spec in b.signature.outputs]
    common = [name for name in mine if name in theirs]
    if len(common) == len(mine):
        return {name: name for name in mine}
    if len(mine) == len(theirs):
        return dict(zip(mine, theirs, strict=True))
    if common:
        return {name: name for name in common}
    raise InputError(
        f"the two models have other outputs: {', '.join(mine)} and {', '.join(theirs)}",
        where=f"{a.label} and {b.label}",
        fix="compare models of one interface",
    )


def _run(runner: ValueRunner, feeds: Sequence[Arrays], side: str) -> list[dict[str, Any]]:
    """The outputs. Raises InputError where the model does not run: nothing can be compared."""
    try:
        return runner.run_all(feeds)
    except CellError as error:
        raise InputError(
            f"{side} does not run on these inputs: {error.what}",
            where=error.where or str(runner.model.path.name),
            fix="give inputs that it takes: --inputs FILE.npz, or --recipe RECIPE",
        ) from error


def _bytes(runs: Sequence[Arrays], names: Sequence[str]) -> int:
    """Of the largest of the values, over all runs."""
    return max((sum(r[n].nbytes for r in runs if n in r) for n in names), default=0)


def _probes(options: DiffOptions, a: Side) -> Sequence[Probe]:
    from optimc.pipeline.feeds import probe_of_file, seeded_probes

    if options.inputs is not None:
        return [probe_of_file(options.inputs, a.signature)]
    recipe = a.known
    if options.recipe is not None:
        from optimc.pipeline.recipe import load_recipe

        recipe = load_recipe(options.recipe, (), options.untrusted)
    if recipe is None:
        return seeded_probes(a.signature, options.seed)
    return _recipe_probes(recipe, a)


def _recipe_probes(recipe: Any, a: Side) -> Sequence[Probe]:
    """Samples of the recipe's calibration data, and seeded inputs at its sizes."""
    from optimc.pipeline.data import open_data
    from optimc.pipeline.probes import ProbeSource

    data = open_data(recipe, a.signature)
    source = ProbeSource(
        a.signature,
        data.dims,
        recipe.inputs,
        recipe.seed,
        () if data.random else data.samples(_SAMPLES),
    )
    probes = source.for_passes("fast")
    real = [probe for probe in probes if probe.real]
    return real or probes
