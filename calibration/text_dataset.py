"""Samples of ids from rows of text."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.calibration.dataset import SCAN_BATCH, joined_labels
from optimc.calibration.grouped import GroupedDataset, Sample, Shapes
from optimc.calibration.labels import label_of, same_kind
from optimc.calibration.rows import read_rows
from optimc.calibration.tokens import load_tokenizer
from optimc.core.digest import canonical_json, digest_of
from optimc.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import tokenizers
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Label, Labels
    from optimc.calibration.rows import Column, Row
    from optimc.calibration.text import TextOptions
    from optimc.calibration.tokens import Segment, TextTokenizer

    Array = NDArray[np.generic]

IGNORED = -100
"""The label of tokens that are not judged: what PyTorch's cross entropy ignores by default."""

_CONTENT = ("text", "pair", "pairs", "words", "labels", "label_map", "inputs", "dtype", "padding")


class TextDataset(GroupedDataset):
    """Rows of text as `input_ids`, `attention_mask`, `token_type_ids`, each [n, length].

    Texts are held in memory; ids exist for one window of batches at a time. Raises InputError.
    """

    tools = ("tokenizers",)
    dtype_fix = "set `dtype` of the data to what the model takes (int64, int32)"
    shape_fix = "set `padding: max` and `max_length` to the length that the model takes"

    def __init__(self, path: Path, tokenizer: Path, options: TextOptions, seed: int) -> None:
        self.where = str(path)
        self._options = options
        self._tokenizer: TextTokenizer = load_tokenizer(
            tokenizer, options.longest, options.pad_token
        )
        self._tokenizer.check_room(options.pair is not None, str(tokenizer))
        self.samples_per_label = 2 if options.pairs else 1
        texts = options.pairs or [c for c in (options.text, options.pair) if c is not None]
        labels = options.labels if isinstance(options.labels, list) else [options.labels]
        self._texts = len(texts)
        self._of_words = options.words and not isinstance(options.labels, list)
        columns: list[Column] = [*texts, *(c for c in labels if c is not None)]
        stored = read_rows(path, options.kind, columns)
        self._rows = [stored[row] for row in options.chosen(len(stored), seed, self.where)]
        for row in self._rows:
            self._check_texts(row)
        self._labels = self._read_labels() if options.labels is not None else None

    def _check_texts(self, row: Row) -> None:
        for text in row.values[: self._texts]:
            words = isinstance(text, list) and all(isinstance(word, str) for word in text)
            if not (words if self._options.words else isinstance(text, str)):
                kind = "a list of words" if self._options.words else "text"
                raise InputError(
                    f"holds {_in_words(text)} where {kind} should stand",
                    where=self._place(row),
                    fix=f"give the row {kind}, or remove it"
                    if text is None
                    else "name a column with text; `words: true` is for lists of words",
                )
            for part in text if words else [text]:
                if not part.isascii() and any("\ud800" <= char <= "\udfff" for char in part):
                    raise InputError(
                        "the text holds half of a surrogate pair, which is no character",
                        where=self._place(row),
                        fix="write the text again from its source, as whole characters",
                    )

    def _read_labels(self) -> list[int | float | Array]:
        found = []
        for row in self._rows:
            values = row.values[self._texts :]
            value = values[0] if len(values) == 1 else list(values)
            if self._of_words:
                self._check_words(row, value)
            found.append(label_of(value, self._options.label_map, self._place(row)))
        return same_kind(found)

    def _check_words(self, row: Row, value: Any) -> None:
        words = len(row.values[0])
        if not isinstance(value, list) or len(value) != words:
            count = len(value) if isinstance(value, list) else 1
            raise InputError(
                f"has {words} words and {count} labels",
                where=self._place(row),
                fix="give each word a label",
            )

    def _place(self, row: Row) -> str:
        return f"{self.where}:{row.line}"

    def __len__(self) -> int:
        return len(self._rows) * self.samples_per_label

    @property
    def has_labels(self) -> bool:
        return self._labels is not None

    @cached_property
    def digest(self) -> str:
        hasher = hashlib.sha256()
        for row in self._rows:
            hasher.update(canonical_json(row.values).encode() + b"\n")
        made = hashlib.sha256(self._tokenizer.tokenizer.to_str().encode()).hexdigest()
        options = self._options.model_dump(mode="json", include=set(_CONTENT))
        padded = [self._tokenizer.max_length, self._tokenizer.pad_id, self._tokenizer.pad_left]
        # Columns may be renamed or moved: what they hold counts.
        named = [bool(options.pop(name)) for name in ("text", "pair", "pairs", "labels")]
        return digest_of(
            ["text", hasher.hexdigest(), made, padded, self._tokenizer.pad_type_id],
            [options, named, version("tokenizers")],
        )

    def name_of(self, index: int) -> str:
        return f"line {self._rows[index // self.samples_per_label].line}"

    def text_of(self, index: int) -> tuple[str, ...]:
        values = self._rows[index // self.samples_per_label].values[: self._texts]
        return tuple(value if isinstance(value, str) else str(value) for value in values)

    def sample_digests(self) -> list[bytes]:
        """Of the texts: how they are padded does not count."""
        texts = [canonical_json(row.values[: self._texts]) for row in self._rows]
        return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]

    def labels(self) -> Iterator[Labels]:
        if self._labels is not None and not self._of_words:
            yield joined_labels(self._labels)
        elif self._labels is not None:
            yield from super().labels()

    def samples(self) -> Iterator[Sample]:
        rows = max(1, SCAN_BATCH // self.samples_per_label)
        for first in range(0, len(self._rows), rows):
            for offset, encoding in enumerate(self._encoded(self._rows[first : first + rows])):
                row = first + offset // self.samples_per_label
                yield self._sample(encoding, row)

    def _encoded(self, rows: Sequence[Row]) -> Sequence[tokenizers.Encoding]:
        texts: list[Segment | tuple[Segment, Segment]] = []
        for row in rows:
            if self._options.pairs or self._options.pair is None:
                texts.extend(row.values[: self._texts])
            else:
                texts.append((row.values[0], row.values[1]))
        try:
            return self._tokenizer.encode(texts, words=self._options.words)
        except Exception as error:
            last = rows[-1].line
            raise InputError(
                f"the tokenizer refuses a text: {str(error)[:200]}",
                where=f"{self._place(rows[0])} to {last}",
                fix="raise `max_length` if the special tokens do not fit, or correct the tokenizer",
            ) from error

    def _sample(self, encoding: tokenizers.Encoding, row: int) -> Sample:
        import numpy as np

        columns = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        dtype = np.dtype(self._options.dtype)
        feeds = {
            name: np.array(columns[column], dtype) for name, column in self._options.inputs.items()
        }
        label: Label | None = self._labels[row] if self._labels is not None else None
        if isinstance(label, np.ndarray) and self._of_words:
            label = _of_tokens(label, encoding.word_ids)
        return self._padded(Sample(feeds, label), self._length(len(encoding.ids)))

    def _length(self, tokens: int) -> int:
        """What a sample of so many tokens is padded to by itself."""
        padding = self._options.padding
        if padding == "max":
            return self._tokenizer.max_length
        if isinstance(padding, list):
            return next(length for length in padding if length >= tokens)
        return tokens

    def _padded(self, sample: Sample, length: int) -> Sample:
        import numpy as np

        made = self._tokenizer
        fills = {"input_ids": made.pad_id, "attention_mask": 0, "token_type_ids": made.pad_type_id}

        def padded(array: Array, fill: int) -> Array:
            missing = length - len(array)
            sides = (missing, 0) if made.pad_left else (0, missing)
            return np.pad(array, sides, constant_values=fill) if missing else array

        feeds = {
            name: padded(feed, fills[self._options.inputs[name]])
            for name, feed in sample.feeds.items()
        }
        label = sample.label
        if isinstance(label, np.ndarray) and self._of_words:
            label = padded(label, IGNORED)
        return Sample(feeds, label)

    def key(self, sample: Sample) -> Hashable:
        return None if self._options.padding == "longest" else sample.shapes

    def joined(self, samples: Sequence[Sample]) -> tuple[dict[str, Array], list[Label | None]]:
        longest = max(len(feed) for sample in samples for feed in sample.feeds.values())
        return super().joined([self._padded(sample, longest) for sample in samples])

    def shape_counts(self) -> Counter[Shapes]:
        if self._options.padding != "max":
            return super().shape_counts()
        shape = (self._tokenizer.max_length,)
        shapes = tuple((name, self._options.dtype, shape) for name in self._options.inputs)
        return Counter({shapes: len(self)})


def _in_words(value: Any) -> str:
    """What stands where a text should."""
    kinds: list[tuple[type | tuple[type, ...], str]] = [
        (type(None), "nothing (null)"),
        (dict, "an object with fields of its own"),
        (list, "a list"),
        (str, "one text"),
        (bytes, "bytes"),
        ((int, float), "a number"),
    ]
    return next((said for kind, said in kinds if isinstance(value, kind)), type(value).__name__)


def _of_tokens(labels: Array, words: Sequence[int | None]) -> Array:
    """The labels [words] at the first token of each word, `IGNORED` elsewhere, [tokens]."""
    import numpy as np

    before = [None, *words[:-1]]
    first = [w is not None and w != b for w, b in zip(words, before, strict=True)]
    spread = [
        labels[w] if f and w is not None else IGNORED for w, f in zip(words, first, strict=True)
    ]
    return np.array(spread, np.int64)
