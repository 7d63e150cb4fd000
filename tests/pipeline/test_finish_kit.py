"""`optimc finish`: on machines without TensorRT, with bad kits, and on paper from end to end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.core.errors import ExitCode
from optimc.testing.commands import Finished, run_optimc
from optimc.testing.graphs import GraphBuilder
from optimc.testing.tensorrt_bindings import WHEELS, Wheel, compile_stubs, fetch
from optimc.testing.tensorrt_paper import write_site

RECIPE = """
model: {onnx: model.onnx}
dims: {batch: {min: 1, typical: 2, max: 4}}
data: {evaluation: {npz: eval.npz, inputs: {x: samples}, labels: classes}}
metrics: {top1: {}}
variants: {cell: []}
targets: {trt: {runtime: tensorrt, optional: true, evaluation_in_kit: true}}
benchmark: {at_most: 3 s}
gate: {ship: cell/trt, drop: {top1: 0.2}, size_mb: 1}
"""
KIT = "out/artifacts/cell/trt"


def deferred(folder: Path, operator: str = "Identity", recipe: str = RECIPE) -> Path:
    """The kit of a model that applies one operator to `x`."""
    pytest.importorskip("onnxruntime")
    b = GraphBuilder(opset=20)
    b.node(operator, b.input("x", ("batch", 4)), to="y", name="/only")
    b.output("y", ("batch", 4))
    b.model().write_onnx(folder / "model.onnx")
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(60, 4)).astype(np.float32)
    np.savez(folder / "eval.npz", samples=samples, classes=samples.argmax(1))
    (folder / "recipe.yaml").write_text(recipe)
    done = run_optimc("build", "recipe.yaml", "-o", "out", "--no-measure", cwd=folder)
    assert done.code == ExitCode.GATE_FAILED or done.code == ExitCode.OK, done.err
    return folder / KIT


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deferred(tmp_path_factory.mktemp("kit"))


def test_without_tensorrt_it_ends_with_3_and_the_remedy(kit: Path, tmp_path: Path) -> None:
    done = run_optimc("finish", kit, cwd=tmp_path)
    assert done.code == ExitCode.CELL
    assert "TensorRT is not installed" in done.err
    assert "pip install 'optimc[tensorrt]'" in " ".join(done.err.split())
    assert not (kit / "report.json").exists()


def empty(kit: Path) -> str:
    (kit / "kit.json").unlink()
    return "this is no kit: No such file"


def no_json(kit: Path) -> str:
    (kit / "kit.json").write_text("{")
    return "this is no kit of this version of optimc: Invalid JSON"


def other_schema(kit: Path) -> str:
    told = json.loads((kit / "kit.json").read_text())
    (kit / "kit.json").write_text(json.dumps({**told, "schema": 1}))
    return "schema: Input should be 2"


def path_as_name(kit: Path) -> str:
    told = json.loads((kit / "kit.json").read_text())
    (kit / "kit.json").write_text(json.dumps({**told, "variant": "../../x"}))
    return "variant: String should match pattern"


def unknown_runtime(kit: Path) -> str:
    told = json.loads((kit / "kit.json").read_text())
    told["options"]["runtime"] = "tensorflow"
    (kit / "kit.json").write_text(json.dumps(told))
    return "unknown runtime `tensorflow`"


def unknown_option(kit: Path) -> str:
    told = json.loads((kit / "kit.json").read_text())
    told["options"]["speed"] = 9
    (kit / "kit.json").write_text(json.dumps(told))
    return "options.speed: Extra inputs are not permitted"


def no_report(kit: Path) -> str:
    (kit / "build.json").unlink()
    return "cannot read the report"


SPOILT = [empty, no_json, other_schema, path_as_name, unknown_runtime, unknown_option, no_report]


@pytest.mark.parametrize("spoil", SPOILT)
def test_bad_kits_get_one_message(spoil: Callable[[Path], str], kit: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(kit, tmp_path / "bad")
    message = spoil(bad)
    done = run_optimc("finish", bad, cwd=tmp_path)
    assert done.code == ExitCode.INPUT, done.err
    assert message in done.err
    assert not done.traceback


def test_untrusted_refuses_plugins(kit: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(kit, tmp_path / "bad")
    told = json.loads((bad / "kit.json").read_text())
    told["options"]["plugins"] = ["own.so"]
    (bad / "kit.json").write_text(json.dumps(told))
    done = run_optimc("finish", bad, "--untrusted", cwd=tmp_path)
    assert done.code == ExitCode.INPUT
    assert "the kit's plugins are native code (own.so), which --untrusted refuses" in done.err


def test_the_kit_holds_the_evaluation_data_where_it_is_asked_for(kit: Path) -> None:
    told = json.loads((kit / "kit.json").read_text())
    assert told["evaluation"] is None
    assert told["metrics"]["top1"] is not None
    with np.load(kit / "evaluation.npz", allow_pickle=False) as stored:
        assert stored["in.0"].shape == (60, 4)
        assert np.array_equal(stored["labels"], stored["in.0"].argmax(1))


def test_the_kit_holds_none_where_it_is_not(tmp_path: Path) -> None:
    made = deferred(tmp_path, recipe=RECIPE.replace(", evaluation_in_kit: true", ""))
    assert not (made / "evaluation.npz").exists()
    told = json.loads((made / "kit.json").read_text())
    assert "set `evaluation_in_kit: true`" in told["evaluation"]


def test_plugins_are_found_beside_the_recipe_and_travel_in_the_kit(tmp_path: Path) -> None:
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries/own.so").write_bytes(b"native")
    text = RECIPE.replace("evaluation_in_kit: true", "plugins: [libraries/own.so]")
    made = deferred(tmp_path, recipe=text)
    assert (made / "plugins/0-own.so").read_bytes() == b"native"
    assert json.loads((made / "tensorrt.json").read_text())["plugins"] == ["plugins/0-own.so"]
    assert json.loads((made / "kit.json").read_text())["options"]["plugins"] == ["plugins/0-own.so"]
    assert "--dynamicPlugins=plugins/0-own.so" in (made / "trtexec.sh").read_text()
    lock = json.loads((tmp_path / "recipe.lock").read_text())
    assert lock["inputs"].keys() == {"model.onnx", "libraries/own.so"}
    done = run_optimc("check", "recipe.yaml", "--untrusted", cwd=tmp_path)
    assert done.code == ExitCode.INPUT
    assert "loads native code, which --untrusted refuses" in done.err
    assert "recipe.yaml:7:" in done.err


def test_a_plugin_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = RECIPE.replace("evaluation_in_kit: true", "plugins: [own.so]")
    (tmp_path / "recipe.yaml").write_text(text)
    done = run_optimc("check", "recipe.yaml", cwd=tmp_path)
    assert done.code == ExitCode.INPUT
    assert "`own.so`: there is no such file" in done.err


Finish = Callable[..., Finished]


@pytest.fixture(scope="module", params=[WHEELS[0], WHEELS[-1]], ids=lambda wheel: wheel.version)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that puts TensorRT on paper into every interpreter that finds it."""
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    if sys.version_info[:2] != (3, 11) or sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("needs CPython 3.11 on Linux and a C compiler")
    wheel: Wheel = request.param
    folder, site = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    try:
        unpacked = fetch(wheel, folder)
    except OSError as error:
        pytest.skip(f"the bindings cannot be had: {error}")
    compile_stubs(folder, wheel.major)
    write_site(site, unpacked, folder, wheel.version)

    return site


@pytest.fixture(scope="module")
def on_paper(site: Path) -> Finish:
    """Runs the command where TensorRT is on paper, in all of its processes."""

    def run(*arguments: str | Path, cwd: Path) -> Finished:
        environment = {**path_to(site), "OPTIMC_CACHE_DIR": str(cwd / "cache")}
        return run_optimc(*arguments, cwd=cwd, environment=environment)

    return run


@pytest.fixture(scope="module")
def on_paper_script(site: Path) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Runs a kit's own script where TensorRT is on paper."""

    def run(kit: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(kit / "build_engine.py")]
        environment = {**os.environ, **path_to(site)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def path_to(site: Path) -> dict[str, str]:
    path = filter(None, [str(site), os.environ.get("PYTHONPATH")])
    return {"PYTHONPATH": os.pathsep.join(path)}


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


@pytest.mark.slow
def test_on_paper_a_kit_is_built_proved_measured_and_judged(
    kit: Path, on_paper: Finish, tmp_path: Path
) -> None:
    own = shutil.copytree(kit, tmp_path / "kit")
    done = on_paper("finish", own, cwd=tmp_path)
    assert done.code == ExitCode.OK, done.err
    assert (own / "engine/model.plan").read_bytes() == b"plan"
    report = report_of(own)
    (cell,) = report["results"]
    assert cell["status"] == "built"
    assert cell["engine"]["verdict"] == "equivalent"
    assert cell["engine"]["path"] == "engine"
    assert cell["metrics"]["top1"]["value"] == cell["metrics"]["top1"]["source"] == 1.0
    assert cell["metrics"]["top1"]["samples"] == 60
    assert cell["latency"][0]["runs"] > 0
    assert cell["speedup"]["value"] > 0
    assert report["gate"]["verdict"] == "passed"
    assert {check["name"] for check in report["gate"]["checks"]} == {"drop.top1", "size_mb"}
    assert (own / "report.html").is_file()
    assert (own / "report.md").is_file()
    assert "cell/trt: TensorRT: slow tactic" in report["notes"]
    assert any("by the device's events" in note for note in report["notes"])
    assert any("clocks: " in note for note in report["notes"])
    profiles = {one["engine"]: one["layers"] for one in report["profiles"]}
    assert profiles.keys() == {"cell/trt", "source on trt"}
    (layer,) = profiles["cell/trt"]
    assert (layer["name"], layer["operator"], layer["ms"]) == ("copy", "NoOp", 0.25)
    timings = list((tmp_path / "cache").rglob("timing.cache"))
    assert [path.read_bytes() for path in timings] == [b"timings"]


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "code"), [("Identity", 0), ("Neg", 1)])
def test_on_paper_the_kits_own_script_builds_and_compares(
    on_paper_script: Callable[[Path], subprocess.CompletedProcess[str]],
    tmp_path: Path,
    operator: str,
    code: int,
) -> None:
    own = deferred(tmp_path, operator)
    done = on_paper_script(own)
    assert done.returncode == code, done.stderr
    assert (own / "model.plan").read_bytes() == b"plan"
    least = "inf" if operator == "Identity" else "-6.0"
    assert f"the least SQNR is {least} dB" in done.stdout


@pytest.mark.slow
def test_on_paper_a_build_keeps_timings_and_names_them_in_the_lock(
    kit: Path, on_paper: Finish, tmp_path: Path
) -> None:
    source = kit.parents[3]
    for name in ("model.onnx", "eval.npz", "recipe.yaml"):
        shutil.copy(source / name, tmp_path / name)
    done = on_paper("build", "recipe.yaml", "-o", "out", "--no-measure", cwd=tmp_path)
    (cell,) = report_of(tmp_path / "out")["results"]
    assert cell["status"] == "built", done.err
    assert cell["engine"]["verdict"] == "equivalent"
    (kept,) = (tmp_path / "cache").rglob("timing.cache")
    lock = json.loads((tmp_path / "recipe.lock").read_text())
    assert "cell/trt: TensorRT: slow tactic" in report_of(tmp_path / "out")["notes"]
    assert lock["timing_caches"] == {"trt": hashlib.sha256(kept.read_bytes()).hexdigest()}
    again = on_paper("build", "recipe.yaml", "-o", "out", "--no-measure", "--locked", cwd=tmp_path)
    assert again.code == done.code, again.err


@pytest.mark.slow
def test_on_paper_a_metric_that_would_run_code_is_refused(
    kit: Path, on_paper: Finish, tmp_path: Path
) -> None:
    own = shutil.copytree(kit, tmp_path / "kit")
    told = json.loads((own / "kit.json").read_text())
    told["metrics"] = {"mine": {"call": "os:getcwd"}}
    (own / "kit.json").write_text(json.dumps(told))
    done = on_paper("finish", own, cwd=tmp_path)
    assert done.code == ExitCode.INPUT, done.err
    assert "metrics.mine would run code" in done.err


@pytest.mark.slow
def test_on_paper_an_engine_that_computes_something_else_fails(
    on_paper: Finish, tmp_path: Path
) -> None:
    own = deferred(tmp_path, "Neg")
    done = on_paper("finish", own, "--no-measure", cwd=tmp_path)
    assert done.code == ExitCode.CELL, done.err
    (cell,) = report_of(own)["results"]
    assert cell["status"] == "failed"
    assert "did not prove itself: against its ONNX model: differs by" in cell["reason"]


@pytest.mark.slow
def test_on_paper_a_changed_model_is_refused(kit: Path, on_paper: Finish, tmp_path: Path) -> None:
    own = shutil.copytree(kit, tmp_path / "kit")
    b = GraphBuilder(opset=20)
    b.node("Neg", b.input("x", ("batch", 4)), to="y", name="/only")
    b.output("y", ("batch", 4))
    b.model().write_onnx(own / "model/model.onnx")
    done = on_paper("finish", own, cwd=tmp_path)
    assert done.code == ExitCode.INPUT, done.err
    assert "this is not the model that the kit was made with" in done.err
