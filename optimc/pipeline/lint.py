"""What targets know to go wrong in a model, told before an engine or a kit is made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimc.core.lint import Finding

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel
    from optimc.core.targets import Target
    from optimc.pipeline.build import Build
    from optimc.pipeline.recipe.schema import Recipe

_SHOWN = 5


@dataclass(frozen=True)
class SourceLint:
    """What one target says of the source."""

    target: str
    findings: tuple[Finding, ...]
    untouched: tuple[str, ...]
    """Cells without a pass: what is wrong with the source is wrong with them."""

    @property
    def fails(self) -> bool:
        """Whether a cell cannot be built."""
        return bool(self.untouched) and any(f.severity == "error" for f in self.findings)

    def lines(self) -> Iterator[str]:
        """For people: the first findings of each rule, by severity."""
        for severity in ("error", "warning", "note"):
            found = [f for f in self.findings if f.severity == severity]
            shown = severity if severity != "error" or self.fails else "warning"
            for finding, more in _first_of_each(found):
                hope = "" if shown == severity else "\n  a pass may take it away before it matters"
                yield f"{shown}: {self.target}: {_with_more(str(finding), more)}{hope}"


def lint_source(recipe: Recipe) -> list[SourceLint]:
    """What the targets that look at models say of the source; reads it only for such targets.

    Raises InputError where the model cannot be read.
    """
    asked = {name: target for name, target in recipe.targets.items() if target.lints}
    used = {target for _, target in recipe.cells}
    asked = {name: target for name, target in asked.items() if name in used}
    if not asked:
        return []
    model = _source_of(recipe)
    return [
        SourceLint(name, target.lint(model), tuple(_untouched(recipe, name)))
        for name, target in asked.items()
    ]


def _source_of(recipe: Recipe) -> OnnxModel:
    from optimc.pipeline.build import worker_limits
    from optimc.pipeline.cache import Cache
    from optimc.pipeline.ingest import read_source

    cache = Cache()
    try:
        with cache.workspace() as workspace:
            return read_source(recipe, cache, worker_limits(recipe), workspace).model
    finally:
        cache.close()


def _untouched(recipe: Recipe, target: str) -> Iterator[str]:
    for variant, name in recipe.cells:
        if name == target and not recipe.variants[variant].passes:
            yield f"{variant}/{name}"


def lint_cells(build: Build, models: dict[str, OnnxModel]) -> None:
    """Fails the cells whose final model their target is known to refuse, and takes them out of
    `models`; what only costs speed becomes a note."""
    for name, model in list(models.items()):
        result = build.results[name]
        reason, notes = judged(result.cell.target, model)
        build.notes += [f"{name}: {note}" for note in notes]
        if reason is not None:
            del models[name]
            result.status, result.reason = "failed", reason
            build.observer.on_detail(f"{name} failed: {reason}")


def judged(target: Target, model: OnnxModel) -> tuple[str | None, list[str]]:
    """Why `target` would refuse the model, None where nothing is known; and lines to note."""
    if not target.lints:
        return None, []
    findings = target.lint(model)
    errors = [f for f in findings if f.severity == "error"]
    others = [f for f in findings if f.severity != "error"]
    notes = [_on_one_line(f, more) for f, more in _first_of_each(others)]
    if not errors:
        return None, notes
    shown = [_on_one_line(f, more) for f, more in _first_of_each(errors)]
    return f"{target.runtime} is known to refuse it: {'; '.join(shown[:_SHOWN])}", notes


def _on_one_line(finding: Finding, more: int) -> str:
    fix = f" (fix: {finding.fix})" if finding.fix else ""
    text = f"{finding.node} ({finding.operator}): {finding.reason}{fix}"
    return _with_more(text, more)


def _with_more(text: str, more: int) -> str:
    return f"{text} [and {more} more such]" if more else text


def _first_of_each(findings: Sequence[Finding]) -> Iterator[tuple[Finding, int]]:
    """The first finding of each rule, with how many more there are of it."""
    counts: Mapping[str, int] = Counter(finding.rule for finding in findings)
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.rule, finding)
    for rule, finding in first.items():
        yield finding, counts[rule] - 1
