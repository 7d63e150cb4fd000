"""The TensorRT code against the real bindings of three versions, without libraries or a GPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimc.targets.tensorrt_build import PlanOptions
from optimc.targets.tensorrt_kit import write_scripts
from optimc.testing.tensorrt_bindings import WHEELS, Wheel, compile_stubs, fetch

pytestmark = pytest.mark.slow

Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", params=WHEELS, ids=lambda wheel: wheel.version)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a scenario against one version."""
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    if sys.version_info[:2] != (3, 11) or sys.platform != "linux":
        pytest.skip("the pinned bindings are for CPython 3.11 on Linux")
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler for the stub libraries")
    wheel: Wheel = request.param
    folder = tmp_path_factory.mktemp("tensorrt")
    try:
        unpacked = fetch(wheel, folder)
    except OSError as error:
        pytest.skip(f"the bindings cannot be had: {error}")
    compile_stubs(folder, wheel.major)

    def run(scenario: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "optimc.testing.tensorrt_contract"]
        arguments = [str(unpacked), str(folder), wheel.major, scenario]
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, timeout=120
        )

    return run


def passed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_every_use_of_the_builder_is_in_this_version(bindings: Run) -> None:
    result = passed(bindings("build"))
    assert result["engine"] == "plan"
    assert result["steps"] == ["tactics 0/2", "tactics 1/2", "tactics 2/2"]
    assert result["device"] == {
        "gpu": "GPU on paper",
        "compute_capability": "9.0",
        "driver": "13000",
    }
    wanted = {
        "Builder.create_network",
        "BuilderFlag.REFIT",
        "BuilderFlag.SPARSE_WEIGHTS",
        "BuilderFlag.STRIP_PLAN",
        "BuilderFlag.TF32",
        "BuilderFlag.VERSION_COMPATIBLE",
        "HardwareCompatibilityLevel.AMPERE_PLUS",
        "IBuilderConfig.set_timing_cache",
        "IOptimizationProfile.set_shape",
        "IPluginRegistry.load_library",
        "IProgressMonitor.step_complete",
        "ITimingCache.serialize",
        "MemoryPoolType.WORKSPACE",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParser.parse_from_file",
    }
    assert wanted <= set(result["used"])


def test_a_refusal_of_the_parser_names_the_node_and_what_helps(bindings: Run) -> None:
    message = passed(bindings("refuse"))["error"]
    assert "/head/unique (Unique): no importer" in message
    assert "`plugins`" in message


def test_a_session_moves_the_right_bytes_and_leaks_none(bindings: Run) -> None:
    result = passed(bindings("session"))
    assert result["y2"]
    assert result["y5"]
    assert result["z2"], "the output whose size is known after the run"
    assert result["z5"]
    assert result["times"] == [0.25, 0.25, 0.25]
    assert result["layers"] == ["copy"]
    assert result["leaked"] == 0


def test_a_kits_own_script_uses_what_is_there_and_moves_the_right_bytes(bindings: Run) -> None:
    result = passed(bindings("script"))
    assert result["engine"] == "serialized"
    assert result["run"]


def test_a_kits_own_script_ends_at_the_call_that_needs_a_gpu(bindings: Run, tmp_path: Path) -> None:
    options = PlanOptions(profiles=({"image": ((1, 3), (1, 3), (4, 3))},))
    (tmp_path / "kit.json").write_text("{}")
    write_scripts(tmp_path, options)
    done = bindings(str(tmp_path / "build_engine.py"))
    assert done.returncode == 3
    assert "tensorrt.Builder refused" in done.stderr
    assert "needs an NVIDIA GPU" in done.stderr


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("missing_name", "has no Builder.create_builder_configuration"),
        ("wrong_keyword", "has no argument size"),
    ],
)
def test_planted_names_are_caught(bindings: Run, scenario: str, message: str) -> None:
    done = bindings(scenario)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_flag_that_11_removed_is_caught(bindings: Run) -> None:
    done = bindings("removed_flag")
    if "has no BuilderFlag.FP16" not in done.stderr:
        assert passed(done)["version"].startswith("10."), done.stderr
