"""What has to fit together between the sections of a recipe.

Works on nodes: what one section names wrongly is found even where another one has problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimc.core.errors import did_you_mean
from optimc.pipeline.recipe.locate import Node, Problems, quoted
from optimc.pipeline.recipe.named import DEFAULT_TARGETS
from optimc.pipeline.recipe.schema import BEST, cells_matching
from optimc.pipeline.recipe.validation import known_names

_ROOT_TARGETS = tuple(DEFAULT_TARGETS)


def check_meaning(root: Node, problems: Problems) -> None:
    """Notes what does not fit: names of targets, cells, metrics and dims, and sizes of cases."""
    _Checker(root, problems).check()


def check_labels(fields: Mapping[str, Any], root: Node, problems: Problems) -> None:
    """Notes metrics that need labels where the typed `fields` of the recipe have none."""
    evaluation = fields["data"].evaluation if fields["data"] is not None else None
    if evaluation is not None and evaluation.has_labels:
        return
    for name, metric in fields["metrics"].items():
        if getattr(metric, "needs_labels", False):
            node = _mapping(root.get("metrics"))[name]
            fix = "name the evaluation data with their labels: data.evaluation.labels"
            what = f"the metric {quoted(name)} needs labels, and the recipe names none"
            problems.add(node.key or node.place, what, fix)


class _Checker:
    """The cross-checks of one document."""

    def __init__(self, root: Node, problems: Problems) -> None:
        self._root = root
        self._problems = problems
        self._variants = _mapping(root.get("variants"))
        targets = root.get("targets")
        self._targets = tuple(_mapping(targets)) if targets is not None else _ROOT_TARGETS
        self._metrics = _mapping(root.get("metrics"))

    def check(self) -> None:
        """All of them."""
        for section, needed in (("variants", "variant"), ("targets", "target")):
            node = self._root.get(section)
            if node is not None and node.value == {}:
                self._add(node, f"{section} names none", f"name at least one {needed}")
        sections = _mapping(self._root)
        if "variants" not in sections and not did_you_mean("variants", sections):
            fix = "for example `variants: {fp32: []}`"
            self._problems.add(self._root.place, "missing key `variants`", fix)
        self._check_targets()
        self._check_gate(_mapping(self._root.get("gate")))
        self._check_dims()

    def _add(self, node: Node, what: str, fix: str | None = None) -> None:
        if not node.bad:
            self._problems.add(node.place if node.key is None else node.key, what, fix)

    def _check_targets(self) -> None:
        for variant, node in self._variants.items():
            for entry in _items(node.get("targets")):
                if isinstance(entry.value, str) and entry.value not in self._targets:
                    what = f"unknown target {quoted(entry.value)} in variants.{variant}.targets"
                    self._add(entry, what, known_names(entry.value, self._targets))

    def _cells(self) -> tuple[tuple[str, str], ...]:
        cells = []
        for variant, node in self._variants.items():
            named = node.get("targets")
            chosen = [entry.value for entry in _items(named)]
            cells += [(variant, t) for t in self._targets if named is None or t in chosen]
        return tuple(cells)

    def _check_gate(self, gate: Mapping[str, Node]) -> None:
        ship = gate.get("ship")
        if ship is not None:
            entries = [ship] if isinstance(ship.value, str) else _items(ship)
            if not entries and ship.value == []:
                self._add(ship, "gate.ship names no cell", "write `best`, or `variant/target`")
            for entry in entries:
                if isinstance(entry.value, str):
                    self._check_pattern(entry, entry.value, alone=entry is ship)
        for key in ("drop", "metrics"):
            for metric, node in _mapping(gate.get(key)).items():
                if metric not in self._metrics:
                    what = f"gate.{key} limits {quoted(metric)}, which is not under `metrics`"
                    fix = known_names(metric, list(self._metrics))
                    self._add(node, what, fix or f"add `metrics: {{{metric}: {{}}}}`")

    def _check_pattern(self, node: Node, pattern: str, *, alone: bool) -> None:
        if pattern == BEST and alone:
            return
        cells = self._cells()
        names = [f"{variant}/{target}" for variant, target in cells]
        if pattern.count("/") != 1:
            near = did_you_mean(pattern, [BEST, *names]) if pattern != BEST else None
            fix = near or "a cell is named `variant/target`; `best` stands alone"
            self._problems.add(node.place, f"gate.ship: {quoted(pattern)} names no cell", fix)
        elif cells and not cells_matching(pattern, cells):
            what = f"gate.ship: {quoted(pattern)} matches no cell"
            self._problems.add(node.place, what, known_names(pattern, names))

    def _check_dims(self) -> None:
        dims = _mapping(self._root.get("dims"))
        shapes = [node.get("shape") for node in _mapping(self._root.get("inputs")).values()]
        named = {e.value for s in shapes for e in _items(s) if isinstance(e.value, str)}
        for dim, node in dims.items():
            self._check_dim(dim, node, named - set(dims), "dims", named)
        cases = _mapping(self._root.get("benchmark")).get("cases")
        for case in _items(cases):
            sizes = _mapping(case)
            for dim, node in sizes.items():
                if dim in dims:
                    self._check_size(dim, node, _mapping(dims[dim]))
                else:
                    known = (named | set(dims)) - set(sizes)
                    self._check_dim(dim, node, known, "benchmark.cases", named)

    def _check_dim(self, dim: str, node: Node, free: set[str], where: str, named: set[str]) -> None:
        """Without the model only a slip of the pen is known: a name near one that is not used."""
        hint = did_you_mean(dim, free) if dim not in named else None
        if hint is not None:
            self._add(node, f"unknown dim {quoted(dim)} in {where}", hint)

    def _check_size(self, dim: str, node: Node, bounds: Mapping[str, Node]) -> None:
        size = node.value
        low, high, step = (_int(bounds.get(name)) for name in ("min", "max", "multiple_of"))
        if not isinstance(size, int) or isinstance(size, bool) or low is None or high is None:
            return
        if low > high:  # said of the dims already
            return
        if not low <= size <= high:
            what = f"the case has {dim}: {size}, outside of its dims ({low} to {high})"
            self._problems.add(node.place, what, f"choose a size inside, or widen dims.{dim}")
        elif step and size % step:
            what = f"the case has {dim}: {size}, which is no multiple of {step}"
            self._problems.add(node.place, what, f"round it, or change dims.{dim}.multiple_of")


def _mapping(node: Node | None) -> Mapping[str, Node]:
    return node.value if node is not None and isinstance(node.value, dict) else {}


def _items(node: Node | None) -> list[Node]:
    return node.value if node is not None and isinstance(node.value, list) else []


def _int(node: Node | None) -> int | None:
    value = node.value if node is not None else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
