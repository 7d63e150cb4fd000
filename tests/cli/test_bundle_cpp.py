"""The C++ file of a bundle: compiled, linked to the runtime's library, and run on the bundle."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from optimc.testing.commands import run_optimc

HEADER = "onnxruntime_cxx_api.h"
TYPES = {
    "float": TensorProto.FLOAT,
    "double": TensorProto.DOUBLE,
    "half": TensorProto.FLOAT16,
    "flag": TensorProto.BOOL,
    "byte": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
    "int32": TensorProto.INT32,
    "uint32": TensorProto.UINT32,
    "ids": TensorProto.INT64,
    "uint64": TensorProto.UINT64,
}

Runner = Callable[[Path], str]


@pytest.fixture(scope="module")
def compiled_run(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Compiles and runs a bundle's load.cpp as its first lines say; what it printed."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine: load.cpp is not compiled")
    package = Path(onnxruntime.__file__).parent / "capi"
    found = sorted(package.glob("libonnxruntime.so*"))
    if not found:
        pytest.skip(f"no libonnxruntime.so in {package}: load.cpp is not linked")
    library = tmp_path_factory.mktemp("lib")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (library / name).symlink_to(found[0])

    def run(folder: Path) -> str:
        program = library / "load"
        flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{include_folder()}"]
        command = [compiler, *flags, "load.cpp", f"-L{library}", "-lonnxruntime", "-o", program]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
        done = subprocess.run(
            [program], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def include_folder() -> Path:
    """The real headers where they are, else the one that stands in for them here."""
    real = os.environ.get("ONNXRUNTIME_INCLUDE")
    if real is not None:
        assert (Path(real) / HEADER).is_file(), f"ONNXRUNTIME_INCLUDE: no {HEADER} in {real}"
        return Path(real)
    installed = [Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime")]
    places = [place for one in installed for place in (one, one / "core" / "session")]
    ours = Path(__file__).parent / "onnxruntime_cpp"
    return next((place for place in places if (place / HEADER).is_file()), ours)


def bundled(folder: Path, recipe: str) -> Path:
    """The plain bundle of the cell fp32/ort of `recipe`."""
    (folder / "net.yaml").write_text(recipe)
    done = run_optimc("build", "net.yaml", "-o", "out", "--no-measure", cwd=folder)
    assert done.code == 0, done.err
    done = run_optimc("bundle", "out", "--cell", "fp32/ort", "-o", "b", cwd=folder)
    assert done.code == 0, done.err
    return folder / "b"


def test_the_digits_run_in_cpp(compiled_run: Runner, repository: Path, tmp_path: Path) -> None:
    model = repository / "recipes" / "quickstart" / "digits.onnx"
    recipe = f"""
model: {{onnx: {model}}}
dims: {{batch: {{min: 3, typical: 3, max: 15, multiple_of: 3}}}}
variants: {{fp32: [simplify]}}
targets: {{ort: {{runtime: onnxruntime, threads: 1, graph_optimization: extended}}}}
"""
    bundle = bundled(tmp_path, recipe)
    assert "ORT_ENABLE_EXTENDED" in (bundle / "load.cpp").read_text()
    assert compiled_run(bundle) == "logits: 3 10\n"
    options = ["--cell", "fp32/ort", "--format", "triton", "-o", "t"]
    assert run_optimc("bundle", "out", *options, cwd=tmp_path).code == 0
    config = (tmp_path / "t" / "models" / "net" / "config.pbtxt").read_text()
    assert "optimization { graph { level: 1 } }" in config
    # The server would gather requests to sizes that the engine was not proved on.
    assert "max_batch_size: 0" in config
    assert "dynamic_batching" not in config


@pytest.mark.slow
def test_every_type_and_odd_names_run_in_cpp(compiled_run: Runner, tmp_path: Path) -> None:
    nodes, inputs, outputs = [], [], []
    for number, (name, kind) in enumerate(TYPES.items()):
        shape = [["batch", 2], [], [5]][number % 3]
        nodes.append(helper.make_node("Identity", [f'a "{name}"'], [f"{name}\\out/0"]))
        inputs.append(helper.make_tensor_value_info(f'a "{name}"', kind, shape))
        outputs.append(helper.make_tensor_value_info(f"{name}\\out/0", kind, shape))
    graph = helper.make_graph(nodes, "types", inputs, outputs)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "types.onnx")
    recipe = """
model: {onnx: types.onnx}
dims: {batch: {min: 1, typical: 2, max: 4}}
variants: {fp32: []}
targets: {ort: {runtime: onnxruntime}}
"""
    printed = compiled_run(bundled(tmp_path, recipe)).splitlines()
    shapes = [" 2 2", "", " 5"]
    expected = [f"{name}\\out/0:{shapes[i % 3]}" for i, name in enumerate(TYPES)]
    assert printed == expected
