"""Builds on text, on images of several sizes and on a function's samples, looked at by figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.report.schema import Report
from optimc.testing.data_files import WORDS, ids_of, write_images, write_lines, write_tokenizer
from optimc.testing.data_models import word_vectors, write_image_model, write_sentence_model

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
pytest.importorskip("PIL", reason="the extra `images` is not installed")

REST = """
variants: {fp32: []}
targets: {ort: {runtime: onnxruntime, threads: 1}}
benchmark: {at_most: 0.1 s}
"""
TEXT = """
model: {onnx: model.onnx}
inputs: {input_ids: {values: [0, 11]}, attention_mask: {values: [1, 1]}}
dims: {batch: {min: 1, typical: 1, max: 4}, length: {min: 4, typical: 4, max: 16}}
data:
  calibration: {tsv: other.tsv, tokenizer: tok, text: 0}
  evaluation:
    tsv: pairs.tsv
    tokenizer: tok
    pairs: [1, 2]
    labels: 0
    padding: [4, 6, 8, 16]
metrics: {spearman: {output: sentence}}
"""
IMAGES = """
model: {onnx: model.onnx}
dims: {batch: {min: 1, typical: 1, max: 4}}
data:
  calibration: {images: all, inputs: {x: image}, split: [0, 0.3], transform: &steps}
  evaluation:
    {images: all, inputs: {x: image}, split: [0.3, 1], labels: classes, transform: &steps}
metrics: {top1: {}, cosine: {}}
"""


def built(folder: Path, recipe: str, *settings: str) -> tuple[Build, Report]:
    (folder / "recipe.yaml").write_text(
        recipe.replace("&steps", "[nchw, {divide: 255}]") + REST, encoding="utf-8"
    )
    loaded = load_recipe(folder / "recipe.yaml", list(settings))
    build = Build(loaded, BuildOptions(out=folder / "out", command="optimc build"), Silent())
    return build, build.run()


def sentence(text: str) -> np.ndarray[Any, Any]:
    mean: np.ndarray[Any, Any] = word_vectors()[ids_of(text)].mean(axis=0)
    return mean


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [("sentence",), ("words", "sentence")])
def test_pairs_of_any_length_give_the_rank_correlation_of_their_rows(
    tmp_path: Path, outputs: tuple[str, ...]
) -> None:
    """Batches are out of order, and the members of a pair stand in different ones."""
    rng = np.random.default_rng(0)
    pairs = [[" ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(2)] for _ in range(40)]
    cosines = []
    for one, two in pairs:
        a, b = sentence(one), sentence(two)
        cosines.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    scores = np.round(np.array(cosines) * 2 + rng.standard_normal(40), 1)
    lines = [f"{s}\t{one}\t{two}" for s, (one, two) in zip(scores, pairs, strict=True)]
    write_lines(tmp_path / "pairs.tsv", *lines)
    write_lines(tmp_path / "other.tsv", "the cat the cat", "a dog a dog runs", "cat dog")
    write_tokenizer(tmp_path / "tok")
    write_sentence_model(tmp_path / "model.onnx", outputs=outputs)
    build, report = built(tmp_path, TEXT)
    (cell,) = report.results
    metric = cell.metrics["spearman"]  # type: ignore[index]
    assert metric.value == pytest.approx(spearmanr(cosines, scores).statistic, abs=1e-6)
    assert metric.samples == 40
    from optimc.pipeline.locking import lock_inputs

    assert "tokenizers" in lock_inputs(build)["tools"]


@pytest.mark.slow
def test_images_of_several_sizes_are_calibrated_and_judged_on(tmp_path: Path) -> None:
    sizes = [(16 + 4 * (n % 3), 16 + 4 * (n % 2)) for n in range(30)]
    write_images(tmp_path / "all", sizes, ["a", "b", "c", "d"])
    write_image_model(tmp_path / "model.onnx")
    int8 = "variants={fp32: [], int8: [quantize_int8]}"
    build, report = built(tmp_path, IMAGES, int8)
    # The sizes of the dims come from the data.
    dims = build.data.dims
    assert (dims["height"].min, dims["height"].max) == (16, 24)
    assert (dims["width"].min, dims["width"].max) == (16, 20)
    assert {cell.status for cell in report.results} == {"built"}
    fp32, quantized = (cell.metrics for cell in report.results)
    assert fp32["cosine"].value == pytest.approx(1, abs=1e-6)  # type: ignore[index]
    assert 0.9 < quantized["cosine"].value < 1  # type: ignore[index]
    assert fp32["top1"].samples == 21  # type: ignore[index]
    reference = _accuracy(build)
    assert fp32["top1"].value == pytest.approx(reference)  # type: ignore[index]


def _accuracy(build: Build) -> float:
    """Of the source, one image at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(build.source.path))
    evaluation = build.data.evaluation
    assert evaluation is not None
    right = [
        int(session.run(None, dict(batch.feeds))[0].argmax()) == int(np.asarray(batch.labels)[0])
        for batch in evaluation.batches(1)
    ]
    return float(np.mean(right))


def test_a_function_feeds_calibration_and_evaluation(tmp_path: Path) -> None:
    (tmp_path / "own_samples.py").write_text(
        "import numpy as np\n"
        "def calibration():\n"
        "    for n in range(6):\n"
        "        yield {'x': np.random.default_rng(n).random((3, 16, 16), np.float32)}\n"
        "def evaluation():\n"
        "    for n in range(6, 20):\n"
        "        yield {'x': np.random.default_rng(n).random((3, 16, 16), np.float32)}, n % 4\n"
    )
    write_image_model(tmp_path / "model.onnx")
    recipe = """
model: {onnx: model.onnx}
data: {calibration: {call: "own_samples:calibration"}, evaluation: {call: "own_samples:evaluation"}}
metrics: {top1: {}}
"""
    build, report = built(tmp_path, recipe, "variants={int8: [quantize_int8]}")
    (cell,) = report.results
    assert cell.status == "built"
    assert cell.metrics["top1"].samples == 14  # type: ignore[index]
    assert build.data.digests()["calibration"] != build.data.digests()["evaluation"]
