"""Models with operators of the user's own: the library is loaded wherever the model runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optimc.testing.commands import Finished, run_optimc
from optimc.testing.custom_ops import LIBRARY, library_path, write_custom_model

needs_library = pytest.mark.skipif(
    library_path() is None,
    reason="onnxruntime-extensions is not installed: `pip install optimc[dev]`",
)
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")

RECIPE = """\
model: {{onnx: m.onnx{libraries}}}
dims: {{batch: {{min: 1, typical: 1, max: 8}}}}
variants:
  fp32: {{passes: [simplify, fuse], targets: {targets}}}
{variants}targets:
  ort: {{runtime: onnxruntime, threads: 1}}
  ov: {{runtime: openvino, threads: 1, precision: f32}}
"""
INT8 = "  int8: {passes: [simplify, quantize_int8], targets: [ort]}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_custom_model(tmp_path / "m.onnx")
    return tmp_path


def place_library(folder: Path, suffix: bytes = b"") -> None:
    found = library_path()
    assert found is not None
    # Bytes behind the end of an ELF file change its digest and nothing else.
    (folder / LIBRARY).write_bytes(found.read_bytes() + suffix)


def build(
    folder: Path,
    *arguments: str,
    libraries: str = f", custom_ops: [{LIBRARY}]",
    variants: str = "",
    targets: str = "[ort]",
    command: str = "build",
) -> Finished:
    text = RECIPE.format(libraries=libraries, variants=variants, targets=targets)
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    out = ("--no-measure", "-o", "out") if command == "build" else ()
    environment = {"OPTIMC_CACHE_DIR": str(folder / "cache")}
    return run_optimc(command, "r.yaml", *out, *arguments, cwd=folder, environment=environment)


def lock(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "r.lock").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@needs_library
@pytest.mark.slow
def test_a_custom_operator_is_compiled_quantized_and_delivered_with_its_library(
    folder: Path,
) -> None:
    place_library(folder)
    done = build(folder, variants=INT8)
    assert done.code == 0, done.err
    report = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))
    cells = {cell["variant"]: cell for cell in report["results"]}
    assert cells["fp32"]["engine"]["verdict"] in ("equivalent", "within_tolerance")
    engine = folder / "out/artifacts/int8/ort"
    manifest = json.loads((engine / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["session"]["custom_ops"] == [LIBRARY]
    assert set(manifest["files"]) == {"model.onnx", LIBRARY}
    # The MatMuls on both sides of the operator are quantized: its ranges were observed.
    import onnx

    nodes = onnx.load(engine / "model.onnx").graph.node
    made_by = {output: node.op_type for node in nodes for output in node.output}
    products = [node for node in nodes if node.op_type == "MatMul"]
    operands = [{made_by.get(name) for name in node.input[:2]} for node in products]
    assert operands.count({"DequantizeLinear"}) == 2
    # The four lines of the manifest load it without optimc.
    script = (
        "import json, numpy as np\n"
        "manifest = json.load(open('manifest.json'))\n"
        "feeds = {'x': np.ones((2, 16), np.float32)}\n"
        "exec(manifest['load'])\n"
        "print(outputs['y'].shape)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=engine, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "(2, 32)", ran.stderr
    # A library that differs is another model: nothing of the cache is taken, and the lock says so.
    old = lock(folder)["inputs"]
    place_library(folder, suffix=b"\0")
    refused = build(folder, "--locked", variants=INT8)
    assert refused.code == 2
    assert f"inputs.{LIBRARY}: locked" in refused.err
    assert build(folder, variants=INT8).code == 0
    assert lock(folder)["inputs"] != old
    again = json.loads((engine / "manifest.json").read_text(encoding="utf-8"))
    assert again["model_sha256"] != manifest["model_sha256"]


@needs_library
@pytest.mark.slow
def test_the_bundle_carries_the_library(folder: Path) -> None:
    place_library(folder)
    assert build(folder).code == 0
    done = run_optimc(
        *("bundle", "out", "--cell", "fp32/ort", "--format", "plain", "-o", "plain"), cwd=folder
    )
    assert done.code == 0, done.err
    assert (folder / "plain/model" / LIBRARY).is_file()
    assert f'RegisterCustomOpsLibrary("model/{LIBRARY}")' in (folder / "plain/load.cpp").read_text(
        encoding="utf-8"
    )
    checked = subprocess.run(
        [sys.executable, "plain/check.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = run_optimc(
        *("bundle", "out", "--cell", "fp32/ort", "--format", "triton", "-o", "triton"), cwd=folder
    )
    assert done.code == 0, done.err
    config = next((folder / "triton").rglob("config.pbtxt")).read_text(encoding="utf-8")
    assert f'op_library_filename: "/models/r/1/{LIBRARY}"' in config


@needs_library
@pytest.mark.slow
def test_openvino_says_which_operator_it_does_not_know(folder: Path) -> None:
    place_library(folder)
    done = build(folder, targets="[ort, ov]")
    assert done.code == 3
    assert "OpenVINO does not know the operator `Inverse` of the domain `ai.onnx.contrib`" in (
        done.err
    )
    assert not done.traceback


def test_without_a_library_the_message_names_the_key(folder: Path) -> None:
    done = build(folder, libraries="")
    assert done.code == 2
    assert "node `inverse` (Inverse)" in done.err
    assert "custom_ops: [libs/ops.so]" in done.err


def test_untrusted_refuses_libraries(folder: Path) -> None:
    (folder / LIBRARY).write_bytes(b"x")
    done = build(folder, "--untrusted", command="check")
    assert done.code == 2
    assert "r.yaml:1:23: `custom_ops` loads libraries" in done.err
    assert "leave out --untrusted" in done.err


def test_a_missing_library_is_found_before_any_work(folder: Path) -> None:
    done = build(folder, command="check")
    assert done.code == 2
    assert f"r.yaml:1:36: `{LIBRARY}`: there is no such file" in done.err


def test_two_libraries_of_one_name_are_refused(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / LIBRARY).write_bytes(b"x")
    done = build(folder, libraries=f", custom_ops: [a/{LIBRARY}, b/{LIBRARY}]", command="check")
    assert done.code == 2
    assert f"two libraries are called `{LIBRARY}`" in done.err


def test_what_is_no_library_is_one_message(folder: Path) -> None:
    (folder / LIBRARY).write_bytes(b"no shared object")
    done = build(folder)
    assert done.code == 2
    assert "ONNX Runtime cannot load this library of custom operators" in done.err
    assert LIBRARY in done.err
    assert not done.traceback


@needs_gcc
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("int unrelated(void) { return 0; }", "RegisterCustomOps"),
        ("#include <stdlib.h>\nvoid *RegisterCustomOps(void *o, void *a) { abort(); }", "SIGABRT"),
        # A newer interface than the runtime has is a null pointer, which such a library follows.
        (
            "struct base { void *(*api)(unsigned); };\n"
            "void *RegisterCustomOps(void *options, struct base *base) {\n"
            "  void *(**functions)(const char *) = base->api(9999);\n"
            '  return functions[0]("");\n'
            "}",
            "SIGSEGV",
        ),
    ],
)
def test_a_library_that_does_not_fit_is_one_message(folder: Path, code: str, words: str) -> None:
    (folder / "ops.c").write_text(code, encoding="utf-8")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", LIBRARY, "ops.c"], cwd=folder, check=True, timeout=60
    )
    done = build(folder)
    assert done.code == 2
    assert "ONNX Runtime cannot load this library of custom operators" in done.err
    assert words in done.err
    assert "installed release of ONNX Runtime" in " ".join(done.err.split())
    assert not done.traceback


@needs_library
def test_ranges_behind_a_custom_operator_are_observed(folder: Path) -> None:
    from optimc.calibration.observe_service import ObserverService
    from optimc.core import custom_ops
    from optimc.core.worker import Limits
    from optimc.frontends.onnx import load_onnx

    place_library(folder)
    limits = Limits(libraries=(str(folder / LIBRARY),))
    loaded = load_onnx(folder / "m.onnx", workspace=folder, limits=limits)
    assert loaded.model.ir.graph[2].outputs[0].dtype is not None
    loaded.model.save(folder / "stored")
    custom_ops.provide(limits.libraries)
    try:
        service = ObserverService(str(folder / "stored/model.onnx"), 1 << 20)
        sample = {"x": np.ones((1, 16), np.float32)}
        plan, _ = service.plan(sample, ["q", "c", "y"])
        assert sorted(name for chunk in plan["chunks"] for name in chunk) == ["c", "q", "y"]
        service.open({}, ["q", "c"])
        service.observe(sample, 0)
        table, _ = service.statistics({})
    finally:
        custom_ops.provide(())
    assert table["q"]["count"] == 32 * 32
