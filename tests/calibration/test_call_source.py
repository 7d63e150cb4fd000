"""Samples of the user's own functions: restarted for each sweep, checked, bounded."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from optimc.calibration import call_dataset
from optimc.calibration.call_dataset import CallDataset
from optimc.calibration.checks import check_disjoint
from optimc.calibration.sources import DataSource
from optimc.core.errors import InputError

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)
NUMBER = itertools.count()
HEAD = "import itertools\nimport numpy as np\n"
IMAGES = """
CALLS = []
def samples():
    CALLS.append(1)
    rng = np.random.default_rng(0)
    for index in range(6):
        size = 4 if index % 2 else 6
        yield {"x": rng.integers(0, 256, (size, 4, 3), dtype=np.uint8)}, index
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = (set(sys.modules), list(sys.path))
    yield tmp_path
    assert sys.path == before[1]
    for name in set(sys.modules) - before[0]:
        if name.startswith("made_"):
            del sys.modules[name]


def opened(folder: Path, code: str, **written: Any) -> CallDataset:
    module = f"made_{next(NUMBER)}"
    (folder / f"{module}.py").write_text(HEAD + code)
    source = ADAPTER.validate_python({"call": f"{module}:samples", **written})
    dataset = source.open(folder, 0)
    assert isinstance(dataset, CallDataset)
    return dataset


def test_samples_are_batched_by_shape_and_made_anew_for_each_sweep(folder: Path) -> None:
    dataset = opened(folder, IMAGES, transform=["nchw", {"divide": 255}])
    assert len(dataset) == 6
    for _ in range(2):
        batches = list(dataset.batches(2))
        assert sorted(n for batch in batches for n in batch.numbers) == list(range(6))
        shapes = {batch.feeds["x"].shape[1:] for batch in batches}
        assert shapes == {(3, 6, 4), (3, 4, 4)}
        labels = {
            number: label
            for batch in batches
            for number, label in zip(batch.numbers, np.asarray(batch.labels), strict=True)
        }
        assert labels == {number: number for number in range(6)}
    assert len(sys.modules[dataset.where.strip("`").partition(":")[0]].CALLS) == 3
    assert dataset.has_labels
    shapes = {specs["x"].shape for specs in dataset.all_sample_specs()}
    assert shapes == {(3, 6, 4), (3, 4, 4)}


def test_opening_imports_and_calls_nothing(folder: Path) -> None:
    dataset = opened(folder, "def samples():\n    raise AssertionError('called')\n")
    assert dataset.where.endswith(":samples`")


def test_take_bounds_what_never_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = """
def samples():
    return ({"x": np.array([n])} for n in itertools.count())
"""
    assert len(opened(folder, endless, take=7)) == 7
    monkeypatch.setattr(call_dataset, "MAX_SAMPLES", 50)
    with pytest.raises(InputError, match="more than 50 samples come") as caught:
        len(opened(folder, endless))
    assert "take: 1000" in str(caught.value.fix)


def test_a_glance_takes_the_first_samples_for_all(folder: Path) -> None:
    endless = """
def samples():
    return ({"x": np.array([n])} for n in itertools.count())
"""
    dataset = opened(folder, endless)
    dataset.glance(3)
    assert (len(dataset), dataset.looked_at) == (3, 3)
    assert [batch.feeds["x"].tolist() for batch in dataset.batches(2)] == [[[0], [1]], [[2]]]
    few = opened(folder, IMAGES, take=6)
    few.glance(6)
    assert (len(few), few.looked_at) == (6, None)
    more = opened(folder, IMAGES, take=7)
    more.glance(10)
    with pytest.raises(InputError, match="more samples than the 6 there are"):
        len(more)


def test_the_digest_names_the_samples(folder: Path) -> None:
    def code(value: int, label: int = 0) -> str:
        return f"def samples():\n    yield {{'x': np.array([1, {value}])}}, {label}\n"

    base = opened(folder, code(2)).digest
    assert opened(folder, code(2)).digest == base
    assert opened(folder, code(3)).digest != base
    assert opened(folder, code(2, 1)).digest != base
    with pytest.raises(InputError, match="1 sample stands in both"):
        check_disjoint({"a": opened(folder, code(2)), "b": opened(folder, code(2, 1))})


def test_labels_are_numbers_arrays_or_mappings(folder: Path) -> None:
    code = """
def samples():
    yield {"x": np.zeros(2)}, {"boxes": np.zeros((3, 4), np.float32)}
    yield {"x": np.ones(2)}, {"boxes": np.zeros((1, 4), np.float32)}
"""
    (batch,) = opened(folder, code).batches(2)
    assert [label["boxes"].shape for label in batch.labels or []] == [(3, 4), (1, 4)]
    code = 'def samples():\n    yield {"x": np.zeros(2)}, np.float32(0.5)\n'
    (batch,) = opened(folder, code).batches(1)
    assert list(batch.labels) == [0.5]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def samples():\n    return 3\n", "raised TypeError: 'int' object is not iterable"),
        ("def samples():\n    return []\n", "yields no samples"),
        ("def samples(a):\n    return []\n", "raised TypeError"),
        ("def samples():\n    yield 1\n", "sample 0: is int, not a mapping of arrays"),
        ("def samples():\n    yield {'x': [1]}\n", "sample 0: the input `x` is list, not an array"),
        ("def samples():\n    yield {'x': np.array([None])}\n", "the input `x` is object"),
        ("def samples():\n    yield {'x': np.ones(1)}, 'cat'\n", "the label is str"),
        (
            "def samples():\n    yield {'x': np.ones(1)}\n    1 / 0\n",
            "sample 1: raised ZeroDivisionError",
        ),
        (
            "def samples():\n    yield {'x': np.ones(1)}, 1\n    yield {'x': np.ones(1)}\n",
            "sample 1: samples with and without a label are mixed",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_sample(folder: Path, code: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        len(opened(folder, code))
    assert message in str(caught.value)
    assert caught.value.fix


def test_samples_that_change_between_sweeps_are_refused(folder: Path) -> None:
    drawn = "def samples():\n    yield {'x': np.random.default_rng().random(3)}\n"
    with pytest.raises(InputError, match="is not what it was in the sweep before"):
        list(opened(folder, drawn).batches(1))
    less = """
COUNT = [3]
def samples():
    COUNT[0] -= 1
    return [{"x": np.full(2, n)} for n in range(COUNT[0])]
"""
    with pytest.raises(InputError, match="is not there any more in another sweep"):
        list(opened(folder, less).batches(1))


def test_steps_that_do_not_fit_and_too_few_samples_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match="sample 0: transform: the step `nchw` needs"):
        len(opened(folder, "def samples():\n    yield {'x': np.ones(1)}\n", transform=["nchw"]))
    with pytest.raises(InputError, match="asks for more samples than the 6 there are"):
        len(opened(folder, IMAGES, take=7))


def test_functions_that_cannot_be_imported_are_named(folder: Path) -> None:
    for call, message in (
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
        ("math:no_such", "cannot be imported: AttributeError"),
        ("math:pi", "is no function"),
    ):
        with pytest.raises(InputError, match=message):
            ADAPTER.validate_python({"call": call}).open(folder, 0)
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({"call": "math.pi"})
