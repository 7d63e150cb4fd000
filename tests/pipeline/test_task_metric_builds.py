"""Metrics of tasks in whole builds: several at once, in one pass over the outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from optimc.calibration.dataset import Batch, Dataset
from optimc.core.model import TensorSpec
from optimc.core.targets import BuildContext
from optimc.core.worker import Limits
from optimc.measure.metrics import metric_for
from optimc.pipeline.cache import Cache
from optimc.pipeline.evaluation import Evaluator
from optimc.targets.onnxruntime import OnnxRuntime
from optimc.testing.choosing import detector
from optimc.testing.commands import run_optimc
from optimc.testing.runs import as_model

FUNCTION = """
def first_pixel(outputs, labels):
    return abs(outputs["logits"][:, :, 0, 0].argmax(axis=1) - labels[:, 0, 0])
first_pixel.better = "lower"
"""


def segmentation(folder: Path, metrics) -> Path:
    """A recipe of a small segmentation network, with labels that it gets about half right."""
    random = np.random.default_rng(0)
    helper, types = onnx.helper, onnx.TensorProto
    weights = random.normal(0, 0.5, (4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["logits"], pads=[1] * 4)],
        "segmentation",
        [helper.make_tensor_value_info("image", types.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("logits", types.FLOAT, ["n", 4, 12, 12])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    images = random.normal(size=(44, 3, 12, 12)).astype(np.float32)
    labels = random.integers(0, 4, (40, 12, 12))
    np.savez(folder / "evaluation.npz", images=images[:40], labels=labels)
    np.savez(folder / "calibration.npz", images=images[40:])
    (folder / "own_metrics.py").write_text(FUNCTION, encoding="utf-8")
    data = {"inputs": {"image": "images"}}
    recipe = {
        "model": {"onnx": "model.onnx"},
        "data": {
            "calibration": {"npz": "calibration.npz", **data},
            "evaluation": {"npz": "evaluation.npz", "labels": "labels", **data},
        },
        "metrics": metrics,
        "variants": {"int8": ["quantize_int8"]},
        "benchmark": {"at_most": "0.1 s"},
        "gate": {"drop": {"miou": 0.5}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.slow
def test_several_metrics_are_measured_at_once(tmp_path):
    own = {"call": "own_metrics:first_pixel", "unit": "classes"}
    segmentation(tmp_path, {"miou": {}, "cosine": {}, "mine": own})
    done = run_optimc("build", "recipe.yaml", "-o", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    (cell,) = report["results"]
    assert list(cell["metrics"]) == ["miou", "cosine", "mine"]
    miou, mine = cell["metrics"]["miou"], cell["metrics"]["mine"]
    assert 0.05 < miou["source"] < 0.5
    assert miou["drop"] == pytest.approx(miou["source"] - miou["value"])
    assert miou["ci95"][0] < miou["drop"] < miou["ci95"][1]
    assert (miou["better"], mine["better"]) == ("higher", "lower")
    assert miou["samples"] == 40


@pytest.mark.parametrize(
    ("metrics", "what"),
    [
        ({"miou": {"output": "logit"}}, "did you mean `logits`"),
        ({"map": {"boxes": "logits"}, "miou": {}}, "unknown output `scores`"),
        ({"span_f1": {}, "miou": {}}, "missing key `labels`"),
        ({"miou": {"resize": "cubic"}}, "expected `bilinear` or `nearest`"),
        ({"mine": {"call": "own_metrics:absent"}, "miou": {}}, "cannot import"),
    ],
)
def test_a_metric_that_does_not_fit_is_found_by_check(tmp_path, metrics, what):
    segmentation(tmp_path, metrics)
    done = run_optimc("check", "recipe.yaml", cwd=tmp_path)
    assert done.code == 2
    assert what in done.err
    assert not done.traceback


class Images(Dataset):
    """Images for the detector; labels are mappings, as COCO's are."""

    where = "images"

    def __init__(self, images, labels):
        self._images, self._labels = images, labels

    def __len__(self):
        return len(self._images)

    @property
    def digest(self):
        return "images"

    def batches(self, size):
        for first in range(0, len(self), size):
            rows = slice(first, first + size)
            yield Batch({"image": self._images[rows]}, self._labels[rows], first)

    def sample_specs(self):
        return {"image": TensorSpec("image", "float32", self._images.shape[1:])}


def test_a_detector_behind_nms_is_judged_image_by_image(tmp_path):
    pytest.importorskip("pycocotools")
    folder = tmp_path / "engine"
    folder.mkdir()
    workspace = BuildContext(workspace=tmp_path)
    target = OnnxRuntime(runtime="onnxruntime")
    engine = target.build(as_model(detector()), folder, workspace)
    images = np.random.default_rng(3).normal(size=(4, 3, 16, 16)).astype(np.float32)
    session = target.open(engine)
    labels = []
    for image in images:
        bound = session.bind({"image": image[None]})
        bound.run()
        found = {name: np.array(array) for name, array in bound.outputs().items()}
        # Only boxes whose corners are in order are found again; NMS takes the others too.
        boxes = found["boxes"]
        boxes = np.concatenate(
            [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1
        )
        size = np.array([16, 16])
        labels.append({"boxes": boxes, "classes": found["classes"], "image_size": size})
    session.close()
    evaluator = Evaluator(
        metrics={"map": metric_for("map"), "map50": metric_for("map50")},
        dataset=(data := Images(images, labels)),
        raw=data,
        dims={},
        signature=engine.signature,
        cache=Cache(enabled=False),
        limits=Limits(),
        seed=0,
        progress=lambda share, text: None,
    )
    evaluator.evaluate_source(engine)
    values = evaluator.source_values()
    assert values["map50"] >= values["map"] > 0.05
    results = evaluator.evaluate("the same", engine)
    assert results["map"].drop.point == 0
    assert results["map"].samples == 4
