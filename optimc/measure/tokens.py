"""Metrics of one prediction a token: token_f1, span_f1, perplexity."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optimc.measure.metric import Direction
from optimc.measure.summed import SummedMetric, f1_of_counts, label_rows

if TYPE_CHECKING:
    from optimc.measure.metric import Array, Outputs, Records
    from optimc.measure.summed import Sums

Span = tuple[str, int, int]


class _Tokens(SummedMetric):
    """Scores [n, tokens, classes] or class numbers [n, tokens], against class numbers a token."""

    better: ClassVar[Direction] = "higher"
    unit: ClassVar[str] = "fraction"

    ignore_index: int = -100
    """Tokens with this label do not count: padding, and the later pieces of a word."""
    average: Literal["micro", "macro"] = "micro"
    """``micro`` counts all classes together, ``macro`` is the mean over those that occur."""

    def observe(self, outputs: Outputs, labels: Any, source: Outputs | None) -> Records:
        """See `SampleMetric`."""
        import numpy as np

        output = self.select(outputs, "output")
        classes = output.shape[2] if output.ndim == 3 else None
        if output.ndim == 3 and output.dtype.kind in "fiu":
            broken = np.isnan(output).any(axis=2) if output.dtype.kind == "f" else False
            output = np.where(broken, -1, output.argmax(axis=2))
        elif output.ndim != 2 or output.dtype.kind not in "iu":
            raise self.fail(
                f"the output has shape {list(output.shape)} and dtype {output.dtype}, not scores "
                "[samples, tokens, classes] or class numbers [samples, tokens]",
                f"name the output that holds them: {self.where}.output",
            )
        samples, width = output.shape
        rows = label_rows(self, labels, (samples, width), self.ignore_index)
        greatest = rows.max(initial=0)
        if classes is not None and greatest >= classes and greatest != self.ignore_index:
            raise self.fail(
                f"a label is {greatest}, and the model knows the classes 0 to {classes - 1}",
                "number the classes from 0, in the order of the model's scores, or say which "
                f"label is no class: {self.where}.ignore_index",
            )
        return self.count(output, rows)

    @abstractmethod
    def count(self, output: Array, labels: Array) -> Records:
        """Items of each sample by class, [n, classes]: hits (right), said (predicted), gold (true).

        `output` and `labels` are class numbers int64 [n, tokens].
        """

    def of_sums(self, sums: Sums) -> float:
        """See `SummedMetric`."""
        return f1_of_counts(sums["hits"], sums["said"], sums["gold"], self.average)


class TokenF1(_Tokens):
    """The harmonic mean of precision and recall over tokens.

    The output holds scores [n, tokens, classes] or class numbers [n, tokens]; labels are class
    numbers [n, tokens], shorter where a text is shorter. Without `exclude`, micro is the share of
    right tokens.
    """

    name: ClassVar[str] = "token_f1"

    exclude: tuple[int, ...] = ()
    """Classes that do not count as something to be found, such as that of `O`."""

    def count(self, output: Array, labels: Array) -> Records:
        """See `_Tokens`."""
        import numpy as np

        counted = labels != self.ignore_index
        if (labels[counted] < 0).any():
            raise self.fail(
                f"a label is {labels[counted].min()}, and classes count from 0",
                f"say which label is no class: {self.where}.ignore_index",
            )
        classes = int(max(labels.max(initial=0), output.max(initial=0))) + 1

        def by_class(numbers: Array, chosen: Array) -> Array:
            rows = np.nonzero(chosen)[0]
            flat = rows * classes + numbers[chosen]
            counts = np.bincount(flat, minlength=len(numbers) * classes)
            return counts.reshape(len(numbers), classes)

        found = {
            "hits": by_class(labels, counted & (output == labels)),
            "said": by_class(output, counted & (output >= 0)),
            "gold": by_class(labels, counted),
        }
        for array in found.values():
            array[:, [c for c in self.exclude if 0 <= c < classes]] = 0
        return found


class SpanF1(_Tokens):
    """The harmonic mean of precision and recall over named spans, as in CoNLL-2003.

    A span counts as found where its type and both ends are right. `labels` names the classes in the
    scheme IOB2: `B-` begins a span, `I-` goes on with it, `O` is outside; an `I-` that goes on
    with nothing begins a span, as in the shared task's own script.

    Source: Tjong Kim Sang and De Meulder, CoNLL-2003 shared task (conlleval).
    """

    name: ClassVar[str] = "span_f1"

    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    """The names of the classes in the model's order: ``[O, B-PER, I-PER]``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = [n for n in self.labels if n != "O" and n[:2] not in ("B-", "I-")]
        if wrong:
            raise ValueError(f"`{wrong[0]}` is no IOB2 label\nwrite `O`, `B-<type>` or `I-<type>`")
        return self

    def count(self, output: Array, labels: Array) -> Records:
        """See `_Tokens`."""
        import numpy as np

        counted = labels != self.ignore_index
        numbers = labels[counted]
        if ((numbers < 0) | (numbers >= len(self.labels))).any():
            raise self.fail(
                f"the data have the label {numbers.max()}, and {len(self.labels)} are named",
                f"name all classes of the model in their order: {self.where}.labels",
            )
        types = sorted({name[2:] for name in self.labels if name != "O"})
        found = {key: np.zeros((len(labels), len(types)), int) for key in ("hits", "said", "gold")}
        for row, keep in enumerate(counted):
            gold = set(spans(self._names(labels[row][keep])))
            said = set(spans(self._names(output[row][keep])))
            for key, chosen in (("hits", gold & said), ("said", said), ("gold", gold)):
                for kind, _, _ in chosen:
                    found[key][row, types.index(kind)] += 1
        return found

    def _names(self, numbers: Array) -> list[str]:
        # A class that has no name, or a prediction of NaN, names nothing.
        return [self.labels[n] if 0 <= n < len(self.labels) else "O" for n in numbers.tolist()]


def spans(names: Sequence[str]) -> Iterator[Span]:
    """The spans (type, first, last) of a sequence of IOB2 names."""
    kind, first = "", 0
    for index, name in enumerate([*names, "O"]):
        goes_on = kind and name == f"I-{kind}"
        if goes_on:
            continue
        if kind:
            yield kind, first, index - 1
        kind, first = name[2:], index


class Perplexity(SummedMetric):
    """The exponential of the mean negative log-likelihood of the right tokens.

    The output holds logits [n, tokens, vocabulary]; labels are token ids [n, tokens], in most cases
    the input itself: the logits at a token are of the next one.
    """

    name: ClassVar[str] = "perplexity"
    better: ClassVar[Direction] = "lower"

    ignore_index: int = -100
    """Tokens with this label do not count."""
    shift: bool = True
    """Whether the logits at a token are judged by the next label; `false` where labels are shifted
    already, or the model fills in masked tokens."""

    def observe(self, outputs: Outputs, labels: Any, source: Outputs | None) -> Records:
        """See `SampleMetric`."""
        output = self.select(outputs, "output")
        if output.ndim != 3 or output.dtype.kind != "f":
            raise self.fail(
                f"the output has shape {list(output.shape)} and dtype {output.dtype}, not logits "
                "[samples, tokens, vocabulary]",
                f"name the output that holds them: {self.where}.output",
            )
        samples, width, _ = output.shape
        rows = label_rows(self, labels, (samples, width), self.ignore_index)
        return self._likelihoods(output, rows)

    def _likelihoods(self, output: Array, labels: Array) -> Records:
        import numpy as np
        from scipy.special import logsumexp

        if self.shift:
            output, labels = output[:, :-1], labels[:, 1:]
        counted = labels != self.ignore_index
        wrong = counted & ((labels < 0) | (labels >= output.shape[2]))
        if wrong.any():
            raise self.fail(
                f"the label {labels[wrong][0]} is no token of the {output.shape[2]} that the model "
                "knows",
                f"say which label does not count: {self.where}.ignore_index",
            )
        nll = np.zeros(len(labels))
        for row, keep in enumerate(counted):  # one text at a time: a vocabulary is large
            logits = output[row][keep].astype(np.float64)
            own = logits[np.arange(len(logits)), labels[row][keep]]
            nll[row] = (logsumexp(logits, axis=1) - own).sum() if len(logits) else 0.0
        if not np.isfinite(nll).all():
            raise self.fail(
                "the likelihood of a token is not finite",
                "see what the verification says of this cell: its outputs cannot be trusted",
            )
        return {"nll": nll, "tokens": counted.sum(axis=1)}

    def of_sums(self, sums: Sums) -> float:
        """See `SummedMetric`."""
        if not sums["tokens"]:
            raise self.fail("no token of the evaluation data counts", "give labels to some")
        mean = float(sums["nll"] / sums["tokens"])
        return math.exp(min(mean, 700.0))  # what is beyond is as bad, and no number any more
