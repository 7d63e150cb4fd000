"""`optimc inspect --quantization` on files of several tools, and on what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.testing import seeded_feeds
from optimc.testing.commands import run_optimc
from optimc.testing.quantizable import quantizable_models


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("floats") / "residual.onnx"
    quantizable_models()["residual"].write_onnx(path)
    return path


class _Reader:
    def __init__(self) -> None:
        self._feeds = iter([seeded_feeds(quantizable_models()["residual"])[0]])

    def get_next(self) -> Any:
        return next(self._feeds, None)


@pytest.fixture(scope="module", params=["QDQ", "QOperator"])
def quantized(request: pytest.FixtureRequest, floats: Path) -> Path:
    """What ONNX Runtime's tool makes of it."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    path = floats.with_name(f"{request.param}.onnx")
    quantize_static(
        str(floats),
        str(path),
        _Reader(),
        quant_format=getattr(QuantFormat, request.param),
        per_channel=True,
        activation_type=QuantType.QInt8 if request.param == "QDQ" else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return path


def test_layers_and_findings(quantized: Path, tmp_path: Path) -> None:
    done = run_optimc(
        "inspect", str(quantized), "--quantization", "--target", "onnxruntime", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    convolutions = [layer for layer in found["layers"] if "Conv" in layer["operator"]]
    assert len(convolutions) == 4
    assert {layer["form"] for layer in convolutions} == {
        "Q/DQ" if quantized.stem == "QDQ" else "QOperator"
    }
    for layer in convolutions:
        weight = next(tensor for tensor in layer["tensors"] if tensor["role"] == "weight")
        assert weight["granularity"] == "channel"
        assert weight["axis"] == 0
        assert 30.0 < weight["sqnr_db"] < 60.0
    rules = {finding["rule"] for finding in found["findings"]["onnxruntime"]}
    assert ("activation-dtype" in rules) == (quantized.stem == "QDQ")


def test_the_table_names_layers_and_rules(quantized: Path, tmp_path: Path) -> None:
    done = run_optimc(
        "inspect", str(quantized), "--quantization", "--target", "onnxruntime", cwd=tmp_path
    )
    assert done.code == 0
    assert "8 channels, axis 0" in done.out
    assert "lint         onnxruntime: " in done.out


def test_activations_on_feeds(floats: Path, quantized: Path, tmp_path: Path) -> None:
    if quantized.stem != "QDQ":
        pytest.skip("the QOperator form holds no floats to observe")
    images = seeded_feeds(quantizable_models()["residual"])[0]["image"]
    np.savez(tmp_path / "feeds.npz", image=np.concatenate([images] * 2))
    done = run_optimc(
        "inspect", str(quantized), "--quantization", "--feeds", "feeds.npz", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    inputs = [
        tensor
        for layer in json.loads(done.out)["layers"]
        for tensor in layer["tensors"]
        if tensor["name"] == "image"
    ]
    assert inputs
    assert all(tensor["sqnr_db"] > 30.0 for tensor in inputs)
    assert inputs[0]["observed"] == pytest.approx([images.min(), images.max()], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--quantization",), "the model holds no quantized layers"),
        (("--target", "onnxruntime"), "add --quantization"),
    ],
)
def test_what_cannot_be_shown(
    floats: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run_optimc("inspect", str(floats), *arguments, cwd=tmp_path)
    assert done.code == 2
    assert message in done.err


def test_an_unknown_target(quantized: Path, tmp_path: Path) -> None:
    done = run_optimc("inspect", str(quantized), "--quantization", "--target", "ort", cwd=tmp_path)
    assert done.code == 2
    assert "onnxruntime" in done.err


def test_feeds_that_do_not_fit(quantized: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "feeds.npz", image=np.zeros((2, 3, 5, 5), np.float32))
    done = run_optimc(
        "inspect", str(quantized), "--quantization", "--feeds", "feeds.npz", cwd=tmp_path
    )
    assert done.code == 2
    assert "feeds.npz" in done.err
