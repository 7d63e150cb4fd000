"""The plan: a tree of passes whose leaves are the cells (variant x target).

Cells share their first passes and fork at the first one that reads something in which they differ;
targets with equal spec digests share what only the spec decides. The whole plan is type-checked
before any work starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from optimc.core.digest import digest_of
from optimc.core.errors import (
    CellError,
    InputError,
    PreconditionError,
    UnavailableError,
    unknown_name,
)
from optimc.core.model import Level
from optimc.core.passes import Input, Pass
from optimc.core.targets import Target, TargetSpec
from optimc.pipeline.choosing import check_choices, check_files, check_training
from optimc.pipeline.naming import check_functions
from optimc.pipeline.recipe.model_sources import ModuleSource

if TYPE_CHECKING:
    from optimc.pipeline.recipe.schema import PassEntry, Recipe


@dataclass(frozen=True, slots=True)
class Cell:
    """One result: the passes of a variant, built for a target."""

    variant: str
    target_name: str
    target: Target
    """The recipe's, with the usual values for what it leaves open."""

    @property
    def name(self) -> str:
        """As people and the gate name it: `int8/ort`."""
        return f"{self.variant}/{self.target_name}"


@dataclass(eq=False)
class Step:
    """A node of the plan: one pass on the result of its parent. The root has no pass."""

    key: str
    entry: PassEntry | None = None
    spec: TargetSpec | None = None
    """The spec that the pass may read; None for passes that do not read it."""
    children: list[Step] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    """The cells whose last pass this is."""

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Step]]:
        """This step and all below it, depth first."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)

    def all_cells(self) -> Iterator[Cell]:
        """The cells here and below."""
        for _, step in self.walk():
            yield from step.cells


@dataclass(frozen=True)
class Plan:
    """The tree, the cells in the recipe's order, and those that cannot be built here."""

    root: Step
    cells: tuple[Cell, ...]
    unavailable: Mapping[str, CellError]
    """By cell name: why it cannot be built here; in the tree are those that leave a kit."""

    def explain(self) -> str:
        """The tree as text, one line a step: what `optimc check --explain` prints."""
        lines = ["source"]
        for depth, step in self.root.walk():
            indent = "  " * depth
            if step.entry is not None:
                lines.append(f"{indent}{_describe(step)}")
            for cell in step.cells:
                shared = (
                    "" if cell.target.runtime == cell.target_name else f" ({cell.target.runtime})"
                )
                lines.append(f"{indent}  -> {cell.name}{shared}")
        for name, error in self.unavailable.items():
            lines.append(f"not here: {name}: {error.what}")
        return "\n".join(lines)


def make_plan(recipe: Recipe, *, variant: str | None = None, target: str | None = None) -> Plan:
    """The plan of a recipe, or of the cells that match the names or globs `variant`, `target`.

    Raises InputError where passes do not fit together, need data that the recipe does not name, or
    nothing is left to build.
    """
    root = Step("source")
    cells: list[Cell] = []
    unavailable: dict[str, CellError] = {}
    _check_selection("variant", variant, recipe.variants)
    _check_selection("target", target, recipe.targets)
    for name, one in recipe.variants.items():
        _check_levels(recipe, name, one.passes)
        _check_float_models(name, one.passes)
    check_choices(recipe)
    check_training(recipe)
    check_files(recipe)
    check_functions(recipe)
    for variant_name, target_name in recipe.cells:
        if not fnmatchcase(variant_name, variant or "*") or not fnmatchcase(
            target_name, target or "*"
        ):
            continue
        passes = recipe.variants[variant_name].passes
        cell = Cell(variant_name, target_name, recipe.targets[target_name].settled())
        cells.append(cell)
        missing, unfit = _availability(cell), _unfit(cell, passes)
        error = missing or unfit
        if error is not None:
            unavailable[cell.name] = error
        if unfit is None and (missing is None or cell.target.defers):
            _place(root, cell, passes)
    if not cells:
        raise InputError(
            f"no cell is left for variant `{variant or '*'}` and target `{target or '*'}`",
            fix="the variant does not name this target: see `targets` of the variant",
        )
    return Plan(root, tuple(cells), unavailable)


def _check_selection(kind: str, wanted: str | None, known: Mapping[str, object]) -> None:
    if wanted is not None and not any(fnmatchcase(name, wanted) for name in known):
        raise unknown_name(kind, wanted, known, where=f"--{kind}")


def _check_levels(recipe: Recipe, variant: str, passes: Sequence[PassEntry]) -> None:
    order = list(Level)
    modules = isinstance(recipe.model, ModuleSource)
    level, lowering = Level.TORCH if modules else Level.ONNX, ""
    for entry in passes:
        pass_ = entry.pass_
        if level in pass_.levels():
            continue
        if order.index(pass_.level) < order.index(level):
            raise InputError(
                f"pass {pass_.pass_name()} works on {pass_.level} models, here the model is "
                f"{level}" + (f" since {lowering}" if lowering else ""),
                where=recipe.where("variants", variant),
                fix=f"put it before {lowering}: a lowered model does not come back"
                if modules
                else "start from modules of PyTorch: model: {factory: ..., weights: ...} or "
                "{hf: ...}",
            )
        level, lowering = pass_.level, pass_.pass_name()


def _check_float_models(variant: str, passes: Sequence[PassEntry]) -> None:
    quantizes = False
    for entry in passes:
        name = entry.pass_.pass_name()
        if Input.FLOAT in entry.pass_.needs and not quantizes:
            raise InputError(
                f"{name} compares with the float model, and no pass before it quantizes one",
                where=f"variants.{variant}",
                fix=f"put {name} behind quantize_int8",
            )
        quantizes = quantizes or entry.pass_.quantizes


def _availability(cell: Cell) -> UnavailableError | None:
    missing = type(cell.target).unavailable()
    if missing is None:
        return None
    return UnavailableError(missing.reason, where=cell.name, fix=missing.remedy)


def _unfit(cell: Cell, passes: Sequence[PassEntry]) -> CellError | None:
    """What the first pass says that can do nothing for the cell's target, or not run here."""
    spec = cell.target.spec()
    for entry in passes:
        try:
            entry.pass_.check_target(spec)
        except PreconditionError as error:
            away = f"leave `{cell.target_name}` out of `{cell.variant}`'s targets"
            fix = f"{error.fix}, or {away}" if error.fix else away
            return PreconditionError(error.what, where=cell.name, fix=fix)
        try:
            entry.pass_.check_extras()
        except UnavailableError as error:
            return UnavailableError(error.what, where=cell.name, fix=error.fix)
    return None


def _place(root: Step, cell: Cell, passes: Sequence[PassEntry]) -> None:
    """Walks down the tree along the passes, and forks where a key is new."""
    step = root
    for entry in passes:
        spec = cell.target.spec() if Input.SPEC in entry.pass_.needs else None
        timed = Input.DEVICE in entry.pass_.needs and spec is None
        key = digest_of(
            [step.key, _identity(entry.pass_), entry.required, spec and spec.digest],
            # What is timed on a target's engines is of that target alone.
            *([cell.target.model_dump(mode="json")] if timed else []),
        )
        child = next((child for child in step.children if child.key == key), None)
        if child is None:
            child = Step(key, entry, spec)
            step.children.append(child)
        step = child
    step.cells.append(cell)


def _identity(pass_: Pass) -> list[object]:
    return [pass_.pass_name(), pass_.version, pass_.options()]


def _describe(step: Step) -> str:
    assert step.entry is not None
    pass_ = step.entry.pass_
    defaults = {name: field.get_default() for name, field in type(pass_).model_fields.items()}
    changed = {k: v for k, v in pass_.options().items() if v != defaults.get(k)}
    options = ", ".join(f"{name}={value}" for name, value in changed.items())
    reads = ", ".join(sorted(pass_.needs | pass_.wants))
    shared = len(list(step.all_cells()))
    notes = [f"{pass_.effect.kind}", *([f"reads {reads}"] if reads else [])]
    if step.spec is not None:
        notes.append(f"spec of {step.spec.runtime}")
    if shared > 1:
        notes.append(f"shared by {shared} cells")
    return f"{pass_.pass_name()}({options})  [{'; '.join(notes)}]"
