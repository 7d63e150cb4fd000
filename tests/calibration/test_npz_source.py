"""Data from npz archives and npy files, honest and hostile."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from optimc.calibration.arrays import ArrayDataset
from optimc.calibration.npy_format import MAX_ARRAY_BYTES
from optimc.calibration.sources import DataSource
from optimc.core.errors import InputError
from optimc.core.model import TensorSpec

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 5, 10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "data.npz", images=IMAGES, labels=LABELS)
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    return tmp_path


def opened(folder: Path, seed: int = 0, **written: Any) -> ArrayDataset:
    source = ADAPTER.validate_python({"npz": "data.npz", "inputs": {"x": "images"}, **written})
    dataset = source.open(folder, seed)
    assert isinstance(dataset, ArrayDataset)
    return dataset


def stacked(dataset: ArrayDataset, size: int = 3) -> np.ndarray[Any, Any]:
    return np.concatenate([batch.feeds["x"] for batch in dataset.batches(size)])


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """The header of an npy file that claims this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def test_batches_hold_transformed_samples_in_order(folder: Path) -> None:
    dataset = opened(folder, transform=["nchw", {"divide": 255}], labels="labels")
    batches = list(dataset.batches(4))
    assert [batch.size for batch in batches] == [4, 4, 2]
    assert [batch.first_index for batch in batches] == [0, 4, 8]
    expected = IMAGES.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_array_equal(stacked(dataset), expected)
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), LABELS)
    assert dataset.sample_specs() == {"x": TensorSpec("x", "float32", (3, 4, 4))}
    assert len(dataset) == 10
    assert dataset.has_labels


def test_npy_files_give_the_same_as_an_archive(folder: Path) -> None:
    written = {"npy": {"x": "images.npy"}, "labels": "labels.npy", "transform": ["nchw"]}
    files = ADAPTER.validate_python(written).open(folder, 0)
    both = opened(folder, labels="labels", transform=["nchw"])
    np.testing.assert_array_equal(stacked(files), stacked(both))
    assert files.digest == both.digest


def test_without_inputs_every_array_but_the_labels_feeds_its_namesake(folder: Path) -> None:
    dataset = opened(folder, inputs=None, labels="labels")
    assert list(dataset.sample_specs()) == ["images"]


def test_take_means_the_first_or_a_seeded_choice(folder: Path) -> None:
    np.testing.assert_array_equal(stacked(opened(folder, take=3)), IMAGES[:3])
    drawn = stacked(opened(folder, take=5, shuffle=True))
    np.testing.assert_array_equal(drawn, stacked(opened(folder, take=5, shuffle=True)))
    assert not np.array_equal(drawn, IMAGES[:5])
    assert not np.array_equal(drawn, stacked(opened(folder, seed=1, take=5, shuffle=True)))
    whole = opened(folder, shuffle=True, labels="labels")
    order = [np.flatnonzero((image == IMAGES).all((1, 2, 3)))[0] for image in stacked(whole)]
    np.testing.assert_array_equal(
        np.concatenate([b.labels for b in whole.batches(3)]), LABELS[order]
    )


def test_the_digest_names_what_is_used_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    base = opened(folder, take=5).digest
    assert opened(folder, take=5).digest == base
    assert opened(folder, take=6).digest != base
    assert opened(folder, take=5, transform=["nchw"]).digest != base
    assert opened(folder, take=5, labels="labels").digest != base
    assert opened(folder, take=5, shuffle=True).digest != base
    changed = IMAGES.copy()
    changed[7] += 1  # not among the first five
    np.savez(tmp_path / "other.npz", images=changed)
    assert opened(folder, npz="other.npz", take=5).digest == base
    assert opened(folder, npz="other.npz").digest != opened(folder).digest


def test_opening_reads_no_array(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_array(*args: object, **options: object) -> None:
        raise AssertionError("an array was read")

    monkeypatch.setattr(np.lib.format, "read_array", read_array)
    dataset = opened(folder, labels="labels", transform=["nchw"], take=4)
    assert dataset.sample_specs()["x"].shape == (3, 4, 4)
    with pytest.raises(AssertionError, match="an array was read"):
        list(dataset.batches(1))


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ({"npz": "none.npz"}, "no such file"),
        ({"npz": "."}, "is not a file"),
        ({"npz": "images.npy"}, "cannot be read"),
        ({"inputs": {"x": "image"}}, "unknown array `image`"),
        ({"labels": "label"}, "unknown array `label`"),
        ({"inputs": None, "labels": "label"}, "unknown array `label`"),
        ({"inputs": {}}, "names no array for any input"),
        ({"take": 11}, "`take: 11` asks for more samples than the 10 there are"),
        ({"transform": {"y": ["nchw"]}}, "unknown input `y`"),
        ({"transform": [{"divide": [1, 2]}]}, "`divide` needs axis 1 of size 2"),
    ],
)
def test_what_does_not_fit_is_one_message(folder: Path, written: Any, what: str) -> None:
    with pytest.raises(InputError) as caught:
        opened(folder, **written).sample_specs()
    assert what in caught.value.what
    assert caught.value.where
    assert caught.value.fix


def test_near_names_are_offered(folder: Path) -> None:
    with pytest.raises(InputError, match="did you mean `images`"):
        opened(folder, inputs={"x": "image"})


def test_arrays_of_different_length_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=LABELS[:9])
    with pytest.raises(InputError, match="images has 10, labels has 9"):
        opened(tmp_path, labels="labels")


def test_empty_data_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=IMAGES[:0])
    with pytest.raises(InputError, match="holds no samples"):
        opened(tmp_path)


def test_a_single_number_is_no_set_of_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.float32(3))
    with pytest.raises(InputError, match="not an array of samples"):
        opened(tmp_path)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (touched,))

    np.savez(tmp_path / "data.npz", images=np.array([Bomb()], dtype=object))
    with pytest.raises(InputError, match="pickled Python objects"):
        opened(tmp_path)
    assert not touched.exists()


def test_a_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    claims = header((MAX_ARRAY_BYTES + 1,))
    archive(tmp_path / "data.npz", images=claims + bytes(1 << 20))
    with pytest.raises(InputError, match="over the cap"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "content",
    [header((10, 4)) + bytes(39), header((10, 4)) + bytes(41), header((2**62, 2**62)), b"", b"x"],
    ids=["short", "long", "overflow", "empty", "garbage"],
)
def test_damaged_members_are_refused(tmp_path: Path, content: bytes) -> None:
    archive(tmp_path / "data.npz", images=content)
    with pytest.raises(InputError):
        opened(tmp_path)


def test_a_lie_in_the_directory_is_found_while_reading(tmp_path: Path) -> None:
    """The sizes agree with each other, the compressed bytes do not."""
    path = archive(tmp_path / "data.npz", images=header((10, 4)) + bytes(range(40)))
    blob = bytearray(path.read_bytes())
    (central,) = struct.unpack_from("<I", blob, blob.rfind(b"PK\x05\x06") + 16)
    struct.pack_into("<I", blob, central + 16, 0)  # the checksum
    path.write_bytes(blob)
    with pytest.raises(InputError, match="cannot be read"):
        list(opened(tmp_path).batches(4))


def test_truncated_archives_are_refused(folder: Path) -> None:
    path = folder / "data.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        opened(folder)


def test_truncated_npy_files_are_refused(folder: Path) -> None:
    path = folder / "images.npy"
    path.write_bytes(path.read_bytes()[:-5])
    source = ADAPTER.validate_python({"npy": {"x": "images.npy"}})
    with pytest.raises(InputError, match="5 bytes are missing"):
        source.open(folder, 0)


def test_arrays_of_other_things_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.array(["2024-01-01"], "datetime64[D]"))
    with pytest.raises(InputError, match="not numbers or text"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"npzz": "a.npz"}, "did you mean `npz`?"),
        ({}, "unknown kind of data"),
        ({"npz": "a.npz", "lables": "x"}, "Extra inputs are not permitted"),
        ({"npz": 3}, "valid string"),
        ({"npz": "a.npz", "take": 0}, "greater than or equal to 1"),
        ({"npz": "a.npz", "take": True}, "valid integer"),
        ({"npz": "a.npz", "transform": "nchw"}, "must be a list of steps"),
        ({"npy": {}}, "at least 1 item"),
    ],
)
def test_wrong_options_are_refused(written: Any, message: str) -> None:
    with pytest.raises(ValidationError, match="1 validation error") as caught:
        ADAPTER.validate_python(written)
    assert message in caught.value.errors()[0]["msg"]


def test_options_survive_a_round_trip() -> None:
    written = {"npz": "a.npz", "transform": {"x": ["nchw", {"divide": [1.0, 2.0]}]}, "take": 3}
    source = ADAPTER.validate_python(written)
    assert ADAPTER.validate_json(source.model_dump_json()) == source
