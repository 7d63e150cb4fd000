"""Folders of images: labels of all kinds, sizes, orientation, and hostile files."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from optimc.calibration import image_files
from optimc.calibration.checks import check_against, check_disjoint
from optimc.calibration.image_dataset import ImageDataset
from optimc.calibration.sources import DataSource
from optimc.core.errors import InputError
from optimc.core.model import Signature, TensorSpec
from optimc.testing.data_files import write_image, write_images, write_lines

Image = pytest.importorskip("PIL.Image", reason="the extra `images` is not installed")

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)
SIZES = [(20, 30), (30, 20), (20, 30), (24, 24), (20, 30), (30, 20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "val", SIZES, ["cat", "dog"])
    return tmp_path


def opened(folder: Path, seed: int = 0, **written: Any) -> ImageDataset:
    source = {"images": "val", "inputs": {"x": "image"}, **written}
    dataset = ADAPTER.validate_python(source).open(folder, seed)
    assert isinstance(dataset, ImageDataset)
    return dataset


def by_name(dataset: ImageDataset) -> dict[str, tuple[Any, Any]]:
    """The feed and the label of every sample, by its file."""
    found = {}
    for batch in dataset.batches(2):
        for row, number in enumerate(batch.numbers):
            label = None if batch.labels is None else batch.labels[row]
            found[dataset.name_of(number)] = (batch.feeds["x"][row], label)
    return found


def coco(folder: Path, **changes: Any) -> str:
    content = {
        "images": [
            {"id": 7, "file_name": "cat/000.png", "height": 20, "width": 30},
            {"id": 3, "file_name": "dog/001.png", "height": 30, "width": 20},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 18, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 5.5], "area": 40, "iscrowd": 1},
            {"image_id": 7, "category_id": 18, "bbox": [0, 0, 3, 4]},
        ],
        **changes,
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return "instances.json"


def test_class_folders_in_the_order_of_their_names(folder: Path) -> None:
    dataset = opened(folder, labels="classes")
    samples = by_name(dataset)
    assert sorted(samples) == [
        f"{c}/{n:03}.png"
        for c, n in [("cat", 0), ("cat", 2), ("cat", 4), ("dog", 1), ("dog", 3), ("dog", 5)]
    ]
    for name, (pixels, label) in samples.items():
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(folder / "val" / name)))
        assert label == (0 if name.startswith("cat") else 1)
    mapped = opened(folder, labels="classes", label_map={"dog": 5, "cat": 9})
    assert {label for _, label in by_name(mapped).values()} == {5, 9}
    with pytest.raises(InputError, match="unknown label `dog`"):
        opened(folder, labels="classes", label_map={"cat": 9})


def test_links_to_folders_are_followed_but_not_in_a_circle(folder: Path) -> None:
    (folder / "val" / "cat").rename(folder / "elsewhere")
    (folder / "val" / "cat").symlink_to(folder / "elsewhere")
    (folder / "elsewhere" / "back").symlink_to(folder / "val")
    (folder / "elsewhere" / "itself").symlink_to(folder / "elsewhere")
    labels = {name: label for name, (_, label) in by_name(opened(folder, labels="classes")).items()}
    assert {name: labels[name] for name in ("cat/000.png", "dog/001.png")} == {
        "cat/000.png": 0,
        "dog/001.png": 1,
    }
    assert not any("itself" in name for name in labels)


def test_an_empty_class_folder_does_not_move_the_others_up(folder: Path) -> None:
    (folder / "val" / "bird").mkdir()
    (folder / "val" / ".cache").mkdir()
    with pytest.raises(InputError, match="bird: the class folder holds no image"):
        opened(folder, labels="classes")
    numbers = {"bird": 0, "cat": 1, "dog": 2}
    mapped = opened(folder, labels="classes", label_map=numbers)
    assert {label for _, label in by_name(mapped).values()} == {1, 2}
    assert len(opened(folder)) == len(SIZES)


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
def test_pixels_of_more_than_8_bits_are_not_cut_off(folder: Path, kind: str) -> None:
    path = folder / "val" / "cat" / "deep.tiff"
    Image.fromarray(np.full((20, 30), 1000, kind)).save(path)
    dataset = opened(folder)
    with pytest.raises(InputError, match=r"deep.tiff: holds pixels of more than 8 bits"):
        dataset.shape_counts()
    with pytest.raises(InputError, match=r"deep.tiff: holds pixels of more than 8 bits"):
        list(dataset.batches(2))


def test_labels_of_a_csv_are_the_samples_in_their_order(folder: Path) -> None:
    write_lines(folder / "labels.csv", "file,kind", "dog/001.png,b", "cat/000.png,a")
    labels = {"csv": "labels.csv", "image": "file", "label": "kind"}
    dataset = opened(folder, labels=labels, label_map={"a": 3, "b": 4})
    assert [dataset.name_of(index) for index in range(len(dataset))] == [
        "dog/001.png",
        "cat/000.png",
    ]
    assert [list(found) for found in dataset.labels()] == [[4, 3]]
    write_lines(folder / "labels.csv", "file,kind", "dog/001.png,b", "dog/01.png,a")
    with pytest.raises(InputError) as caught:
        opened(folder, labels=labels, label_map={"a": 3, "b": 4})
    assert str(caught.value.where).endswith("labels.csv:3")
    assert "did you mean `dog/001.png`?" in str(caught.value.fix)
    for outside in ("../labels.csv", "/etc/passwd"):
        write_lines(folder / "labels.csv", "file,kind", f"{outside},b")
        with pytest.raises(InputError, match="lies outside"):
            opened(folder, labels=labels, label_map={"a": 3, "b": 4})


def test_coco_boxes_keep_the_original_size(folder: Path) -> None:
    dataset = opened(folder, labels={"coco": coco(folder)}, transform=[{"resize": {"size": 8}}])
    samples = by_name(dataset)
    assert list(samples) == ["cat/000.png", "dog/001.png"]
    label = samples["cat/000.png"][1]
    assert label["boxes"].dtype == np.float32
    np.testing.assert_array_equal(label["boxes"], [[1, 2, 11, 7.5], [0, 0, 3, 4]])
    np.testing.assert_array_equal(label["classes"], [1, 0])  # cat has the lower id
    assert (label["classes"].dtype, label["crowd"].dtype) == (np.int64, bool)
    np.testing.assert_array_equal(label["crowd"], [True, False])
    np.testing.assert_array_equal(label["areas"], [40, 12])
    np.testing.assert_array_equal(label["image_size"], [20, 30])
    assert int(label["image_id"]) == 7
    empty = samples["dog/001.png"][1]
    assert empty["boxes"].shape == (0, 4)
    mapped = opened(folder, labels={"coco": "instances.json"}, label_map={"cat": 4, "dog": 2})
    np.testing.assert_array_equal(by_name(mapped)["cat/000.png"][1]["classes"], [2, 4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "has no list `images`"),
        ({"images": [], "annotations": []}, "lists no images"),
        (
            {"images": [{"id": 7, "file_name": f"cat/00{n}.png"} for n in (0, 2)]},
            "images[1]: has the id 7 of an earlier entry",
        ),
        (
            {"categories": [{"id": 18, "name": name} for name in ("cat", "dog")]},
            "categories[1]: has the id 18 of an earlier entry",
        ),
        ({"images": [{"id": 7}], "annotations": []}, "images[0]: has no `file_name`"),
        ({"images": [{"id": "7", "file_name": "a"}]}, "has no whole number `id`"),
        ({"annotations": [{"image_id": 9}]}, "belongs to the image 9, which is not listed"),
        ({"annotations": [{"image_id": 7, "category_id": 1}]}, "has the category 1"),
        ({"annotations": [{"image_id": 7, "category_id": 18}]}, "annotations[0]: has no `bbox`"),
        (
            {"annotations": [{"image_id": 7, "category_id": 18, "bbox": [0, 0, -1, 1]}]},
            "has a box of -1 x 1",
        ),
        ({"images": [{"id": 7, "file_name": "cat/9.png"}], "annotations": []}, "there is no image"),
    ],
)
def test_broken_coco_files_are_named(folder: Path, changes: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        opened(folder, labels={"coco": coco(folder, **changes)})
    assert message in str(caught.value)
    assert "instances.json" in str(caught.value)


def test_coco_that_is_not_json_or_of_another_size_is_named(folder: Path) -> None:
    (folder / "instances.json").write_text('{"images": [}')
    with pytest.raises(InputError, match=r"instances\.json:1:13: is not JSON"):
        opened(folder, labels={"coco": "instances.json"})
    wrong = [{"id": 7, "file_name": "cat/000.png", "height": 30, "width": 20}]
    dataset = opened(folder, labels={"coco": coco(folder, images=wrong)})
    with pytest.raises(InputError, match="the image is 20 x 30, its annotations say 30 x 20"):
        list(dataset.batches(1))


def test_masks_follow_the_sizes_of_the_transform(folder: Path) -> None:
    rng = np.random.default_rng(0)
    masks = {}
    for image in sorted((folder / "val").rglob("*.png")):
        name = image.relative_to(folder / "val")
        with Image.open(image) as opened_image:
            size = opened_image.size[::-1]
        masks[name.as_posix()] = rng.integers(0, 3, size, dtype=np.uint8)
        (folder / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(masks[name.as_posix()]).save(folder / "masks" / name)
    dataset = opened(folder, masks="masks")
    assert dataset.has_labels
    for file, (_, mask) in by_name(dataset).items():
        np.testing.assert_array_equal(mask, masks[file])
    resized = opened(folder, masks="masks", transform=[{"resize": {"size": [10, 12]}}, "nchw"])
    (batch, *_) = resized.batches(6)
    assert batch.feeds["x"].shape == (6, 3, 10, 12)
    assert isinstance(batch.labels, np.ndarray)
    assert batch.labels.shape == (6, 10, 12)
    (folder / "masks" / "cat" / "000.png").unlink()
    with pytest.raises(InputError, match="there is no mask for the image"):
        opened(folder, masks="masks")
    write_image(folder / "masks" / "cat" / "000.png", (20, 30))
    with pytest.raises(InputError, match="a mask in colour"):
        list(opened(folder, masks="masks").batches(1))
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "masks" / "cat" / "000.png")
    with pytest.raises(InputError, match="the mask is 5 x 5, its image 20 x 30"):
        list(opened(folder, masks="masks").batches(1))


def test_images_are_turned_upright_and_converted(folder: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    (folder / "turned").mkdir()
    Image.fromarray(pixels).save(folder / "turned" / "a.png", exif=exif)
    (image,) = [feed for feed, _ in by_name(opened(folder, images="turned")).values()]
    assert image.shape == (16, 8, 3)
    assert (image[:8] == 255).all()
    assert opened(folder, images="turned").sample_specs()["x"].shape == (16, 8, 3)
    as_stored = opened(folder, images="turned", orient=False)
    assert as_stored.sample_specs()["x"].shape == (8, 16, 3)
    np.testing.assert_array_equal(by_name(as_stored)["a.png"][0], pixels)
    gray = opened(folder, color="gray")
    assert {
        spec.shape[2] for specs in gray.all_sample_specs() for spec in specs.values() if spec.shape
    } == {1}


def test_shapes_come_from_headers_and_are_held_against_the_model(folder: Path) -> None:
    dataset = opened(folder, transform=["nchw", {"divide": 255}])
    shapes = [specs["x"].shape for specs in dataset.all_sample_specs()]
    assert shapes[0] == (3, 20, 30)  # the most frequent
    assert set(shapes) == {(3, 20, 30), (3, 30, 20), (3, 24, 24)}
    signature = Signature((TensorSpec("x", "float32", ("n", 3, "h", "w")),), ())
    check_against(dataset, signature, {"h": (20, 30), "w": (20, 30)})
    with pytest.raises(InputError, match="the dim `h` of the input `x` is 30, outside of 20 to 24"):
        check_against(dataset, signature, {"h": (20, 24), "w": (20, 30)})
    padded = opened(folder, transform=[{"pad": {"multiple_of": 32}}, "nchw"])
    assert [specs["x"].shape for specs in padded.all_sample_specs()] == [(3, 32, 32)]


def test_batches_have_one_shape_and_hold_all_samples(folder: Path) -> None:
    batches = list(opened(folder, labels="classes").batches(2))
    assert sorted(n for batch in batches for n in batch.numbers) == list(range(6))
    assert sorted(batch.size for batch in batches) == [1, 1, 2, 2]


def test_the_digest_names_contents_not_files(folder: Path) -> None:
    base = opened(folder, labels="classes").digest
    (folder / "val" / "cat" / "000.png").rename(folder / "val" / "cat" / "0000.png")
    assert opened(folder, labels="classes").digest == base
    assert opened(folder).digest != base
    assert opened(folder, labels="classes", transform=["nchw"]).digest != base
    assert opened(folder, labels="classes", color="gray").digest != base
    write_image(folder / "val" / "cat" / "0000.png", (20, 30), 99)
    assert opened(folder, labels="classes").digest != base


def test_splits_of_one_folder_are_disjoint_and_a_copied_file_is_found(folder: Path) -> None:
    first, rest = opened(folder, split=[0, 0.5]), opened(folder, split=[0.5, 1])
    assert len(first) + len(rest) == 6
    check_disjoint({"calibration": first, "evaluation": rest})
    copy = folder / "val" / "dog" / "copy.png"
    copy.write_bytes((folder / "val" / "cat" / "000.png").read_bytes())
    names = [opened(folder).name_of(index) for index in range(7)]
    assert "dog/copy.png" in names
    with pytest.raises(InputError) as caught:
        check_disjoint(
            {"calibration": opened(folder, take=3), "evaluation": opened(folder, split=[0, 1])}
        )
    assert "cat/000.png = cat/000.png" in caught.value.what


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, with a little data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_hostile_images_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "val" / "cat" / "000.png"
    whole = path.read_bytes()
    hostile = {
        "claims 10,000 x 12,000 pixels": png(10_000, 12_000),
        "could be decompression bomb": png(60_000, 60_000),
        "cannot be read as an image": whole[:200],
        "cannot identify image file": b"not an image",
        "truncated": png(500, 500),
    }
    for message, content in hostile.items():
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            list(opened(folder).batches(1))
        assert message in caught.value.what
        assert str(path) in str(caught.value.where)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(InputError, match="cannot identify image file"):
        opened(folder).sample_specs()
    path.write_bytes(whole)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 599)
    with pytest.raises(InputError, match="over the cap of 599"):
        opened(folder).sample_specs()


def test_folders_that_do_not_fit_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        opened(folder, images="va")
    (folder / "empty").mkdir()
    write_lines(folder / "empty" / "notes.txt", "no image")
    with pytest.raises(InputError, match="holds no images"):
        opened(folder, images="empty")
    write_image(folder / "val" / "lost.png", (8, 8))
    with pytest.raises(InputError, match="lies in no class folder"):
        opened(folder, labels="classes")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"inputs": {}}, "at least 1 item"),
        ({"inputs": {"x": "pixels"}}, "Input should be 'image'"),
        ({"labels": "folders"}, "Input should be 'classes'"),
        ({"labels": {"csv": "a.csv", "image": 0}}, "Field required"),
        ({"labels": "classes", "masks": "m"}, "exclude each other"),
        ({"label_map": {"a": 0}}, "`label_map` without `labels`"),
        ({"color": "cmyk"}, "Input should be 'rgb' or 'gray'"),
    ],
)
def test_wrong_options_are_refused(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python({"images": "val", "inputs": {"x": "image"}, **written})
    assert message in str(caught.value)
