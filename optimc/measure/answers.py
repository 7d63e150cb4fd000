"""Question answering: exact_match and answer_f1, as SQuAD defines them.

A label is an int array [2] or [answers, 2] of the first and last token of each right answer, or a
mapping with ``spans`` [answers, 2] and, where it is there, ``context`` bool [tokens]: where an
answer may lie. ``[0, 0]``, the place of the first special token, stands for no answer. With
``texts`` (the answers), ``source`` (the text) and ``offsets`` int [tokens, 2] (each token's
characters in it) the answers are compared word by word, as in the task's own script; without
them, token by token.
"""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from optimc.measure.metric import Direction, SampleMetric
from optimc.measure.paired import mean_drop, no_narrower, proportion_drop
from optimc.measure.statistics import Interval

if TYPE_CHECKING:
    from optimc.measure.metric import Array, Indices, Outputs, Records

Tokens = Sequence[Any]


class _Answers(SampleMetric):
    """Scores of first and last tokens, against right answers."""

    better: ClassVar[Direction] = "higher"
    unit: ClassVar[str] = "fraction"

    start: str = "start_logits"
    """The output with the scores of first tokens [n, tokens]."""
    end: str = "end_logits"
    """The output with the scores of last tokens [n, tokens]."""
    longest: Annotated[int, Field(ge=1)] = 30
    """The most tokens of an answer."""

    def named_outputs(self) -> dict[str, str]:
        """See `SampleMetric`."""
        return {"start": self.start, "end": self.end}

    def observe(self, outputs: Outputs, labels: Any, source: Outputs | None) -> Records:
        """See `SampleMetric`."""
        import numpy as np

        start, end = self.select(outputs, "start"), self.select(outputs, "end")
        if start.ndim != 2 or start.shape != end.shape or len(labels) != len(start):
            raise self.fail(
                f"the outputs have the shapes {list(start.shape)} and {list(end.shape)} for "
                f"{len(labels)} labels, not scores [samples, tokens]",
                f"name the outputs: {self.where}.start and {self.where}.end",
            )
        scores = [self._score(s, e, label) for s, e, label in zip(start, end, labels, strict=True)]
        return {"score": np.array(scores, np.float64)}

    @abstractmethod
    def agreement(self, said: Tokens, right: Tokens) -> float:
        """How well an answer fits a right one, both as words or tokens, 0 to 1."""

    def value(self, records: Records, indices: Indices | None = None) -> float:
        """See `SampleMetric`."""
        score = records["score"]
        return float((score if indices is None else score[indices]).mean())

    def _score(self, start: Array, end: Array, label: Any) -> float:
        """The best agreement with one of the right answers, as SQuAD takes it."""
        import numpy as np

        given = label if isinstance(label, Mapping) else {"spans": label}
        try:
            answers = np.asarray(given["spans"]).reshape(-1, 2)
        except (KeyError, ValueError):
            answers = np.empty((0, 2), np.float64)
        if not len(answers) or answers.dtype.kind not in "iu":
            raise self.fail(
                "a label is no list of first and last tokens",
                "give integers [answers, 2], or a mapping with `spans`",
            )
        if np.isnan(start).any() or np.isnan(end).any():
            return 0.0
        said = self._best(start, end, given.get("context"))
        if "texts" in given:
            text, offsets = str(given["source"]), np.asarray(given["offsets"])
            found = "" if said == (0, 0) else text[offsets[said[0], 0] : offsets[said[1], 1]]
            texts = [str(answer) for answer in np.atleast_1d(given["texts"])] or [""]
            return max(self.agreement(words(found), words(answer)) for answer in texts)
        return max(self.agreement(_places(*said), _places(int(a), int(b))) for a, b in answers)

    def _best(self, start: Array, end: Array, context: Any) -> tuple[int, int]:
        """The span of the greatest sum of scores that is no longer than allowed."""
        import numpy as np

        total = start.astype(np.float64)[:, None] + end.astype(np.float64)[None, :]
        length = np.arange(len(start))[None, :] - np.arange(len(start))[:, None] + 1
        allowed = (length >= 1) & (length <= self.longest)
        if context is not None:
            inside = np.zeros(len(start), bool)
            inside[: len(context)] = np.asarray(context, bool)[: len(start)]
            allowed &= inside[:, None] & inside[None, :]
            allowed[0, 0] = True
        best = int(np.where(allowed, total, -np.inf).argmax())
        return best // len(start), best % len(start)


class ExactMatch(_Answers):
    """The share of questions whose answer is one of the right ones.

    Labels are first and last tokens of the right answers, ``[answers, 2]`` a sample.

    Source: Rajpurkar et al., EMNLP 2016 (SQuAD), section 6.1 and its evaluation script.
    """

    name: ClassVar[str] = "exact_match"

    def agreement(self, said: Tokens, right: Tokens) -> float:
        """1 where both are the same."""
        return float(list(said) == list(right))

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`."""
        theirs, ours = source["score"] > 0, candidate["score"] > 0
        lost, won = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
        return proportion_drop(lost, won, len(theirs))


class AnswerF1(_Answers):
    """The mean over questions of the harmonic mean of precision and recall of an answer's words.

    Labels are first and last tokens of the right answers, ``[answers, 2]`` a sample; the best of
    several counts.

    Source: Rajpurkar et al., EMNLP 2016 (SQuAD), section 6.1 and its evaluation script.
    """

    name: ClassVar[str] = "answer_f1"

    def agreement(self, said: Tokens, right: Tokens) -> float:
        """F1 of the bags of words; where one has none, 1 if both have none."""
        common = sum((Counter(said) & Counter(right)).values())
        if not said or not right:
            return float(list(said) == list(right))
        return 2 * common / (len(said) + len(right))

    def drop(self, source: Records, candidate: Records, seed: int) -> Interval:
        """See `Metric`."""
        return no_narrower(mean_drop(source["score"] - candidate["score"]))


def words(text: str) -> list[str]:
    """The words of a text as SQuAD's script compares them: lower case, without articles and
    punctuation."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _places(first: int, last: int) -> list[int]:
    """The tokens of an answer; none for no answer."""
    return [] if (first, last) in ((0, 0), (-1, -1)) else list(range(first, last + 1))
