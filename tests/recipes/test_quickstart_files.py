"""The quickstart's model and data are what its training script says they are."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

FOLDER = Path(__file__).parents[2] / "recipes" / "quickstart"
ACCURACY_TOLERANCE = 0.005  # other CPUs round other ways in training

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def load(folder: Path, split: str) -> tuple[Images, Labels]:
    with np.load(folder / f"digits_{split}.npz", allow_pickle=False) as archive:
        return archive["images"], archive["labels"]


def rows(images: Images) -> set[bytes]:
    return {image.tobytes() for image in images}


def top1(folder: Path) -> float:
    session = onnxruntime.InferenceSession(
        folder / "digits.onnx", providers=["CPUExecutionProvider"]
    )
    images, labels = load(FOLDER, "evaluation")
    batch = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(16)
    (logits,) = session.run(["logits"], {"input": batch})
    return float((logits.argmax(axis=1) == labels).mean())


def test_splits_have_the_documented_form() -> None:
    for split, count in (("calibration", 200), ("evaluation", 600)):
        images, labels = load(FOLDER, split)
        assert (images.shape, images.dtype) == ((count, 8, 8, 1), np.uint8)
        assert (labels.shape, labels.dtype) == ((count,), np.int64)
        assert images.max() == 16
        assert set(labels.tolist()) == set(range(10))


def test_splits_are_disjoint_without_duplicates() -> None:
    calibration, evaluation = (load(FOLDER, split)[0] for split in ("calibration", "evaluation"))
    assert len(rows(calibration)) == len(calibration)
    assert len(rows(evaluation)) == len(evaluation)
    assert rows(calibration).isdisjoint(rows(evaluation))


def test_images_are_the_real_digits_with_their_labels() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, digits = datasets.load_digits(return_X_y=True)
    truth = {row.astype(np.uint8).tobytes(): int(d) for row, d in zip(pixels, digits, strict=True)}
    for split in ("calibration", "evaluation"):
        images, labels = load(FOLDER, split)
        assert [truth[image.tobytes()] for image in images] == labels.tolist()


def test_model_has_the_documented_interface() -> None:
    model = onnx.load(FOLDER / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    interface = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert interface == {"input": ["batch", 1, 8, 8], "logits": ["batch", 10]}
    assert any(node.op_type == "BatchNormalization" for node in model.graph.node)


def test_model_tells_nothing_of_the_machine_that_exported_it() -> None:
    model = onnx.load(FOLDER / "digits.onnx")
    graph = model.graph
    parts = (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info)
    assert not any(part.doc_string or part.metadata_props for part in parts)
    content = model.SerializeToString()
    assert not any(word in content for word in (b".py", b"/home/", b"/root/", b"/tmp/"))


def test_model_is_accurate() -> None:
    assert top1(FOLDER) >= 0.97


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_script_gives_the_same_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    script = FOLDER / "train_digits.py"
    subprocess.run(
        [sys.executable, str(script), "-o", str(tmp_path)], check=True, capture_output=True
    )
    for split in ("calibration", "evaluation"):
        for ours, theirs in zip(load(FOLDER, split), load(tmp_path, split), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert top1(tmp_path) == pytest.approx(top1(FOLDER), abs=ACCURACY_TOLERANCE)


@pytest.mark.slow
def test_training_images_stand_in_no_other_split() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    program = (
        "import runpy, sys\n"
        "splits = runpy.run_path(sys.argv[1])['load_splits']()\n"
        "for split in splits: print(*[image.tobytes().hex() for image in split.images])\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program, str(FOLDER / "train_digits.py")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    splits = [line.split() for line in printed.splitlines()]
    assert len(splits) == 3
    assert all(len(set(split)) == len(split) for split in splits)
    assert all(set(a).isdisjoint(b) for a, b in combinations(splits, 2))
    assert {bytes.fromhex(image) for image in splits[2]} == rows(load(FOLDER, "evaluation")[0])
