"""The workflow in recipes/ci: valid, and its steps, run in order, fail what regresses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from optimc.pipeline.regression.policy import load_policy
from optimc.testing.timed import chain

RECIPE = """\
model: {onnx: model.onnx}
variants: {fp32: []}
targets: {ort: {runtime: onnxruntime, threads: 1}}
benchmark: {at_most: 1 s}
"""
POLICY = "slowdown: 0.5\nsize_growth: 0.5\nat_most: 10 s\n"


@pytest.fixture
def workflow(repository: Path) -> dict:
    text = (repository / "recipes" / "ci" / "optimc-gate.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def test_the_workflow_follows_the_published_schema(workflow: dict) -> None:
    check_jsonschema = pytest.importorskip("check_jsonschema")
    jsonschema = pytest.importorskip("jsonschema")
    folder = Path(check_jsonschema.__file__).parent
    (file,) = folder.rglob("github-workflows.json")
    schema = json.loads(file.read_text(encoding="utf-8"))
    document = {("on" if key is True else key): value for key, value in workflow.items()}
    jsonschema.Draft7Validator(schema).validate(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate({**document, "jobs": {"gate": {"step": []}}})


def test_the_policy_beside_it_is_one(repository: Path) -> None:
    policy, _ = load_policy(repository / "recipes" / "ci" / "policy.yaml")
    assert policy.slowdown == 0.02
    assert policy.at_most == 120


def test_the_limits_come_from_the_base_and_nothing_may_be_written(workflow: dict) -> None:
    steps = workflow["jobs"]["gate"]["steps"]
    (judging,) = [step["run"] for step in steps if "optimc gate" in step.get("run", "")]
    assert '--policy "baseline/$POLICY"' in judging
    assert workflow["permissions"] == {"contents": "read"}
    base = next(step for step in steps if step.get("with", {}).get("path") == "baseline")
    assert base["with"]["ref"] == "${{ github.event.pull_request.base.sha }}"


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "passes"), [(8, True), (40, False)])
def test_a_pull_request_that_regresses_fails(
    workflow: dict, tmp_path: Path, layers: int, passes: bool
) -> None:
    for side, count in (("baseline", 8), ("candidate", layers)):
        folder = tmp_path / side
        folder.mkdir()
        chain(count).write_onnx(folder / "model.onnx")
        (folder / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "baseline" / "policy.yaml").write_text(POLICY)
    (tmp_path / "candidate" / "policy.yaml").write_text("slowdown: 1000.0\n")
    codes = _run_steps(workflow, tmp_path)
    assert codes[:-1] == [0, 0]
    assert codes[-1] == (0 if passes else 4)
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert f"optimc gate: {'passed' if passes else 'failed'}" in summary
    assert (tmp_path / "out" / "gate.xml").is_file()


def _run_steps(workflow: dict, folder: Path) -> list[int]:
    """The exit codes of the steps that run something, but for the installation, until one fails."""
    job = workflow["jobs"]["gate"]
    commands = folder / "commands"
    commands.mkdir()
    tool = commands / "optimc"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m optimc "$@"\n')
    tool.chmod(0o755)
    environment = {
        **os.environ,
        **job["env"],
        "PATH": f"{commands}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_ACTIONS": "true",
        "OPTIMC_CACHE_DIR": str(folder / "cache"),
    }
    bash = shutil.which("bash")
    assert bash is not None
    codes = []
    for step in job["steps"]:
        if "run" not in step or "pip install" in step["run"]:
            continue
        # As GitHub runs `shell: bash`.
        arguments = [bash, "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(arguments, cwd=folder, env=environment, check=False)
        codes.append(done.returncode)
        if done.returncode:
            break
    return codes
