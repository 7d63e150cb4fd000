"""The TensorRT code and a kit of ResNet-56 against the real bindings of three versions, without
libraries or a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimc.core.errors import ExitCode
from optimc.core.model import OnnxModel, load_model
from optimc.targets.tensorrt import TensorRT
from optimc.targets.tensorrt_build import PlanOptions
from optimc.targets.tensorrt_kit import write_scripts
from optimc.testing.commands import run_optimc
from optimc.testing.tensorrt_bindings import NVML, WHEELS, Wheel, compile_stubs, fetch
from optimc.testing.tensorrt_command import read_trtexec

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder with the module `pynvml`; None where no package index has it."""
    try:
        return fetch(NVML, tmp_path_factory.mktemp("nvml"))
    except OSError:
        return None


@pytest.fixture(scope="module", params=WHEELS, ids=lambda wheel: wheel.version)
def bindings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, nvml: Path | None
) -> Run:
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

    def run(scenario: str, *fault: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "optimc.testing.tensorrt_contract"]
        arguments = [str(unpacked), str(folder), wheel.major, scenario, *fault]
        folders = [str(nvml) if nvml else None, os.environ.get("PYTHONPATH")]
        path = os.pathsep.join(filter(None, folders))
        return subprocess.run(
            [*command, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
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
    assert result["log"] == ["WARNING: slow tactic"]
    assert result["told"] == TOLD
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


TOLD = {
    "strongly_typed": True,
    "set": [
        "REFIT",
        "SPARSE_WEIGHTS",
        "STRIP_PLAN",
        "TF32",
        "VERSION_COMPATIBLE",
        "WEIGHT_STREAMING",
    ],
    "cleared": ["TF32"],
    "pools": [["WORKSPACE", 512_000_000], ["TACTIC_SHARED_MEMORY", 96_000]],
    "profiles": [["x", [1, 4], [1, 4], [2, 4]], ["x", [3, 4], [4, 4], [8, 4]]],
    "added": 2,
    "level": 4,
    "verbosity": "DETAILED",
    "hardware": "AMPERE_PLUS",
    "plugins": ["plugins.so"],
}
"""What `every_option` of the contract comes to: TF32 is cleared first, then set as asked."""


def test_every_level_of_compatibility_is_in_this_version(bindings: Run) -> None:
    result = passed(bindings("levels"))
    assert result["levels"] == ["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"]
    assert result["set"] == [], "no flag is set that nobody asked for"


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
    assert result["profiles"][:4] == [0, 1, 0, 1], "two bounds of one session, in turns"
    assert result["layers"] == ["copy"]
    assert result["timed"] == [["copy", 0.75, ["copy"]]], "a layer that ran twice in each run"
    assert result["closed"] == "the session is closed"
    assert result["leaked"] == 0
    assert result["weights"] == "model.onnx", "a stripped plan gets its weights"
    assert result["budget"] == 2_000_000
    assert result["host_code"] is True


def test_clocks_are_those_of_the_gpu_on_its_bus(bindings: Run) -> None:
    clocks = passed(bindings("session"))
    if not clocks["clocks_of_a_gpu"]:
        pytest.skip("nvidia-ml-py cannot be had")
    assert clocks["clocks"].startswith("NVML does not say: ")
    assert clocks["clocks_of_a_gpu"] == {"sm": 1980, "memory": 2619, "bus": BUS, "shut": 1}


def test_shapes_that_the_cpu_reads_and_writes_stay_on_it(bindings: Run) -> None:
    result = passed(bindings("host_tensors"))
    assert result["out"] == [3, 4]
    assert not result["copied"]


def test_threads_are_turned_to_the_sessions_gpu(bindings: Run) -> None:
    assert passed(bindings("threads"))["turned"] == [1, 2]


def test_what_a_session_is_refused_is_said(bindings: Run) -> None:
    result = passed(bindings("refusals"))
    assert result["leaked"] == 0
    for name, words in {
        "IPluginRegistry.load_library": "took no plugins from own.so",
        "Runtime.deserialize_cuda_engine": "set `version_compatible`",
        "ICudaEngine.create_execution_context": "made no context",
        "IExecutionContext.set_optimization_profile_async": "its optimization profile 0",
        "IExecutionContext.set_input_shape": "does not take [2, 4] for `x`",
        "IExecutionContext.infer_shapes": "does not know the shapes of x",
        "IExecutionContext.set_tensor_address": "did not take the memory of `x`",
        "IExecutionContext.set_output_allocator": "did not take the allocator of `z`",
        "IExecutionContext.execute_async_v3": "failed to run the engine",
        "profile": "no optimization profile of the engine holds these shapes: x [9, 4]",
        "budget": "does not stream weights in 0 MB; no budget of 0",
        "cudaErrorMemoryAllocation": "the GPU's memory does not suffice: cudaMalloc",
        "cudaErrorInvalidValue": "cudaMalloc failed: this is cudaErrorInvalidValue",
    }.items():
        assert words in result["said"][name]


def test_what_a_build_is_refused_is_said_with_what_helps(bindings: Run) -> None:
    result = passed(bindings("build_refusals"))
    assert "cache" not in result["said"], "a timing cache of another GPU is no error"
    assert result["caches"] == 3, "one of each build that came so far, and a new one for the cache"
    for name, words in {
        "plugin": "took no plugins from own.so",
        "parser": "parser refused the model",
        "profile": "refused the optimization profile",
        "builder": "run `optimc check`",
        "types": "`float16: {keep_float: ['/n']}`",
        "shapes": "put `simplify` first, which computes shapes ahead",
        "quantized": "leave the placing to `quantize_int8`",
        "unnamed": "the node number 7 (Add)",
    }.items():
        assert words in result["said"][name]


def test_weights_that_do_not_belong_to_a_stripped_plan_are_refused(bindings: Run) -> None:
    wrong_file, lacking = passed(bindings("lacking_weights"))["said"]
    assert "did not take the weights of model.onnx at the node /conv1" in wrong_file
    assert "build the engine again" in wrong_file
    assert "did not refit the engine; without weights: conv1.weight" in lacking


def test_a_kits_own_script_uses_what_is_there_and_moves_the_right_bytes(bindings: Run) -> None:
    result = passed(bindings("script"))
    assert result["engine"] == "serialized"
    assert result["told"] == TOLD, "the script's engine is the one that optimc builds"
    loaded = {"weights": 1, "budget": 64_000_000, "host_code": True, "libraries": 2}
    assert result["loaded"] == loaded
    assert result["run"]


def test_a_kits_own_script_ends_at_the_call_that_needs_a_gpu(bindings: Run, tmp_path: Path) -> None:
    options = PlanOptions(profiles=({"image": ((1, 3), (1, 3), (4, 3))},))
    (tmp_path / "kit.json").write_text("{}")
    write_scripts(tmp_path, options, "10.12")
    done = bindings(str(tmp_path / "build_engine.py"))
    assert done.returncode == 3
    assert "tensorrt.Builder refused" in done.stderr
    assert "needs an NVIDIA GPU" in done.stderr


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("missing_name", "has no Builder.create_builder_configuration"),
        ("wrong_hook", "IProgressMonitor.step_done('phase_name', 'step') is not"),
        ("wrong_keyword", "has no argument size"),
        ("wrong_property", "has no IBuilderConfig.max_workspace_size that can be set"),
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


FAULTS = [
    ("build", "tensorrt_build", ".builder_optimization_level =", ".optimization_level ="),
    ("build", "tensorrt_build", "profile.set_shape(", "profile.set_dims("),
    ("build", "tensorrt_build", "MemoryPoolType.WORKSPACE", "MemoryPoolType.SCRATCH"),
    ("build", "tensorrt_build", "def phase_start(self, phase_name", "def phase_start(self, name"),
    ("build", "tensorrt_build", "set_timing_cache(cache, False)", "set_timing_cache(cache)"),
    ("build", "tensorrt", '"SPARSE_WEIGHTS"', '"SPARSITY"'),
    ("refuse", "tensorrt_build", "error.node_operator()", "error.operator()"),
    ("session", "tensorrt_session", "execute_async_v3", "execute_async_v2"),
    ("session", "tensorrt_session", "def notify_shape", "def on_shape"),
    ("session", "tensorrt_session", "LayerInformationFormat.JSON", "LayerInformationFormat.YAML"),
    ("session", "tensorrt_session", "TensorLocation.HOST", "TensorLocation.CPU"),
    ("session", "tensorrt_profiler", "context.profiler =", "context.layer_profiler ="),
    ("session", "tensorrt_profiler", "def report_layer_time", "def report_time"),
    ("session", "tensorrt_refit", "refit_cuda_engine()", "refit_engine()"),
    ("session", "tensorrt_cuda", '"cudaMemcpyAsync"', '"cudaMemcpyAsynchronous"'),
    ("script", "tensorrt_kit_script", "get_max_output_size", "get_output_size"),
]


@pytest.mark.parametrize(("scenario", "module", "old", "new"), FAULTS)
def test_faults_planted_in_our_own_code_are_caught(
    bindings: Run, scenario: str, module: str, old: str, new: str
) -> None:
    done = bindings(scenario, module, old, new)
    assert done.returncode == 1, done.stdout
    assert "has no" in done.stderr or "is not" in done.stderr or "needs" in done.stderr
    assert "does not hold" not in done.stderr


BUS = "0000:01:00.0"
RESNET = """
model: {{onnx: {shared}/models/resnet56.onnx}}
dims: {{batch: {{min: 1, typical: 1, max: 64}}}}
data:
  calibration:
    npz: {shared}/data/cifar10_calib.npz
    inputs: {{input: images}}
    take: 100
    transform: &images
      - nchw
      - {{divide: 255}}
      - {{normalize: {{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}}}
  evaluation:
    npz: {shared}/data/cifar10_eval.npz
    inputs: {{input: images}}
    labels: labels
    take: 200
    transform: *images
metrics: {{top1: {{}}}}
variants: {{int8: {{passes: [simplify, fuse, quantize_int8]}}}}
targets:
  ort: {{runtime: onnxruntime, threads: 1}}
  trt: {{runtime: tensorrt, optional: true}}
benchmark: {{at_most: 2 s}}
gate: {{ship: best, drop: {{top1: 0.2}}}}
"""


@pytest.fixture(scope="module")
def resnet(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a build of ResNet-56 that leaves a kit."""
    folder = tmp_path_factory.mktemp("resnet56")
    (folder / "recipe.yaml").write_text(RESNET.format(shared=shared.resolve()))
    done = run_optimc("build", "recipe.yaml", "-o", "out", "--verify", "fast", cwd=folder)
    assert done.code == ExitCode.OK, done.err
    return folder / "out"


def test_the_gate_judges_what_was_built_beside_a_deferred_kit(resnet: Path) -> None:
    report = json.loads((resnet / "report.json").read_text())
    assert {c["target"]: c["status"] for c in report["results"]} == {
        "ort": "built",
        "trt": "deferred",
    }
    assert report["gate"]["verdict"] == "passed"
    assert report["best"] == {"variant": "int8", "target": "ort"}


def test_the_kit_of_resnet56_is_whole(resnet: Path) -> None:
    kit = resnet / "artifacts/int8/trt"
    placed = load_model(kit / "model")
    assert isinstance(placed, OnnxModel)
    assert TensorRT().lint(placed) == ()
    assert sum(node.op_type == "QuantizeLinear" for node in placed.ir.graph) > 50
    options = dict(read_trtexec((kit / "trtexec.sh").read_text()))
    assert options["--maxShapes"] == "input:64x3x32x32"
    table = json.loads((kit / "calibration/table.json").read_text())
    assert table == json.loads((resnet / "calibration/table.json").read_text())


def test_the_own_script_of_resnet56s_kit_ends_at_the_call_that_needs_a_gpu(
    resnet: Path, bindings: Run, tmp_path: Path
) -> None:
    kit = shutil.copytree(resnet / "artifacts/int8/trt", tmp_path / "kit")
    done = bindings(str(kit / "build_engine.py"))
    assert done.returncode == 3
    assert "tensorrt.Builder refused" in done.stderr
    assert "needs an NVIDIA GPU" in done.stderr
    assert not (kit / "model.plan").exists()


def test_finishing_it_without_a_gpu_says_what_is_missing(resnet: Path, tmp_path: Path) -> None:
    done = run_optimc("finish", resnet / "artifacts/int8/trt", cwd=tmp_path)
    assert done.code == ExitCode.CELL
    assert "TensorRT is not installed (extra `tensorrt`)" in " ".join(done.err.split())
    assert "pip install 'optimc[tensorrt]'" in " ".join(done.err.split())
    assert not done.traceback
