from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest

from optimc.core.model import OnnxModel, Signature
from optimc.pipeline.data import open_data
from optimc.pipeline.recipe import load_recipe
from optimc.pipeline.shown import png, shown_samples, worst_numbers
from optimc.report.samples import MOST_TEXT
from optimc.report.schema import Report, WorstSample
from optimc.testing.example_report import example_report


def _worst_are(*numbers: int) -> Report:
    report = example_report()
    cell = report.results[3]
    assert isinstance(cell.metrics, dict)
    worst = tuple(WorstSample(number=n, id=str(n), source=1.0, candidate=0.0) for n in numbers)
    metrics = {"top1": cell.metrics["top1"].model_copy(update={"worst": worst})}
    changed = cell.model_copy(update={"metrics": metrics})
    return report.model_copy(update={"results": (changed,)})


@pytest.mark.parametrize("shape", [(1, 8, 6), (3, 8, 6), (8, 6, 1), (8, 6, 3)])
def test_a_picture_is_a_png_of_the_array(shape: tuple[int, ...]) -> None:
    image = pytest.importorskip("PIL.Image")
    values = np.random.default_rng(0).normal(size=shape)
    opened = image.open(io.BytesIO(png(values)))
    assert opened.size == (6, 8)
    pixels = np.asarray(opened).astype(float).reshape(8, 6, -1)
    wanted = np.moveaxis(values, 0, 2) if shape[0] in (1, 3) else values
    wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min()) * 255
    assert np.abs(pixels - wanted).max() <= 0.51


def test_large_pictures_are_thinned_out_and_odd_values_are_drawn() -> None:
    image = pytest.importorskip("PIL.Image")
    values = np.full((3, 1000, 300), np.nan)
    values[0, 0, 0] = np.inf
    assert max(image.open(io.BytesIO(png(values))).size) <= 128


def test_the_images_of_the_worst_samples_are_found(repository: Path) -> None:
    recipe = load_recipe(repository / "recipes" / "quickstart.yaml")
    data = open_data(recipe, _signature(repository))
    report = _worst_are(5, 599, 5, 10_000)
    assert worst_numbers(report) == [5, 599, 10_000]
    shown = shown_samples(report, data.evaluation)
    assert [one.number for one in shown] == [5, 599]
    for one in shown:
        assert one.png is not None
        assert base64.b64decode(one.png).startswith(b"\x89PNG")
        assert one.texts == ()


def test_the_worst_samples_of_what_ships_come_first() -> None:
    """There is room for a few only: without them the page would show none of its inputs."""
    report = example_report()
    (best,) = [cell for cell in report.results if report.best and cell.name == report.best.name]
    cells = []
    for index, cell in enumerate(report.results):
        (told,) = _worst_are(*range(100 * index, 100 * index + 8)).results
        built = isinstance(cell.metrics, dict)
        cells.append(cell.model_copy(update={"metrics": told.metrics}) if built else cell)
    first = 100 * report.results.index(best)
    found = worst_numbers(report.model_copy(update={"results": tuple(cells)}))
    assert found[:8] == list(range(first, first + 8))
    assert found[8:13] == [0, 100, 200, 400, 1]
    assert len(found) == 24


def _signature(repository: Path) -> Signature:
    import onnx_ir

    path = repository / "recipes" / "quickstart" / "digits.onnx"
    return OnnxModel(onnx_ir.load(path)).signature


class _Texts:
    samples_per_label = 2

    def __len__(self) -> int:
        return 4

    def text_of(self, index: int) -> tuple[str, ...]:
        return (f"first {index}", "x" * 1000)

    def sample_specs(self) -> dict[str, object]:
        return {}


def test_texts_are_shown_short_and_pairs_by_their_label() -> None:
    shown = shown_samples(_worst_are(1), _Texts())  # type: ignore[arg-type]
    assert [one.number for one in shown] == [1]
    assert shown[0].texts[0] == "first 2"
    assert len(shown[0].texts[1]) == MOST_TEXT
    assert shown[0].png is None


def test_without_evaluation_data_nothing_is_shown() -> None:
    assert shown_samples(_worst_are(1), None) == ()
