"""The search: first the pass by bisection over prefixes, then its rewrites by delta debugging."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from optimc.core.errors import InputError
from optimc.core.passes import Rewrite, RewriteKey, rewrite_keys
from optimc.pipeline.bisect.criteria import Criterion, Judgement
from optimc.pipeline.bisect.subject import Stage, Subject
from optimc.pipeline.minimizing import Deadline, OutOfTimeError, Verdict, ddmin, first_bad
from optimc.pipeline.verification import Finding
from optimc.pipeline.verification import Verdict as Proof

_VERIFICATION = "verification takes the pass back"


@dataclass(frozen=True)
class RolledBack:
    """A pass that verification took back by itself: its result is in no artifact."""

    name: str
    number: int
    reason: str


@dataclass(frozen=True)
class Blame:
    """What was found. `rewrites` is a least set (none can be left out) of the `of` that the pass
    does; it is empty where the pass numbers none, or where they could not be told apart."""

    cell: str
    criterion: str
    passes: tuple[str, ...]
    """The pass; several where those between could not be judged."""
    number: int
    """The place of the last of them in the variant, from 1."""
    count: int
    """The passes of the variant."""
    before: str
    after: str
    rewrites: tuple[Rewrite, ...] = ()
    of: int = 0
    rolled_back: tuple[RolledBack, ...] = ()
    notes: tuple[str, ...] = ()
    tests: int = 0
    seconds: float = 0.0
    complete: bool = True
    """False where the time was up before the least set was found."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"schema": 1, **asdict(self)}


@dataclass
class Bisection:
    """One search; see `run`. Without a `criterion`, verification itself says what is bad."""

    subject: Subject
    criterion: Criterion | None
    deadline: Deadline
    _stages: list[Stage] = field(default_factory=list)
    _judged: dict[str, Judgement] = field(default_factory=dict)
    _tests: int = 0

    def run(self) -> Blame:
        """Finds what is to blame. Raises InputError where nothing is wrong, or all is."""
        started = time.monotonic()
        observer = self.subject.observer
        observer.on_stage(f"running the passes of {self.subject.cell.name}")
        self._run_all()
        rolled = self._rolled_back()
        for one in rolled:
            observer.on_detail(f"verification takes {one.name} back: {one.reason}")
        blame = self._to_blame(rolled)
        observer.on_stage(f"looking for the rewrites of {blame.passes[-1]}")
        blame = self._with_rewrites(blame)
        seconds = round(time.monotonic() - started, 2)
        return replace(blame, rolled_back=rolled, tests=self._tests, seconds=seconds)

    def _run_all(self) -> None:
        self._stages = [self.subject.first()]
        for index in range(len(self.subject.steps)):
            stage = self.subject.run(index, self._stages[-1])
            self._stages.append(stage)
            if stage.failure is not None:
                return

    @property
    def _failure(self) -> str | None:
        return self._stages[-1].failure

    def _rolled_back(self) -> tuple[RolledBack, ...]:
        found = []
        for number, stage in enumerate(self._stages[1:], start=1):
            outcome = stage.outcome
            if outcome is not None and _broke(outcome.finding):
                reason = outcome.finding.reason or "it did not prove itself"
                found.append(RolledBack(outcome.name, number, reason))
        return tuple(found)

    def _to_blame(self, rolled: tuple[RolledBack, ...]) -> Blame:
        if self.criterion is None:
            if rolled:
                return self._taken_back(rolled[0], _VERIFICATION, ())
            return self._refused("every pass proved itself", "as verification sees it, the model")
        last = len(self._stages) - 1
        self.subject.observer.on_stage(f"judging: {self.criterion.text}")
        final = self._judge(last)
        if final.verdict is Verdict.SKIPPED:
            raise InputError(
                f"the model after all passes cannot be judged: {final.text}",
                where=self.subject.cell.name,
                fix="take another criterion",
            )
        if final.verdict is Verdict.GOOD:
            if rolled:
                note = f"as built the model is good ({final.text}): without this pass"
                return self._taken_back(rolled[0], self.criterion.text, (note,))
            return self._refused(final.text, "the model after all passes")
        first = self._judge(0)
        if first.verdict is not Verdict.GOOD:
            raise InputError(
                f"the source is {first.verdict} by itself, before any pass: {first.text}",
                where=self.subject.cell.name,
                fix="no pass is to blame: look at the criterion, the target, or the model",
            )
        good, bad = first_bad(last, lambda number: self._judge(number).verdict)
        names = tuple(self.subject.steps[index].name for index in range(good, bad))
        return self._blame(bad, names, self.criterion.text, (self._judge(good), self._judge(bad)))

    def _refused(self, why: str, what: str) -> Blame:
        """The pass that could not run at all, or InputError: nothing is wrong."""
        if self._failure is None:
            fix = "say what is wrong with it: --max-error, --drop or --command"
            if self.criterion is not None:
                fix = "by this criterion nothing is to blame: give a stricter one, or another"
            raise InputError(f"{what} is good: {why}", where=self.subject.cell.name, fix=fix)
        number = len(self._stages) - 1
        name = self.subject.steps[number - 1].name
        texts = (Judgement(Verdict.GOOD, why), Judgement(Verdict.BAD, self._failure))
        return self._blame(number, (name,), "a pass cannot run", texts)

    def _taken_back(self, one: RolledBack, criterion: str, notes: tuple[str, ...]) -> Blame:
        texts = (Judgement(Verdict.GOOD, "proved itself"), Judgement(Verdict.BAD, one.reason))
        return replace(self._blame(one.number, (one.name,), criterion, texts), notes=notes)

    def _blame(
        self,
        number: int,
        names: tuple[str, ...],
        criterion: str,
        texts: tuple[Judgement, Judgement],
    ) -> Blame:
        return Blame(
            cell=self.subject.cell.name,
            criterion=criterion,
            passes=names,
            number=number,
            count=len(self.subject.steps),
            before=texts[0].text,
            after=texts[1].text,
        )

    def _judge(self, number: int) -> Judgement:
        """Of the model after `number` passes; equal models are judged once."""
        assert self.criterion is not None
        model = self._stages[number].model
        if model.digest not in self._judged:
            self.deadline.check()
            self._tests += 1
            found = self.criterion.judge(model)
            self._judged[model.digest] = found
            name = self.subject.steps[number - 1].name if number else "the source"
            text = f"after {number} of {len(self.subject.steps)} passes ({name})"
            self.subject.observer.on_detail(f"{text}: {found.verdict}, {found.text}")
        return self._judged[model.digest]

    def _with_rewrites(self, blame: Blame) -> Blame:
        outcome = self._stages[blame.number].outcome
        if outcome is None or not outcome.rewrites:
            return replace(blame, notes=(*blame.notes, "the pass numbers no rewrites"))
        taken_back = _broke(outcome.finding)
        search = _Rewrites(self, blame.number - 1, outcome.rewrites, by_verification=taken_back)
        try:
            found = search.least()
        except OutOfTimeError:
            found, blame = search.best, replace(blame, complete=False)
        if not found:
            note = "its rewrites do not show the fault one by one: they cannot be told apart"
            blame = replace(blame, notes=(*blame.notes, note))
        return replace(blame, rewrites=found, of=len(outcome.rewrites))


@dataclass
class _Rewrites:
    """The rewrites of one pass: those that are needed for the fault to show."""

    bisection: Bisection
    index: int
    rewrites: tuple[Rewrite, ...]
    by_verification: bool
    best: tuple[Rewrite, ...] = ()

    def least(self) -> tuple[Rewrite, ...]:
        """A set of which none can be left out; empty where no prefix or set shows the fault."""
        total = len(self.rewrites)
        if self._prefix(total) is not Verdict.BAD:
            return ()
        _, first = first_bad(total, self._prefix)
        self.best = self.rewrites[:first]
        numbers = {key: n for n, key in enumerate(rewrite_keys(self.rewrites))}
        keys = tuple(numbers)[:first]
        # Most faults are one rewrite, and bisection ended at it.
        if self._shows(keys[-1:]):
            return self.rewrites[first - 1 : first]
        if not self._shows(keys):
            return self.best  # left-out rewrites lead the pass elsewhere: the prefix stands
        found = ddmin(keys, self._shows)
        return tuple(self.rewrites[numbers[key]] for key in found)

    def _prefix(self, limit: int) -> Verdict:
        text = f"the first {limit} of {len(self.rewrites)} rewrites"
        return self._judge(text, limit=limit)

    def _shows(self, keys: tuple[RewriteKey, ...]) -> bool:
        text = f"{len(keys)} of {len(self.rewrites)} rewrites"
        if len(keys) == 1:
            text = f"rewrite `{keys[0][0]}` at {keys[0][1]} alone"
        return self._judge(text, only=frozenset(keys)) is Verdict.BAD

    def _judge(self, text: str, **which: Any) -> Verdict:
        bisection = self.bisection
        bisection.deadline.check()
        bisection._tests += 1
        judge: Callable[[Stage], Judgement]
        judge = self._verified if self.by_verification else self._by_criterion
        before = bisection._stages[self.index]
        stage = bisection.subject.run(self.index, before, verify=self.by_verification, **which)
        found = judge(stage)
        bisection.subject.observer.on_detail(f"{text}: {found.verdict}, {found.text}")
        return found.verdict

    def _verified(self, stage: Stage) -> Judgement:
        if stage.outcome is None:
            return Judgement(Verdict.SKIPPED, stage.failure or "the pass did not run")
        finding = stage.outcome.finding
        if _broke(finding):
            return Judgement(Verdict.BAD, finding.reason or "it did not prove itself")
        return Judgement(Verdict.GOOD, finding.verdict.replace("_", " "))

    def _by_criterion(self, stage: Stage) -> Judgement:
        if stage.outcome is None:
            return Judgement(Verdict.SKIPPED, stage.failure or "the pass did not run")
        digest = stage.model.digest
        known = self.bisection._judged
        if digest not in known:
            assert self.bisection.criterion is not None
            known[digest] = self.bisection.criterion.judge(stage.model)
        return known[digest]


def _broke(finding: Finding) -> bool:
    return finding.verdict in (Proof.ROLLED_BACK, Proof.FAILED)
