"""Passes that can do nothing for a target: `optimc check` and the build say the same of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from optimc.cli.check import run_check
from optimc.pipeline.build import Build, BuildOptions
from optimc.pipeline.observer import Silent
from optimc.pipeline.plan import make_plan
from optimc.pipeline.recipe import load_recipe
from optimc.report.verdict import exit_code
from optimc.targets.onnxruntime import OnnxRuntime
from optimc.testing.planted_digits import write_digits

NNCF = "NNCF does not place for the target `onnxruntime`"


@pytest.fixture(name="recipe")
def digits(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The quickstart's classifier, to be quantized for ONNX Runtime."""
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(tmp_path / "cache"))
    return write_digits(
        tmp_path, "{}", quickstart=repository / "recipes" / "quickstart", planted=False
    )


def replaced(recipe: Path, *pairs: tuple[str, str]) -> Path:
    text = recipe.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    recipe.write_text(text)
    return recipe


def checked(recipe: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of `optimc check`, and what it prints as errors."""
    code = run_check(recipe, explain=False, settings=[], untrusted=False)
    return code, capsys.readouterr().err


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Lets these packages look as if they were not installed."""
    find = find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name in missing else find(name, *rest),
    )


def test_check_and_build_say_the_same(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replaced(recipe, ("{quantize_int8: {}}", "quantize_nncf"))
    code, told = checked(recipe, capsys)
    assert code == 3
    assert told.startswith(f"error: int8/ort: {NNCF}")
    assert "quantize_int8 in the variants of this target, or leave `ort` out of `int8`" in told

    given = BuildOptions(out=recipe.parent / "out", command="optimc build", measure=False)
    build = Build(load_recipe(recipe), given, Silent())
    report = build.run()
    result = build.results["int8/ort"]
    assert (result.status, exit_code(report)) == ("failed", 3)
    assert NNCF in str(result.reason)
    assert "or leave `ort` out" in str(result.reason)
    assert not result.outcomes, "found before any pass ran"


def test_an_optional_target_is_skipped(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replaced(
        recipe,
        ("{quantize_int8: {}}", "quantize_nncf"),
        ("threads: 1}", "threads: 1, optional: true}"),
    )
    code, told = checked(recipe, capsys)
    assert code == 0
    assert "of which 1 cannot be built here" in told


@pytest.mark.parametrize(
    ("pass_", "what"),
    [
        ("quantize_dynamic", "`tensorrt` has no INT8 weights without calibration"),
        ("quantize_nncf", "NNCF does not place for the target `tensorrt`"),
    ],
)
def test_no_kit_is_promised_for_what_does_not_fit(recipe: Path, pass_: str, what: str) -> None:
    replaced(
        recipe,
        ("{quantize_int8: {}}", pass_),
        ("ort: {runtime: onnxruntime, threads: 1}", "trt: {runtime: tensorrt}"),
    )
    plan = make_plan(load_recipe(recipe))
    assert not list(plan.root.all_cells())
    # Where TensorRT is missing as well, that is said first.
    error = plan.unavailable["int8/trt"]
    assert what in error.what or "TensorRT is not installed" in error.what


@pytest.mark.parametrize("pass_", ["quantize_int8", "quantize_mixed", "smooth_quant"])
def test_a_target_without_int8_has_nothing_to_place(
    recipe: Path, pass_: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = OnnxRuntime().spec().model_copy(update={"quantization": None})
    monkeypatch.setattr(OnnxRuntime, "spec", lambda self: spec)
    replaced(recipe, ("{quantize_int8: {}}", pass_))
    code, told = checked(recipe, capsys)
    assert code == 3
    assert f"`onnxruntime` runs no INT8: {pass_} has nothing to place" in told
    assert f"take {pass_} out of the variants of this target" in told


@pytest.mark.parametrize(
    ("passes", "missing", "told"),
    [
        ("{simplify: {engine: onnxsim}}", "onnxsim", "pip install 'optimc[onnxsim]'"),
        ("{quantize_int8: {}}, qat", "torch", "pip install 'optimc[torch]'"),
    ],
)
def test_a_missing_extra_is_told_before_any_work(
    recipe: Path, passes: str, missing: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = "  training: {npz: calibration.npz, inputs: {input: images}, transform: *t}"
    replaced(recipe, ("{quantize_int8: {}}", passes), ("metrics:", f"{training}\nmetrics:"))
    without(monkeypatch, missing)
    error = make_plan(load_recipe(recipe)).unavailable["int8/ort"]
    assert f"needs the extra `{missing}`" in error.what
    assert error.fix == told


def test_nncf_itself_may_be_missing(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    replaced(
        recipe,
        ("{quantize_int8: {}}", "quantize_nncf"),
        ("ort: {runtime: onnxruntime", "ov: {runtime: openvino"),
    )
    without(monkeypatch, "nncf")
    error = make_plan(load_recipe(recipe)).unavailable["int8/ov"]
    assert "quantize_nncf needs the extra `openvino`" in error.what
    assert error.fix == "pip install 'optimc[openvino]'"
