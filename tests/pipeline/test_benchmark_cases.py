"""Inputs drawn from the evaluation data, and the turns in which sweeps take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from optimc.calibration.sources import DataSource
from optimc.core.errors import InputError
from optimc.core.model import Signature, TensorSpec
from optimc.pipeline.cases import check_data_cases, drawn, samples_in
from optimc.pipeline.recipe import load_recipe
from optimc.pipeline.timing import Case
from optimc.testing.timed import chain


def dataset(folder: Path, samples: int) -> Any:
    values = np.arange(samples * 2, dtype=np.float32).reshape(samples, 2)
    np.savez(folder / "data.npz", x=values)
    adapter: TypeAdapter[Any] = TypeAdapter(DataSource)
    return adapter.validate_python({"npz": "data.npz", "inputs": {"x": "x"}}).open(folder, 0)


def test_drawn_feeds_are_whole_spread_and_always_the_same(tmp_path: Path) -> None:
    data = dataset(tmp_path, 101)
    feeds = drawn(data, 4)
    assert len(feeds) == 8
    assert all(feed["x"].shape == (4, 2) for feed in feeds)
    first = [int(feed["x"][0, 0]) // 2 for feed in feeds]
    assert first == sorted(first)
    assert first[0] == 0
    assert first[-1] >= 92
    again = drawn(data, 4)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(feeds, again, strict=True))


def test_few_samples_give_few_feeds(tmp_path: Path) -> None:
    assert len(drawn(dataset(tmp_path, 3), 1)) == 3
    with pytest.raises(InputError, match="no feed of 8 samples"):
        drawn(dataset(tmp_path, 3), 8)


def test_cases_have_names() -> None:
    assert Case({"batch": 2, "length": 8}, [], []).name == "batch=2,length=8"
    assert Case({"batch": 2}, [], [], from_data=True).name == "data"


@pytest.mark.parametrize(("shape", "samples"), [(("batch", 4), 6), ((3, 4), 3), ((4,), 4), ((), 1)])
def test_samples_of_a_run(shape: tuple[int | str, ...], samples: int) -> None:
    spec = TensorSpec("x", "float32", shape)
    feeds = {"x": np.zeros([6 if isinstance(d, str) else d for d in shape], np.float32)}
    assert samples_in(Signature((spec,), (spec,)), feeds) == samples


def recipe_with(folder: Path, cases: str) -> Path:
    chain(2).write_onnx(folder / "model.onnx")
    path = folder / "recipe.yaml"
    path.write_text(
        "model: {onnx: model.onnx}\nvariants: {fp32: []}\n"
        "targets: {ort: {runtime: onnxruntime}}\n"
        f"benchmark: {{cases: {cases}}}\n"
    )
    return path


def test_drawing_needs_evaluation_data(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_with(tmp_path, "data"))
    assert recipe.benchmark.cases == "data"
    with pytest.raises(InputError, match=r"recipe.yaml:4:13: `cases: data` draws inputs"):
        check_data_cases(recipe, None)
    check_data_cases(recipe, dataset(tmp_path, 3))


def test_other_words_are_no_cases(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe.yaml:4:20"):
        load_recipe(recipe_with(tmp_path, "evaluation"))
