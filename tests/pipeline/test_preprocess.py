"""`preprocess: {embed: true}`: engines take what is stored, and give what the source gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from optimc.core.errors import InputError, VerificationError
from optimc.core.model import OnnxModel
from optimc.frontends import embedding
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.recipe import load_recipe
from optimc.report.schema import Metric, Report
from optimc.report.values import Skipped
from optimc.testing.commands import run_optimc

CHAIN = "[nchw, {divide: 16}]"
RECIPE = """
model: {{onnx: digits.onnx}}
data:
{data}
preprocess: {{embed: {embed}}}
metrics: {{top1: {{}}}}
variants: {variants}
targets: {{ort: {{runtime: onnxruntime}}}}
benchmark: {{at_most: 1 s}}
"""
BOTH = ("calibration", "evaluation")
FLOAT = "{fp32: [simplify, fold_preprocess]}"


@pytest.fixture
def workshop(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(tmp_path / "cache"))
    for file in (repository / "recipes" / "quickstart").glob("digits*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def source(split: str, transform: str = CHAIN) -> str:
    labels = ", labels: labels" if split == "evaluation" else ""
    return (
        f"  {split}: {{npz: digits_{split}.npz, inputs: {{input: images}}{labels},"
        f" take: 100, transform: {transform}}}"
    )


def built(
    folder: Path,
    splits: tuple[str, ...] = BOTH,
    *,
    transforms: dict[str, str] | None = None,
    variants: str = FLOAT,
    embed: str = "true",
    **options: Any,
) -> Report:
    data = "\n".join(source(split, (transforms or {}).get(split, CHAIN)) for split in splits)
    (folder / "recipe.yaml").write_text(RECIPE.format(data=data, variants=variants, embed=embed))
    settings = BuildOptions(out=folder / "out", command="optimc build", **options)
    return Build(load_recipe(folder / "recipe.yaml"), settings, Silent()).run()


def engine(folder: Path, variant: str) -> Path:
    return folder / "out" / "artifacts" / variant / "ort"


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": images})[0])


def test_engines_take_pixels_and_give_the_source_s_outputs(workshop: Path) -> None:
    report = built(workshop, measure=False)
    assert report.results[0].status == "built", report.results[0].reason
    manifest = json.loads((engine(workshop, "fp32") / "manifest.json").read_text())
    assert manifest["signature"]["inputs"] == [["input", "uint8", ["batch", 8, 8, 1]]]
    with np.load(workshop / "digits_evaluation.npz") as archive:
        images = archive["images"]
    inside = run(engine(workshop, "fp32") / "model.onnx", images)
    floats = np.moveaxis(images, -1, 1).astype(np.float32) / np.float32(16)
    outside = run(workshop / "digits.onnx", np.ascontiguousarray(floats))
    assert np.abs(inside - outside).max() <= 1e-5 * np.abs(outside).max()
    np.testing.assert_array_equal(inside.argmax(1), outside.argmax(1))
    note = next(note for note in report.notes if note.startswith("embedded in the model"))
    assert "nchw, divide 16" in note
    assert "input: uint8[batch, 8, 8, 1]" in note
    assert "on 32 raw samples" in note
    fold = report.results[0].passes[1]
    assert (fold.verdict, fold.rewrites) == ("equivalent", 1)  # by a power of two
    built(workshop, measure=False, locked=True)


@pytest.mark.slow
def test_the_source_is_measured_as_it_came_in(workshop: Path) -> None:
    variants = "{fp32: [fold_preprocess], int8: [simplify, fold_preprocess, fuse, quantize_int8]}"
    embedded = built(workshop, variants=variants)
    plain = built(
        workshop, variants="{fp32: [], int8: [simplify, fuse, quantize_int8]}", embed="false"
    )
    assert embedded.source.metrics == plain.source.metrics
    for cell, other in zip(embedded.results, plain.results, strict=True):
        assert cell.status == "built", cell.reason
        assert isinstance(cell.metrics, dict)
        assert isinstance(other.metrics, dict)
        one, two = cell.metrics["top1"], other.metrics["top1"]
        assert isinstance(one, Metric)
        assert isinstance(two, Metric)
        assert abs(one.value - two.value) <= 0.02
    assert embedded.results[0].metrics["top1"].drop == 0.0  # type: ignore[index]
    assert not isinstance(embedded.results[0].latency, Skipped)


def test_without_calibration_data_seeded_pixels_stand_for_them(workshop: Path) -> None:
    report = built(workshop, ("evaluation",), measure=False)
    assert report.results[0].status == "built", report.results[0].reason
    assert any("on 32 raw samples" in note for note in report.notes)


def test_what_onnx_cannot_do_stays_outside(workshop: Path) -> None:
    chain = "[{cast: int64}, nchw, {divide: 16}]"
    report = built(workshop, transforms=dict.fromkeys(BOTH, chain), measure=False)
    manifest = json.loads((engine(workshop, "fp32") / "manifest.json").read_text())
    assert manifest["signature"]["inputs"] == [["input", "int64", ["batch", 8, 8, 1]]]
    assert any("it takes input: int64" in note for note in report.notes)


def test_a_transform_that_differs_between_splits_is_refused(workshop: Path) -> None:
    other = {"evaluation": "[nchw, {divide: 8}, {divide: 2}]"}
    with pytest.raises(InputError, match="calibration and data\\.evaluation have diff") as error:
        built(workshop, transforms=other, measure=False)
    assert "recipe.yaml:" in str(error.value)
    checked = run_optimc("check", workshop / "recipe.yaml", cwd=workshop)
    assert checked.code == 2
    assert "have different transforms" in checked.err
    assert "the same transform" in str(error.value.fix)


def test_data_without_a_transform_are_refused(workshop: Path) -> None:
    images, labels = np.zeros((100, 1, 8, 8), np.float32), np.zeros(100, np.int64)
    np.savez(workshop / "digits_evaluation.npz", images=images, labels=labels)
    with pytest.raises(InputError, match="have no transform that can be put") as error:
        built(workshop, ("evaluation",), transforms={"evaluation": "[]"}, measure=False)
    assert "recipe.yaml:" in str(error.value)
    assert "leave `preprocess` out" in str(error.value.fix)


def test_splits_of_different_types_are_refused(workshop: Path) -> None:
    with np.load(workshop / "digits_calibration.npz") as archive:
        images = archive["images"].astype(np.float32)
    np.savez(workshop / "digits_calibration.npz", images=images)
    with pytest.raises(InputError, match="`input` is float32 in one split and uint8"):
        built(workshop, measure=False)


def test_a_wrong_embedding_is_not_built_on(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = embedding.embed

    def wrong(model: OnnxModel, steps: Any, raw: Any) -> OnnxModel:
        return embed(model, {name: listed[:1] for name, listed in steps.items()}, raw)

    monkeypatch.setattr(embedding, "embed", wrong)
    with pytest.raises(VerificationError, match="does not give what the source gives") as error:
        built(workshop, measure=False)
    assert error.value.fix
