"""Planted bugs of `quantize_int8` break the default bound on real models, with no other test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimc.calibration.npz import NpzSource
from optimc.calibration.observe import ActivationCalibration
from optimc.core.errors import OptimcError
from optimc.core.model import OnnxModel
from optimc.passes.fuse import Fuse
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.passes.simplify import Simplify
from optimc.targets.quantization_specs import onnxruntime_cpu
from optimc.testing import as_model, run_pass
from optimc.testing.calibrated import FolderStore, target_spec
from optimc.testing.mutants_quantize import MUTANTS, plant
from optimc.testing.runs import run_model

Case = tuple[OnnxModel, ActivationCalibration, Sequence[Mapping[str, Any]]]


def opened(folder: Path, file: str, transform: list[Any], take: int) -> Any:
    written = {"npz": file, "inputs": {"input": "images"}, "transform": transform, "take": take}
    return NpzSource.model_validate(written).open(folder, 0)


@pytest.fixture(scope="module")
def digits(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The quickstart's model as its recipe prepares it."""
    folder = repository / "recipes" / "quickstart"
    source = as_model(ir.load(folder / "digits.onnx"))
    chain = ["nchw", {"divide": 16}]
    data = opened(folder, "digits_calibration.npz", chain, 200)
    store = FolderStore(tmp_path_factory.mktemp("digits"))
    fused = run_pass(Fuse(), run_pass(Simplify(), source).model).model  # type: ignore[arg-type]
    feeds = [b.feeds for b in opened(folder, "digits_evaluation.npz", chain, 64).batches(64)]
    assert isinstance(fused, OnnxModel)
    return fused, ActivationCalibration(source, data, 0, store), feeds


@pytest.fixture(scope="module")
def resnet20(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    source = as_model(ir.load(shared / "models" / "resnet20.onnx"))
    normal = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    chain = ["nchw", {"divide": 255}, {"normalize": normal}]
    data = opened(shared / "data", "cifar10_calib.npz", chain, 64)
    store = FolderStore(tmp_path_factory.mktemp("resnet20"))
    feeds = [b.feeds for b in opened(shared / "data", "cifar10_eval.npz", chain, 32).batches(32)]
    return source, ActivationCalibration(source, data, 0, store), feeds


def quality(case: Case, mutant: str | None) -> float:
    """The SQNR of the outputs in dB; minus infinity where the result does not run."""
    model, calibration, feeds = case
    with plant(mutant) if mutant else nullcontext():
        try:
            result = run_pass(
                QuantizeInt8(),
                model,
                spec=target_spec(onnxruntime_cpu({"avx512_vnni"})),
                calibration=calibration,
            )
            assert isinstance(result.model, OnnxModel)
            found = run_model(result.model, feeds)
        except (OptimcError, RuntimeError):
            return -np.inf
    expected = run_model(model, feeds)
    one = np.concatenate([run["logits"] for run in expected]).astype(np.float64)
    two = np.concatenate([run["logits"] for run in found])
    return float(10 * np.log10(np.sum(one**2) / np.sum((one - two) ** 2)))


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
@pytest.mark.parametrize("name", ["digits", "resnet20"])
def test_verification_s_bound_catches_the_mutant(
    name: str, mutant: str, request: pytest.FixtureRequest
) -> None:
    case = request.getfixturevalue(name)
    bound = QuantizeInt8().effect.bound
    assert quality(case, None) > bound + 5
    assert quality(case, mutant) < bound


def test_mutants_leave_nothing_behind(digits: Case) -> None:
    before = quality(digits, None)
    for mutant in MUTANTS:
        quality(digits, mutant)
    assert quality(digits, None) == before
