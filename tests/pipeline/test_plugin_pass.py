"""A third party's pass by entry point, planted to be wrong: rolled back, reported, exit 3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimc.testing.commands import Finished, run_optimc
from optimc.testing.plugins import WRONG_PASS, make_plugin

RECIPE = """
model: {{onnx: {model}}}
inputs: {{input: {{range: [0, 1]}}}}
variants: {{scaled: [scale_outputs{required}]}}
targets: {{ort: {{runtime: onnxruntime}}}}
"""


@pytest.fixture
def build(tmp_path: Path, repository: Path):
    """Builds the quickstart's model with the wrong pass."""
    plugin = make_plugin(
        tmp_path / "plugins",
        "wrong_pass",
        WRONG_PASS,
        {"optimc.passes": {"scale_outputs": "wrong_pass:ScaleOutputs"}},
    )
    model = repository / "recipes" / "quickstart" / "digits.onnx"

    def run(*options: str, required: str = "") -> Finished:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(model=model, required=required))
        return run_optimc(
            "build",
            recipe,
            "-o",
            tmp_path / "out",
            "--no-measure",
            *options,
            cwd=tmp_path,
            environment={"PYTHONPATH": str(plugin)},
        )

    return run


def _the_pass(folder: Path) -> dict:
    report = json.loads((folder / "out" / "report.json").read_text())
    return report["results"][0]["passes"][0]


def test_it_is_rolled_back_and_reported(build, tmp_path: Path) -> None:
    done = build()
    assert done.code == 0, done.err
    record = _the_pass(tmp_path)
    assert record["verdict"] == "rolled_back"
    assert record["modified"] is False
    assert "of their scale" in record["reason"]
    assert "rolled back" in done.err


def test_the_engine_is_that_of_the_model_before(build, tmp_path: Path) -> None:
    build()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["results"][0]["engine"]["verdict"] == "equivalent"


def test_with_fail_on_rollback_the_cell_fails(build, tmp_path: Path) -> None:
    done = build("--fail-on-rollback")
    assert done.code == 3
    assert _the_pass(tmp_path)["verdict"] == "failed"
    assert "scale_outputs was rolled back" in done.err
    assert not (tmp_path / "out" / "artifacts" / "scaled").exists()


def test_a_required_pass_fails_its_cell(build) -> None:
    assert build(required=": {required: true}").code == 3


def test_it_is_listed_with_its_manual_page(build, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(tmp_path / "plugins")}
    listed = run_optimc("passes", cwd=tmp_path, environment=environment)
    assert "scale_outputs" in listed.out
    page = run_optimc("passes", "scale_outputs", cwd=tmp_path, environment=environment)
    assert "Scales outputs, wrongly." in page.out
