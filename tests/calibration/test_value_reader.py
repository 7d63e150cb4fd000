"""Sums over values of models, streamed: they are what one pass over all samples would give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimc.calibration.random_data import RandomDataset
from optimc.calibration.reducers import ChannelMaximum, ChannelMoments, Products, windows
from optimc.calibration.values import Reduction, ValueReader
from optimc.core.errors import InputError
from optimc.core.model import OnnxModel
from optimc.core.worker import Limits
from optimc.testing.graphs import GraphBuilder
from optimc.testing.quantizable import conv
from optimc.testing.runs import run_model


def _model(batch: int | str = "batch") -> OnnxModel:
    b = GraphBuilder()
    x = b.input("image", [batch, 4, 7, 7])
    h = b.node("Relu", conv(b, x, 4, 6, pads=[1, 1, 1, 1]), to="inner")
    b.node("ReduceMean", h, b.constant([2, 3]), keepdims=0, to="features")
    b.output("features", [batch, 6])
    return b.model()


def _data(model: OnnxModel, samples: int = 70) -> RandomDataset:
    return RandomDataset(model.signature, {}, {}, seed=0, samples=samples)


def _all(model: OnnxModel, count: int) -> tuple[Any, Any]:
    batches = [batch.feeds["image"] for batch in _data(model).batches(count)]
    b = model.clone()
    b.ir.graph.outputs.extend(v for n in b.ir.graph for v in n.outputs if v.name == "inner")
    return batches[0], run_model(b.sealed(), [{"image": batches[0]}])[0]["inner"]


@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 256 << 20])
def test_sums_do_not_depend_on_the_batches(chunk_bytes: int) -> None:
    model = _model()
    reductions = {
        "moments": Reduction("channel_moments", [("m", "inner")], {"axis": 1}),
        "maximum": Reduction("channel_maximum", [("m", "image")], {"axis": 1}),
    }
    with ValueReader(_data(model), Limits(), chunk_bytes=chunk_bytes) as reader:
        found = reader.reduce({"m": model}, reductions)
    image, inner = _all(model, 70)
    assert np.allclose(found["moments"]["mean"], inner.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(found["moments"]["square"], np.square(inner).mean((0, 2, 3)), rtol=1e-5)
    assert np.array_equal(found["maximum"]["maximum"], np.abs(image).max((0, 2, 3)))


def test_samples_end_the_sweep() -> None:
    model = _model()
    reduction = {"r": Reduction("channel_maximum", [("m", "image")], {"axis": 1})}
    with ValueReader(_data(model), Limits(), samples=8, chunk_bytes=1) as reader:
        found = reader.reduce({"m": model}, reduction)["r"]["maximum"]
    assert np.array_equal(found, np.abs(_all(model, 8)[0]).max((0, 2, 3)))


def test_two_models_are_read_side_by_side() -> None:
    model, again = _model(), _model()
    products = Reduction(
        "products",
        [("one", "image"), ("two", "inner")],
        {
            "window": {
                "kernel_shape": [3, 3],
                "pads": [1] * 4,
                "strides": [1, 1],
                "dilations": [1, 1],
            },
            "positions": 1000,
        },
    )
    with ValueReader(_data(model), Limits()) as reader:
        found = reader.reduce({"one": model, "two": again}, {"p": products})["p"]
    image, inner = _all(model, 70)
    rows = np.concatenate(
        [windows(one[None], 1, [3, 3], [1] * 4, [1, 1], [1, 1])[0] for one in image]
    )
    wanted = inner.transpose(0, 2, 3, 1).reshape(-1, 6)
    assert np.allclose(found["gram"][0], rows.T @ rows / len(rows), atol=1e-4)
    assert np.allclose(found["cross"][0], rows.T @ wanted / len(rows), atol=1e-4)
    assert np.allclose(found["inputs"][0], rows.mean(0), atol=1e-5)
    assert np.allclose(found["outputs"][0], wanted.mean(0), atol=1e-5)


def test_data_that_do_not_fill_a_fixed_batch_are_refused() -> None:
    model = _model(batch=16)
    reduction = {"r": Reduction("channel_maximum", [("m", "image")], {"axis": 1})}
    data = _data(_model(), samples=9)
    with ValueReader(data, Limits()) as reader, pytest.raises(InputError, match="batch of 16"):
        reader.reduce({"m": model}, reduction)


@pytest.mark.parametrize(
    ("groups", "stride", "dilation", "pads"),
    [(1, 1, 1, [0] * 4), (1, 2, 1, [1] * 4), (2, 1, 2, [2, 1, 0, 1]), (4, 2, 1, [1, 1, 1, 1])],
)
def test_windows_times_weight_is_the_convolution(
    groups: int, stride: int, dilation: int, pads: list[int]
) -> None:
    b = GraphBuilder()
    weight = b.rng.normal(size=(8, 4 // groups, 3, 2)).astype(np.float32)
    attributes = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": pads}
    x = b.input("x", [1, 4, 9, 8])
    b.node("Conv", x, b.constant(weight), group=groups, to="y", **attributes)
    b.output("y", [1, 8, "h", "w"])
    image = np.random.default_rng(0).normal(size=(1, 4, 9, 8)).astype(np.float32)
    wanted = run_model(b.model(), [{"x": image}])[0]["y"]
    rows = windows(image, groups, [3, 2], pads, [stride] * 2, [dilation] * 2)
    matrix = weight.reshape(groups, 8 // groups, -1).transpose(0, 2, 1)
    found = np.moveaxis(rows @ matrix, -1, 1).reshape(1, 8, *wanted.shape[2:])
    assert np.allclose(found, wanted, atol=1e-4)


def test_rows_of_a_sample_are_bounded_and_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 50, 3)), rng.normal(size=(6, 50, 2))
    sums = []
    for batches in ([x[:2], x[2:]], [x]):
        reducer, start = Products(positions=10), 0
        for batch in batches:
            reducer.update(batch, y[start : start + len(batch)])
            start += len(batch)
        sums.append(reducer.arrays()["gram"])
    assert np.array_equal(sums[0], sums[1])


def test_float16_values_are_summed_in_float64() -> None:
    moments, maximum = ChannelMoments(axis=-1), ChannelMaximum(axis=-1)
    array = np.full((5000, 1), 100.0, np.float16)
    moments.update(array)
    maximum.update(array)
    assert moments.arrays()["square"] == [10000.0]
    assert maximum.arrays()["maximum"] == [100.0]
