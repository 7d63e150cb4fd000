"""`simplify` on the ONNX package's own models: no wrong result, and a cause for what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from optimc.core.errors import InputError
from optimc.core.model import OnnxModel
from optimc.frontends.onnx_service import OnnxService
from optimc.passes.simplify import Simplify
from optimc.pipeline.compare import compare_outputs
from optimc.testing import as_model, run_model, run_pass, seeded_feeds
from optimc.testing.backend_models import (
    BackendModel,
    at_opset,
    light_models,
    node_cases,
    small_models,
    with_seeded_weights,
)

Feeds = Sequence[Mapping[str, NDArray[Any]]]

REFUSED = {
    "gradient": "Gradient(-1) is not a registered function/op",
    "strnorm": "input `x` holds strings",
}
"""Why the front end refuses models of the group `simple`, by a part of their names."""

TOO_OLD = "ONNX Runtime begins at 7"
"""What it says of the groups of opset 6, where ONNX Runtime has no kernels for their operators."""


def worst_error(model: OnnxModel, feeds: Feeds) -> float:
    """The greatest relative error of the simplified model; infinite where it is plainly wrong."""
    result = run_pass(Simplify(), model)
    after = result.model
    assert isinstance(after, OnnxModel)
    if is_valid(model):
        assert is_valid(after)
    assert after.signature == model.signature
    assert result.modified == (after.digest != model.digest)
    assert not run_pass(Simplify(), after).rewrites
    names = [output.name for output in model.signature.outputs]
    # Some of the data sets hold doubles near the end of their range.
    with np.errstate(over="ignore"):
        difference = compare_outputs(run_model(model, feeds), run_model(after, feeds), names)
    return float("inf") if difference.broken else difference.max_rel


def is_valid(model: OnnxModel) -> bool:
    """By the checker with strict inference, which refuses a few of its own package's cases."""
    try:
        onnx.checker.check_model(onnx_ir.to_proto(model.ir), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def refusal(model: BackendModel) -> str | None:
    try:
        OnnxService().examine({}, str(model.path), {})
    except InputError as error:
        return str(error)
    return None


def expected_refusal(name: str, refused: str) -> bool:
    group, case = name.split("/")
    if group == "simple":
        return any(part in case and reason in refused for part, reason in REFUSED.items())
    return TOO_OLD in refused


@pytest.mark.parametrize("model", small_models(), ids=lambda model: model.name)
def test_small_models(model: BackendModel) -> None:
    """Where ONNX Runtime has no kernels for opset 6, the converted model is taken all the same:
    the front end refuses it, because nobody can tell that the conversion is right.
    """
    refused = refusal(model)
    if refused is not None:
        assert expected_refusal(model.name, refused), refused
        if TOO_OLD not in refused:
            return
    converted = as_model(at_opset(model.path))
    feeds = [
        {name: array for name, array in feed.items() if name in inputs_of(converted)}
        for feed in model.feeds()
    ]
    if "PReLU" in model.name and "multiparam" in model.name:
        return  # onnx's converter breaks them: what the front end's refusal is good for.
    assert worst_error(converted, feeds) <= 1e-5


def runs(model: OnnxModel, feeds: Mapping[str, NDArray[Any]]) -> bool:
    """Whether ONNX Runtime has kernels for the model."""
    try:
        run_model(model, [feeds])
    except Exception:  # noqa: BLE001 (it has no error class of its own for this)
        return False
    return True


def inputs_of(model: OnnxModel) -> set[str]:
    return {spec.name for spec in model.signature.inputs}


@pytest.mark.slow
@pytest.mark.parametrize("model", light_models(), ids=lambda model: model.name)
def test_light_models(model: BackendModel) -> None:
    """With seeded weights, on seeded inputs; the bound is the pass's own."""
    seeded = as_model(with_seeded_weights(at_opset(model.path)))
    assert worst_error(seeded, seeded_feeds(seeded)) <= 1e-5


@pytest.mark.slow
def test_single_operators_with_open_and_with_constant_inputs() -> None:
    """About 1,480 cases that ONNX Runtime runs: as they are, and with all inputs as constants, so
    that everything which may be folded is folded.
    """
    wrong, compared = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = list(node_cases())
    for name, proto, feeds in cases:
        open_model = as_model(onnx.ModelProto.FromString(proto.SerializeToString()))
        if not runs(open_model, feeds):
            continue
        for value in list(proto.graph.input):
            proto.graph.initializer.append(numpy_helper.from_array(feeds[value.name], value.name))
        del proto.graph.input[:]
        compared += 1
        for kind, model, given in (("open", open_model, feeds), ("constant", as_model(proto), {})):
            error = worst_error(model, [given])
            if error > 1e-5:
                wrong.append((name, kind, error))
    assert compared > 1400
    assert not wrong
