"""The commands beside `build`: what they answer, with which code, and that help teaches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimc.testing.commands import run_optimc
from optimc.testing.graphs import convolutions

COMMANDS = (
    "build",
    "init",
    "check",
    "inspect",
    "diff",
    "bisect",
    "reduce",
    "passes",
    "metrics",
    "targets",
    "schema",
    "doctor",
    "cache",
)


@pytest.fixture(scope="module")
def model(repository: Path) -> Path:
    return repository / "recipes" / "quickstart" / "digits.onnx"


def test_help_names_every_command_and_the_exit_codes(tmp_path: Path) -> None:
    done = run_optimc("--help", cwd=tmp_path)
    assert done.code == 0
    for command in COMMANDS:
        assert f" {command} " in done.out
    assert "130 interrupted" in " ".join(done.out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_its_own(command: str, tmp_path: Path) -> None:
    done = run_optimc(command, "--help", cwd=tmp_path)
    assert done.code == 0
    assert f"optimc {command}" in done.out


def test_version(tmp_path: Path) -> None:
    from optimc import __version__

    done = run_optimc("--version", cwd=tmp_path)
    assert (done.code, done.out.strip()) == (0, f"optimc {__version__}")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["biuld"], "build"),
        (["build"], "RECIPE"),
        (["build", "recipe.yaml", "--varient", "x"], "--variant"),
        (["build", "recipe.yaml", "--verify", "some"], "'fast', 'full', 'off'"),
        (["passes", "simplfy"], "did you mean `simplify`?"),
    ],
)
def test_a_wrong_command_line_is_exit_2_with_a_hint(arguments, hint, tmp_path: Path) -> None:
    done = run_optimc(*arguments, cwd=tmp_path)
    assert done.code == 2
    assert hint in done.err
    assert not done.traceback


def test_shell_completion_can_be_shown(tmp_path: Path) -> None:
    done = run_optimc("--show-completion", "bash", cwd=tmp_path)
    assert done.code == 0
    assert "complete" in done.out


def test_check_is_quiet_on_a_good_recipe_and_explains_the_plan(repository: Path) -> None:
    done = run_optimc("check", "recipes/quickstart.yaml", "--explain", cwd=repository)
    assert done.code == 0
    assert "simplify" in done.out
    assert "shared by 2 cells" in done.out
    assert "-> int8/ort (onnxruntime)" in done.out


@pytest.mark.slow
def test_init_writes_a_recipe_that_builds_as_it_is(tmp_path: Path) -> None:
    convolutions().write_onnx(tmp_path / "model.onnx")
    first = run_optimc("init", "model.onnx", cwd=tmp_path)
    assert first.code == 0
    assert "#" in (tmp_path / "recipe.yaml").read_text()
    built = run_optimc(
        *["build", "recipe.yaml", "-o", "out", "--set"], "benchmark.at_most=0.1 s", cwd=tmp_path
    )
    assert built.code == 0, built.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any("random data" in warning for warning in report["warnings"])
    assert {cell["status"] for cell in report["results"]} == {"built"}


def test_init_does_not_overwrite(model: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    done = run_optimc("init", model, cwd=tmp_path)
    assert done.code == 2
    assert "--force" in done.err
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_inspect_says_what_a_model_is_made_of(model: Path, tmp_path: Path) -> None:
    done = run_optimc("inspect", model, cwd=tmp_path)
    assert done.code == 0
    assert "input: float32[batch, 1, 8, 8]" in done.out
    assert "logits: float32[batch, 10]" in done.out
    found = json.loads(run_optimc("inspect", model, "--json", cwd=tmp_path).out)
    assert found["operators"]["Conv"] == 6
    assert found["stats"]["parameters"] > 100_000


def test_targets_and_doctor_say_what_would_fix_what_is_missing(tmp_path: Path) -> None:
    targets = run_optimc("targets", cwd=tmp_path)
    assert targets.code == 0
    assert "onnxruntime  available" in targets.out
    assert "measured where it is `auto`: threads, graph_optimization, fusions" in targets.out
    tensorrt = targets.out[targets.out.index("tensorrt") :]
    assert "not here" in tensorrt
    assert "fix:" in tensorrt
    doctor = run_optimc("doctor", cwd=tmp_path)
    assert doctor.code == 0
    assert "onnxruntime" in doctor.out
    assert "cache" in doctor.out


@pytest.mark.parametrize("name", ["simplify", "quantize_int8"])
def test_a_manual_page_has_its_sections_and_options(name: str, tmp_path: Path) -> None:
    done = run_optimc("passes", name, cwd=tmp_path)
    assert done.code == 0
    for section in ("Rewrites", "Refuses", "Accuracy"):
        assert section in done.out


def test_schemas_are_json(tmp_path: Path) -> None:
    recipe = json.loads(run_optimc("schema", "recipe", cwd=tmp_path).out)
    assert "variants" in recipe["properties"]
    report = json.loads(run_optimc("schema", "report", cwd=tmp_path).out)
    assert "results" in report["properties"]


def test_the_cache_can_be_looked_at_and_cleared(tmp_path: Path) -> None:
    environment = {"OPTIMC_CACHE_DIR": str(tmp_path / "cache")}
    info = run_optimc("cache", "info", cwd=tmp_path, environment=environment)
    assert info.code == 0
    assert str(tmp_path / "cache") in info.out
    for command in (["verify"], ["prune"], ["clear"]):
        assert run_optimc("cache", *command, cwd=tmp_path, environment=environment).code == 0
