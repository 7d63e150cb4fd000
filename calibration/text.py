"""The sources `csv`, `tsv`, `jsonl` and `parquet`: rows of text, made into ids by a tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from optimc.calibration.options import Selection
from optimc.calibration.tokens import tokenizer_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from optimc.calibration.rows import RowFormat
    from optimc.calibration.text_dataset import TextDataset

ColumnName: TypeAlias = Annotated[
    Annotated[str, Field(min_length=1), Tag("name")] | Annotated[int, Field(ge=0), Tag("number")],
    Discriminator(lambda value: "number" if isinstance(value, int) else "name"),
]
LabelColumns: TypeAlias = Annotated[
    Annotated[ColumnName, Tag("one")]
    | Annotated[list[ColumnName], Field(min_length=1), Tag("many")],
    Discriminator(lambda value: "many" if isinstance(value, list | tuple) else "one"),
]
Length: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)]
Padding: TypeAlias = Annotated[
    Annotated[Literal["longest", "max"], Tag("named")]
    | Annotated[list[Length], Field(min_length=1), Tag("buckets")],
    Discriminator(lambda value: "buckets" if isinstance(value, list | tuple) else "named"),
]
TokenField: TypeAlias = Literal["input_ids", "attention_mask", "token_type_ids"]


class TextOptions(Selection, ABC):
    """What all sources of text take. Columns go by name (the header's, or JSON keys), or by number
    from 0 where the file has no header."""

    tokenizer: str
    """A `tokenizer.json`, or a Hugging Face folder that holds one, relative to the recipe."""
    text: ColumnName | None = None
    """The column with the text."""
    pair: ColumnName | None = None
    """The column with a second text, which becomes the second segment of the same sample."""
    pairs: Annotated[list[ColumnName], Field(min_length=2, max_length=2)] | None = None
    """Two columns with texts that are samples of their own, one after the other, with one label:
    for metrics that compare two outputs (`spearman`). `take` counts rows."""
    words: bool = False
    """Whether texts are lists of words (JSON lines, Parquet), each with a label of its own: the
    first token of a word takes its label, all others get -100."""
    labels: LabelColumns | None = None
    """The column with the labels: numbers, names (see `label_map`), or lists of either; several
    columns give one array a sample (the start and end of a span)."""
    label_map: dict[str, int] | None = None
    """From each name that the labels hold to its number, such as `{negative: 0, positive: 1}`."""
    inputs: dict[str, TokenField] = Field(
        default={"input_ids": "input_ids", "attention_mask": "attention_mask"}, min_length=1
    )
    """From each of the model's inputs to what feeds it: `input_ids`, `attention_mask` (1 for
    tokens, 0 for padding) or `token_type_ids` (1 for the second segment). By default each of the
    model's inputs that has such a name."""
    dtype: Literal["int64", "int32"] = "int64"
    """The element type of all of them."""
    max_length: Length | None = None
    """The most tokens of a sample, special ones included; longer ones are cut off. Without it, what
    the tokenizer's files say."""
    padding: Padding = "longest"
    """`longest` pads to the longest sample of a batch, `max` to `max_length`, and a list such as
    `[16, 32, 64, 128]` to the least of these lengths that is enough."""
    pad_token: str | None = None
    """The token to pad with, where the tokenizer's files name none."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.text is None) == (self.pairs is None):
            raise ValueError(
                "names no text\nwrite `text: <column>`, or `pairs: [<column>, <column>]`"
                if self.text is None
                else "`text` and `pairs` exclude each other\nleave one of them out"
            )
        if self.pair is not None and self.text is None:
            raise ValueError("`pair` is for `text`\nwrite `text: <column>` beside it")
        if self.label_map is not None and self.labels is None:
            raise ValueError("`label_map` without `labels`\nname the column: labels: <column>")
        if self.words and self.pairs is not None:
            raise ValueError("`words` is for `text`, not for `pairs`\nleave one of them out")
        if isinstance(self.padding, list):
            if sorted(set(self.padding)) != self.padding:
                raise ValueError("the lengths must rise\nfor example `padding: [16, 32, 64]`")
            if (self.max_length or 0) > self.padding[-1]:
                raise ValueError(
                    f"max_length {self.max_length} is over the last length of `padding`"
                    f"\nadd it: padding: {[*self.padding, self.max_length]}"
                )
        return self

    @property
    def longest(self) -> int | None:
        """The most tokens of a sample as far as the recipe says it."""
        buckets = self.padding if isinstance(self.padding, list) else [None]
        return self.max_length or buckets[-1]

    @property
    @abstractmethod
    def kind(self) -> RowFormat:
        """The format of the file."""

    @property
    def file(self) -> str:
        """The file, as the recipe names it."""
        return str(getattr(self, self.kind))

    def for_inputs(self, names: Sequence[str]) -> Self:
        """See `SourceOptions`: without `inputs`, tokens feed the inputs that are called so."""
        called = {name: name for name in get_args(TokenField) if name in names}
        if "inputs" in self.model_fields_set or not called:
            return self
        return self.model_copy(update={"inputs": called})

    def open(self, base: Path, seed: int) -> TextDataset:
        """The data set, read from `base`.

        Raises InputError for files that are missing, damaged or do not fit, with file and line.
        """
        from optimc.calibration.text_dataset import TextDataset

        return TextDataset(base / self.file, base / self.tokenizer, self, seed)

    def files(self, base: Path) -> list[Path]:
        """The files that are read."""
        return [base / self.file, tokenizer_file(base / self.tokenizer)]


class CsvSource(TextOptions):
    """``{csv: reviews.csv, tokenizer: tokenizer.json, text: review, labels: stars}``."""

    csv: str
    """Comma-separated values in UTF-8, relative to the recipe; fields may be quoted."""

    @property
    def kind(self) -> RowFormat:
        """See `TextOptions`."""
        return "csv"


class TsvSource(TextOptions):
    """``{tsv: pairs.tsv, tokenizer: ./folder, pairs: [1, 2], labels: 0}``."""

    tsv: str
    """Values between tabs in UTF-8, relative to the recipe; quotes have no meaning."""

    @property
    def kind(self) -> RowFormat:
        """See `TextOptions`."""
        return "tsv"


class JsonLinesSource(TextOptions):
    """``{jsonl: questions.jsonl, tokenizer: tokenizer.json, text: question, pair: context}``."""

    jsonl: str
    """One JSON object on each line, relative to the recipe."""

    @property
    def kind(self) -> RowFormat:
        """See `TextOptions`."""
        return "jsonl"


class ParquetSource(TextOptions):
    """``{parquet: reviews.parquet, tokenizer: tokenizer.json, text: review}``."""

    parquet: str
    """A Parquet file, relative to the recipe."""

    @property
    def kind(self) -> RowFormat:
        """See `TextOptions`."""
        return "parquet"
