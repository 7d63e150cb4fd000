from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from optimc.core.errors import CellError, ExitCode, UnavailableError
from optimc.core.targets import BuildContext
from optimc.targets.tensorrt import TensorRT
from optimc.targets.tensorrt_kit_script import sqnr_db
from optimc.testing.graphs import GraphBuilder, nothing_to_do
from optimc.testing.runs import as_model


def test_says_why_it_cannot_build_and_what_to_do(tmp_path: Path) -> None:
    why = TensorRT.unavailable()
    assert why is not None
    assert "not installed" in why.reason
    assert "optional: true" in why.remedy
    with pytest.raises(UnavailableError) as caught:
        TensorRT().build(nothing_to_do(), tmp_path, BuildContext(workspace=tmp_path))
    assert caught.value.exit_code == ExitCode.CELL
    assert caught.value.fix == why.remedy
    assert list(tmp_path.iterdir()) == []


def test_spec_is_its_own() -> None:
    spec = TensorRT().spec()
    assert spec.quantization is not None
    assert spec.quantization.activation_dtype == "int8"
    assert spec.quantization.activation_symmetric
    assert type(spec).model_validate_json(spec.model_dump_json()).digest == spec.digest


def test_types_that_cannot_be_handed_over_are_found_before_a_build() -> None:
    b = GraphBuilder()
    b.output(b.cast(b.input("x", (4,), "float64"), "float32"), (4,))
    model = b.model()
    found = [finding for finding in TensorRT().lint(model) if finding.rule == "exchange"]
    assert [(one.node, one.operator, one.severity) for one in found] == [("x", "input", "error")]
    assert found[0].fix


def test_a_release_is_what_the_model_is_checked_for() -> None:
    b = GraphBuilder(opset=23)
    b.node("Relu", b.input("x", (1, 4)), to="y")
    b.output("y", (1, 4))
    model = b.model()
    assert {f.rule for f in TensorRT().lint(model)} == {"opset"}, "10.12 reads up to 22"
    assert TensorRT(release="11.4").lint(model) == ()
    for wrong in ("10.11", "8.6", "eleven"):
        with pytest.raises(ValidationError):
            TensorRT(release=wrong)


def test_an_older_release_than_was_asked_for_does_not_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(TensorRT, "unavailable", classmethod(lambda cls: None))
    monkeypatch.setattr("optimc.targets.tensorrt._release", lambda: (10, 16))
    with pytest.raises(CellError, match=r"TensorRT 10\.16 is installed") as caught:
        TensorRT(release="11.4").build(nothing_to_do(), tmp_path, BuildContext(workspace=tmp_path))
    assert caught.value.fix == "pip install 'tensorrt>=11.4'"


def test_operators_of_plugins_are_left_to_their_libraries() -> None:
    b = GraphBuilder()
    x = b.node("Unique", b.input("x", (4,)))
    b.node("Mine", x, to="y", domain="own")
    b.output("y", ("found",))
    model = as_model(b.proto())
    assert {f.rule for f in TensorRT().lint(model)} >= {"domain", "operator"}
    assert not [f for f in TensorRT(plugins=[Path("own.so")]).lint(model) if f.severity == "error"]


def test_a_manifest_says_what_has_to_stand_before_the_plan_is_read() -> None:
    assert "load_library('own.so')" in TensorRT(plugins=[Path("own.so")])._load("{}")
    assert "engine_host_code_allowed = True" in TensorRT(version_compatible=True)._load("{}")
    assert "engine_host_code_allowed" not in TensorRT()._load("{}")


def test_a_stripped_plans_manifest_says_how_to_refit() -> None:
    assert "refit_from_file('model.onnx')" in TensorRT(strip_plan=True)._load("{}")
    assert "refit" not in TensorRT()._load("{}")


@pytest.mark.parametrize(
    ("expected", "found", "least"),
    [
        ([1.0, 2.0], [1.0, 2.0], np.inf),
        ([1.0, 0.0], [1.1, 0.0], 20.0),
        ([1.0, np.nan], [1.0, np.nan], np.inf),
        ([1.0, -np.inf], [1.0, -np.inf], np.inf),
        ([1.0, 2.0], [1.0, np.nan], -np.inf),
        ([1.0, np.inf], [1.0, -np.inf], -np.inf),
    ],
)
def test_the_kits_script_takes_nan_and_infinity_for_what_they_are(
    expected: list[float], found: list[float], least: float
) -> None:
    pair = np.array(expected, np.float32), np.array(found, np.float32)
    assert sqnr_db(*pair) == pytest.approx(least, abs=1e-4)
