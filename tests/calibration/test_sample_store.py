"""Samples on disk: all of them, once an epoch, mapped, in an order that a seed decides."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from optimc.calibration.grouped import GroupedDataset, Sample
from optimc.calibration.npz import NpzSource
from optimc.calibration.sample_store import INDEX, StoredSamples, store_samples
from optimc.core.errors import InputError

if TYPE_CHECKING:
    from optimc.calibration.dataset import Label


class Samples(GroupedDataset):
    """Samples that are there already."""

    where = "samples"

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def digest(self) -> str:
        raise AssertionError("not asked for")

    @property
    def has_labels(self) -> bool:
        return self._samples[0].label is not None

    def samples(self) -> Iterator[Sample]:
        return iter(self._samples)


def of_lengths(lengths: Sequence[int], labels: Sequence[Label] | None = None) -> Samples:
    """Sample i holds the number i as often as its length says; its label is i."""
    made = labels if labels is not None else range(len(lengths))
    return Samples([Sample({"x": np.full(n, i)}, made[i]) for i, n in enumerate(lengths)])


def stored(dataset: Any, folder: Path) -> StoredSamples:
    store_samples(dataset, folder)
    return StoredSamples(folder)


def test_a_store_gives_back_what_the_data_set_had(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(200))
    source = NpzSource(
        npz="a.npz", inputs={"input": "images"}, labels="labels", transform=["nchw", {"divide": 16}]
    )
    told: list[float] = []
    store_samples(source.open(tmp_path, 0), tmp_path / "s", lambda share, text: told.append(share))
    store = StoredSamples(tmp_path / "s")
    assert len(store) == 200
    assert len(store.groups) == 1
    assert told[-1] == 1.0
    (group,) = store.groups
    assert isinstance(group.feeds["input"], np.memmap)
    assert isinstance(group.labels, np.memmap)
    np.testing.assert_array_equal(
        group.feeds["input"], images.transpose(0, 3, 1, 2).astype(np.float32) / 16
    )
    assert group.feeds["input"].dtype == np.float32
    np.testing.assert_array_equal(group.labels, np.arange(200))
    # Nothing but numpy's own format.
    np.testing.assert_array_equal(np.load(tmp_path / "s/0/labels.npy"), np.arange(200))


def test_an_epoch_has_every_sample_once_in_batches_of_one_shape(tmp_path: Path) -> None:
    lengths = [1, 2, 3, 2, 2, 1, 3, 3, 3, 2, 2]
    store = stored(of_lengths(lengths), tmp_path / "s")
    seen: list[int] = []
    batches = list(store.batches(2, np.random.default_rng(3)))
    assert len(batches) == store.count(2)
    for batch in batches:
        assert batch.labels is not None
        assert 1 <= batch.size <= 2
        for row, label in zip(batch.feeds["x"], batch.labels, strict=True):
            assert row.tolist() == [label] * lengths[int(label)]
        seen += batch.labels.tolist()
    assert sorted(seen) == list(range(len(lengths)))
    numbers = np.concatenate([batch.numbers for batch in batches])
    assert sorted(numbers) == list(range(len(lengths)))
    assert list(numbers) != sorted(numbers)


def test_the_seed_decides_the_order(tmp_path: Path) -> None:
    store = stored(of_lengths([2] * 50), tmp_path / "s")

    def order(seed: int, epochs: int = 1) -> list[int]:
        rng = np.random.default_rng(seed)
        return [
            int(n) for _ in range(epochs) for batch in store.batches(8, rng) for n in batch.numbers
        ]

    assert order(1) == order(1) != order(2)
    twice = order(1, epochs=2)
    assert twice[:50] != twice[50:]
    assert [n for batch in store.in_order(8) for n in batch.numbers] == list(range(50))


def test_no_batch_is_left_with_one_sample(tmp_path: Path) -> None:
    store = stored(of_lengths([2] * 33), tmp_path / "s")
    assert sorted(b.size for b in store.batches(16, np.random.default_rng(0))) == [11, 11, 11]
    assert store.count(16) == 3


def test_whole_batches_leave_the_rest_out(tmp_path: Path) -> None:
    store = stored(of_lengths([2] * 500 + [3] * 70 + [4] * 5), tmp_path / "s")
    assert store.count(64, whole=True) == 7 + 1
    batches = list(store.batches(64, np.random.default_rng(0), whole=True))
    assert [batch.size for batch in batches] == [64] * 8
    numbers = [int(n) for batch in batches for n in batch.numbers]
    assert len(set(numbers)) == 8 * 64
    others = store.batches(64, np.random.default_rng(1), whole=True)
    assert {int(n) for batch in others for n in batch.numbers} != set(numbers)
    first = next(store.in_order(64, whole=True))
    assert first.numbers.tolist() == list(range(64))
    assert store.count(512, whole=True) == 0
    assert list(store.in_order(512, whole=True)) == []


def test_augmentation_takes_the_place_of_the_feeds(tmp_path: Path) -> None:
    store = stored(of_lengths([2] * 8), tmp_path / "s")

    def noisy(feeds: Any, rng: np.random.Generator) -> Any:
        return {name: feed + rng.integers(100, 200) for name, feed in feeds.items()}

    (batch,) = store.batches(8, np.random.default_rng(0), noisy)
    assert batch.feeds["x"].min() >= 100
    assert store.groups[0].feeds["x"].max() == 7


def test_labels_may_be_arrays_of_one_shape(tmp_path: Path) -> None:
    labels = [np.full((2, 3), i, np.float32) for i in range(4)]
    store = stored(of_lengths([1, 2, 1, 2], labels), tmp_path / "s")
    found = [np.asarray(group.labels) for group in store.groups]
    assert [array.shape for array in found] == [(2, 2, 3)] * 2
    assert found[1][:, 0, 0].tolist() == [1, 3]


BOXES: list[Label] = [{"boxes": np.zeros((1, 4))}] * 3


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (BOXES, "no numbers"),
        ([np.zeros(2), np.zeros(3), np.zeros(2)], "no numbers, and no arrays of one shape"),
        ([1, 2.5, 3], "no numbers, and no arrays of one shape"),
    ],
)
def test_labels_of_other_kinds_are_left_out(
    tmp_path: Path, labels: list[Label], reason: str
) -> None:
    store = stored(of_lengths([2, 2, 2], labels), tmp_path / "s")
    assert [group.labels for group in store.groups] == [None]
    assert reason in (store.unlabelled or "")
    (batch,) = store.batches(3, np.random.default_rng(0))
    assert batch.labels is None
    assert not (tmp_path / "s/0/labels.npy").exists()


def test_labels_that_change_their_kind_later_are_left_out(tmp_path: Path) -> None:
    labels: list[Label] = [np.zeros(2)] * 64 + [np.zeros(3)] * 64
    store = stored(of_lengths([2] * 128, labels), tmp_path / "s")
    assert [group.labels for group in store.groups] == [None] * len(store.groups)
    assert "differ in shape" in (store.unlabelled or "")
    assert len(store) == 128


def test_data_without_labels_and_pairs_have_none(tmp_path: Path) -> None:
    bare = Samples([Sample({"x": np.zeros(2)}) for _ in range(3)])
    assert stored(bare, tmp_path / "bare").unlabelled == "the data have none"
    pairs = of_lengths([2] * 4)
    pairs.samples_per_label = 2
    assert stored(pairs, tmp_path / "pairs").unlabelled == "each belongs to 2 samples"


def test_inputs_may_have_any_name_and_byte_order(tmp_path: Path) -> None:
    feeds = {"../a/b": np.arange(3, dtype=">i4"), "labels": np.array(["x", "yz"])}
    store = stored(Samples([Sample(feeds, 1)] * 2), tmp_path / "s")
    (batch,) = store.in_order(5)
    assert batch.feeds["../a/b"].tolist() == [[0, 1, 2]] * 2
    assert batch.feeds["../a/b"].dtype.isnative
    assert batch.feeds["labels"].tolist() == [["x", "yz"]] * 2
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 1]


class Broken(Samples):
    """Breaks off after 100 samples."""

    def samples(self) -> Iterator[Sample]:
        yield from self._samples[:100]
        raise InputError("sample 100 is damaged")


def test_a_store_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="damaged"):
        store_samples(Broken([Sample({"x": np.zeros(2)})] * 200), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_no_samples_and_no_store_are_said(tmp_path: Path) -> None:
    class Empty(Samples):
        has_labels = False

    with pytest.raises(InputError, match="there are no samples"):
        store_samples(Empty([]), tmp_path / "s")
    with pytest.raises(InputError, match="no stored samples"):
        StoredSamples(tmp_path / "missing")
    stored(of_lengths([1]), tmp_path / "s")
    index = json.loads((tmp_path / "s" / INDEX).read_text())
    (tmp_path / "s" / INDEX).write_text(json.dumps({**index, "schema": 99}))
    with pytest.raises(InputError, match="another release"):
        StoredSamples(tmp_path / "s")


def test_inputs_without_a_row_for_each_sample_are_refused(tmp_path: Path) -> None:
    class Scalar(Samples):
        def batches(self, size: int) -> Iterator[Any]:
            from optimc.calibration.dataset import Batch

            yield Batch({"x": np.zeros((3, 2)), "t": np.float32(1.0).reshape(())}, None, 0)

    with pytest.raises(InputError, match="`t` is float32"):
        store_samples(Scalar([Sample({"x": np.zeros(2)})]), tmp_path / "s")


def test_as_many_shapes_as_there_are_need_few_open_files(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    made = [Sample({name: np.full(n + 1, n) for name in ("x", "y")}, n % 7) for n in range(300)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        store = stored(Samples(made), tmp_path / "s")
        assert len(store) == len(store.groups) == 300
        batches = list(store.batches(8, np.random.default_rng(0)))
        again = list(store.in_order(8))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(int(batch.numbers[0]) for batch in batches) == list(range(300))
    assert [batch.feeds["y"].tolist() for batch in again] == [[[n] * (n + 1)] for n in range(300)]
    assert [int(batch.labels[0]) for batch in again if batch.labels is not None] == [
        n % 7 for n in range(300)
    ]


def test_a_disk_that_is_too_small_is_said_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", ("total", "used", "free"))
    asked: list[Path] = []

    def free(folder: Path) -> Any:
        asked.append(folder)
        return usage(10**9, 10**9 - room, room)

    monkeypatch.setattr(shutil, "disk_usage", free)
    data = of_lengths([100] * 1000)  # int64, and an int64 label
    room = 1000 * 101 * 8
    store_samples(data, tmp_path / "fits")
    room -= 1
    with pytest.raises(
        InputError, match="take about 808,000 bytes, and 807,999 are free"
    ) as caught:
        store_samples(data, tmp_path / "s")
    assert caught.value.where == str(tmp_path / "s")
    assert "free some space" in (caught.value.fix or "")
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]
    assert len(asked) == 2
