"""What makes a model bad: its outputs' error, its metric's drop, or the user's own command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from optimc.core.errors import CellError, InputError
from optimc.core.model import OnnxModel
from optimc.pipeline.bisect.subject import Subject
from optimc.pipeline.compare import compare_on_data
from optimc.pipeline.minimizing import Verdict
from optimc.pipeline.user_command import UserCommand

if TYPE_CHECKING:
    from optimc.core.targets import Engine
    from optimc.pipeline.engines import EngineBuilder
    from optimc.pipeline.evaluation import Evaluator


@dataclass(frozen=True)
class Judgement:
    """A verdict on one model, in words: ``outputs differ by 0.013 of their scale``."""

    verdict: Verdict
    text: str
    value: float | None = None


class Criterion(Protocol):
    """Says whether a model is bad."""

    @property
    def text(self) -> str:
        """What is asked, for people."""

    def judge(self, model: OnnxModel) -> Judgement:
        """Whether `model` is bad. Raises InputError for what the user has to change."""


class MaxError:
    """``--max-error``: the outputs against the source's, on the probes of verification."""

    def __init__(self, subject: Subject, bound: float) -> None:
        self._subject = subject
        self._bound = bound
        oracle, start = subject.oracle, subject.start
        self._reference = oracle.outputs(start.model.digest, start.path)
        stable = oracle.stable_outputs(start.model, start.path)
        self._names = [name for name in stable if name not in subject.inner.wanted]
        if not self._names:
            raise InputError(
                "no output can be compared by its numbers (random, or chosen: see `outputs`)",
                where="--max-error",
                fix="take --drop or --command",
            )

    @property
    def text(self) -> str:
        return f"outputs differ from the source's by more than {self._bound:g} of their scale"

    def judge(self, model: OnnxModel) -> Judgement:
        oracle = self._subject.oracle
        try:
            outputs = oracle.outputs(model.digest, self._subject.path_of(model))
        except CellError as error:
            return Judgement(Verdict.BAD, f"the model does not run: {error.what}")
        found = compare_on_data(oracle.probes, self._reference, outputs, self._names)
        if found.broken is not None:
            return Judgement(Verdict.BAD, found.broken)
        verdict = Verdict.BAD if found.max_rel > self._bound else Verdict.GOOD
        text = f"outputs differ by {found.max_rel:.3g} of their scale"
        return Judgement(verdict, text, found.max_rel)


class Drop:
    """``--drop``: the first metric of the cell's engine against the source's.

    Measured on the tuning data where the recipe has some, so that evaluation data stay unseen, else
    on the evaluation data.
    """

    def __init__(self, subject: Subject, bound: float) -> None:
        self._subject = subject
        self._bound = bound
        self._name, self._split, self._evaluator = _evaluator(subject)
        self._evaluator.evaluate_source(_reference_engine(subject))

    @property
    def text(self) -> str:
        return f"{self._name} drops by more than {self._bound:g} on the {self._split} data"

    def judge(self, model: OnnxModel) -> Judgement:
        cell = self._subject.cell
        try:
            engine = _engine(self._subject, cell.name, model)
            result = self._evaluator.evaluate(cell.name, engine)[self._name]
        except CellError as error:
            return Judgement(Verdict.SKIPPED, f"no engine can be measured: {error.what}")
        if isinstance(result.drop, str):
            return Judgement(Verdict.SKIPPED, f"{self._name} gives no drop: {result.drop}")
        point = result.drop.point
        verdict = Verdict.BAD if point > self._bound else Verdict.GOOD
        return Judgement(verdict, f"{self._name} {result.value:.4g}, drop {point:.4g}", point)


def _evaluator(subject: Subject) -> tuple[str, str, Evaluator]:
    from optimc.pipeline.evaluation import Evaluator, check_metrics, loaded_metrics

    recipe = subject.recipe
    split = "tuning" if "tuning" in subject.data.splits else "evaluation"
    dataset = subject.data.splits.get(split)
    if dataset is None or not recipe.metrics:
        missing = "metrics" if dataset is not None else "tuning or evaluation data"
        raise InputError(
            f"the recipe names no {missing}",
            where=str(recipe.path),
            fix="add them, or take --max-error or --command",
        )
    check_metrics(recipe, dataset, subject.source.model.signature)
    name, metric = next(iter(loaded_metrics(recipe).items()))
    evaluator = Evaluator(
        metrics={name: metric},
        dataset=dataset,
        raw=subject.start.data.splits.get(split) or dataset,
        dims=subject.data.dims,
        signature=subject.source.model.signature,
        cache=subject.cache,
        limits=subject.limits,
        seed=recipe.seed,
        progress=subject.observer.on_share,
    )
    return name, split, evaluator


def _reference_engine(subject: Subject) -> Engine:
    from optimc.pipeline.references import reference_target

    target = reference_target(subject.cell.target)
    return _builder(subject).build("the source", target, subject.source.model)


def _engine(subject: Subject, name: str, model: OnnxModel) -> Engine:
    return _builder(subject).build(name, subject.cell.target, model)


def _builder(subject: Subject) -> EngineBuilder:
    from optimc.pipeline.engines import EngineBuilder

    return EngineBuilder(
        subject.cache,
        subject.limits,
        subject.workspace,
        subject.recipe.seed,
        subject.inner,
        subject.data.sizes,
    )


class Command:
    """``--command``: what the user's program says of the model as an ONNX file."""

    def __init__(self, subject: Subject, command: UserCommand) -> None:
        self._subject = subject
        self._command = command

    @property
    def text(self) -> str:
        return "the command fails on the model"

    def judge(self, model: OnnxModel) -> Judgement:
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory(dir=self._subject.workspace) as folder:
            path = Path(folder) / "model.onnx"
            model.write_onnx(path)
            verdict = self._command.judge(path)
        return Judgement(verdict, f"the command says {verdict}")
