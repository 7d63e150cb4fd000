"""Every pass, and what the whole pipeline delivers, on the ONNX package's own models.

Each is built in all variants and held against its source on the package's own inputs. Roll-backs
and failures must have a cause that is listed here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
import pytest

from optimc.core.model import OnnxModel
from optimc.testing import as_model, run_model
from optimc.testing.backend_models import at_opset, node_cases, small_models
from optimc.testing.fuzzing import VARIANTS, Outcome, judge_model, recipe_of

PART = 8
"""Parts of the node tests, so that a failure names a few of them."""


def _runs(model: OnnxModel, feeds: Mapping[str, Any]) -> bool:
    try:
        run_model(model, [feeds])
    except Exception:  # noqa: BLE001 (ONNX Runtime has no kernel, or no error class of its own)
        return False
    return True


def _judged(proto: onnx.ModelProto, feeds: Iterable[Mapping[str, Any]]) -> Outcome | None:
    """None where ONNX Runtime does not run the model."""
    model = as_model(proto)
    inputs = {spec.name for spec in model.signature.inputs}
    given = [{n: a for n, a in feed.items() if n in inputs} for feed in feeds]
    if not given or not _runs(model, given[0]):
        return None
    recipe = recipe_of([n for n in VARIANTS if n != "plain"], "onnxruntime", model)
    return judge_model(0, model, recipe, given)


def _is_wrong(find: str) -> bool:
    """What must not be: a wrong result, a bug. A cell that failed with its cause delivers nothing:
    on random integers, which the package's cases do not expect, some sources do not run at all."""
    return " failed: " not in find and "rolled back" not in find


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=pytest.mark.long if part else pytest.mark.slow)
        for part in range(PART)
    ],
)
def test_node_cases(part: int) -> None:
    wrong: list[tuple[str, str]] = []
    rolled_back: list[tuple[str, str]] = []
    built = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = list(node_cases())[part::PART]
    for name, proto, feeds in cases:
        outcome = _judged(proto, [feeds])
        if outcome is None:
            continue
        built += outcome.verdicts.get("cell built", 0)
        wrong += [(name, find) for find in outcome.finds if _is_wrong(find)]
        rolled_back += [(name, find) for find in outcome.finds if "rolled back" in find]
    assert not wrong
    assert not rolled_back
    assert built > 100


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_simple_and_converted_models() -> None:
    wrong, built = [], 0
    for model in small_models():
        if "PReLU" in model.name and "multiparam" in model.name:
            continue  # onnx's converter breaks them
        refused, proto = None, None
        try:
            proto = at_opset(model.path)
        except Exception as error:  # noqa: BLE001 (the converter does not know every old operator)
            refused = error
        if proto is None:
            assert refused is not None
            continue
        outcome = _judged(proto, model.feeds())
        if outcome is not None:
            built += outcome.verdicts.get("cell built", 0)
            wrong += [(model.name, find) for find in outcome.finds if _is_wrong(find)]
    assert not wrong
    assert built > 50
