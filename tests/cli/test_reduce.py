"""`optimc reduce`: what is left still shows the fault, by itself, and nothing else stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from optimc.testing.commands import Finished, run_optimc, temporary_leftovers
from optimc.testing.graphs import GraphBuilder, branches, convolutions
from optimc.testing.plugins import WRONG_PASS, make_plugin

# The fault: a Relu that reads an Add.
RELU_AFTER_ADD = """
import sys, onnx
graph = onnx.load(sys.argv[1]).graph
producers = {name: node.op_type for node in graph.node for name in node.output}
relus = [node for node in graph.node if node.op_type == "Relu"]
shown = any(producers.get(node.input[0]) == "Add" for node in relus)
print("relu after add" if shown else "fine")
sys.exit(int(shown))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    convolutions().write_onnx(path)
    return path


@pytest.fixture
def residual(tmp_path: Path) -> Path:
    """Six nodes, one weight: every check of a command starts a Python of its own."""
    return _write_residual(tmp_path)


def _write_residual(folder: Path) -> Path:
    b = GraphBuilder()
    x = b.input("image", ["batch", 2, 4, 4])
    h = b.node("Relu", b.node("Conv", x, b.weight(2, 2, 3, 3), pads=[1, 1, 1, 1]))
    h = b.node("Relu", b.node("Add", h, x))
    b.node("Flatten", b.node("GlobalAveragePool", h), axis=1, to="logits")
    b.output("logits", ["batch", 2])
    b.model().write_onnx(folder / "model.onnx")
    return folder / "model.onnx"


def _check(folder: Path) -> str:
    script = folder / "check.py"
    script.write_text(RELU_AFTER_ADD)
    return f"{sys.executable} {script} {{}}"


def _reduce(model: Path, *options: str | Path, plugins: Path | None = None) -> Finished:
    environment = {"PYTHONPATH": str(plugins)} if plugins else {}
    return run_optimc("reduce", model, *options, cwd=model.parent, environment=environment)


def _kept(folder: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(folder / "model.onnx")).graph.node]


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """A reduction by a command: the folder with the model and `out`, and what it answered."""
    folder = tmp_path_factory.mktemp("reduced")
    options = ("--command", _check(folder), "--saying", "relu after add", "-o", folder / "out")
    done = _reduce(_write_residual(folder), *options, "--json")
    assert done.code == 0, done.err
    return folder, done


def test_a_command_is_cut_down_to_what_it_looks_for(reduced: tuple[Path, Finished]) -> None:
    folder, done = reduced
    out = folder / "out"
    record = json.loads(done.out)
    assert _kept(out) == ["Add", "Relu"]
    assert record["nodes"] == [6, 2]
    assert record["complete"] is True
    with np.load(out / "inputs.npz", allow_pickle=False) as inputs:
        graph = onnx.load(str(out / "model.onnx")).graph
        assert set(inputs) == {value.name for value in graph.input}
        assert all(inputs[name].size == 1 for name in inputs)
    assert not temporary_leftovers(folder)


def test_the_folder_stands_by_itself(reduced: tuple[Path, Finished], tmp_path: Path) -> None:
    elsewhere = shutil.copytree(reduced[0] / "out", tmp_path / "elsewhere")
    script = [sys.executable, str(elsewhere / "reproduce.py")]
    kept = reduced[0].rename(tmp_path / "away")  # what it was made of is not needed
    done = subprocess.run(script, capture_output=True, text=True, cwd="/", check=False)
    kept.rename(reduced[0])
    assert done.returncode == 1, done.stderr
    assert "the fault shows" in done.stdout


@pytest.mark.slow
def test_the_same_reduction_writes_the_same_bytes(reduced: tuple[Path, Finished]) -> None:
    folder, _ = reduced
    options = ("--saying", "relu after add", "-o", folder / "again")
    done = _reduce(folder / "model.onnx", "--command", _check(folder), *options)
    assert done.code == 0, done.err
    for file in ("model.onnx", "reproduce.py", "reduced.json"):
        assert (folder / "out" / file).read_bytes() == (folder / "again" / file).read_bytes()


def test_a_pass_that_changes_the_outputs(model: Path, tmp_path: Path) -> None:
    entry = {"optimc.passes": {"scale_outputs": "wrong:ScaleOutputs"}}
    plugins = make_plugin(tmp_path / "plugins", "wrong", WRONG_PASS, entry)
    out = tmp_path / "out"
    done = _reduce(model, "--pass", "scale_outputs", "-o", out, plugins=plugins)
    assert done.code == 0, done.err
    assert len(_kept(out)) == 1
    environment = {**os.environ, "PYTHONPATH": str(plugins)}
    script = [sys.executable, str(out / "reproduce.py")]
    again = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stderr
    assert "differs by" in again.stdout


def test_a_runtime_that_differs(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    out = tmp_path / "out"
    done = _reduce(model, "--runtime", "openvino", "--max-error", "0", "-o", out)
    assert done.code == 0, done.err
    assert len(_kept(out)) <= 2
    script = [sys.executable, str(out / "reproduce.py")]
    assert subprocess.run(script, capture_output=True, check=False).returncode == 1


@pytest.mark.slow
def test_control_flow_is_kept_whole(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    branches().write_onnx(model)
    (tmp_path / "check.py").write_text(
        "import sys, onnx\n"
        "nodes = onnx.load(sys.argv[1]).graph.node\n"
        "sys.exit(int(sum(node.op_type == 'If' for node in nodes) > 1))\n"
    )
    out = tmp_path / "out"
    done = _reduce(model, "--command", f"{sys.executable} check.py {{}}", "-o", out)
    assert done.code == 0, done.err
    assert sorted(_kept(out)) == ["If", "If"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing says what the fault is"),
        (["--command", "true"], "does not show the fault"),
        (["--command", "/no/such/program"], "cannot be run"),
        (["--command", "false", "--pass", "fuse"], "a check of its own"),
        (["--pass", "fues"], "did you mean `fuse`?"),
        (["--pass", "quantize_int8"], "calibration"),
        (["--pass", "fuse"], "does not show the fault"),
        (["--runtime", "onnxruntime", "--saying", "x"], "no command"),
        (["--command", "false", "--inputs", "none.npz"], "none.npz"),
    ],
)
def test_what_is_wrong_is_told(options: list[str], words: str, model: Path) -> None:
    done = _reduce(model, *options)
    assert done.code == 2, done.out
    assert words in done.err
    assert not done.traceback
    assert not (model.parent / "optimc-reduced" / "model").exists()


def test_a_folder_with_other_files_is_left_alone(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("...")
    done = _reduce(model, "--command", "false", "-o", out)
    assert done.code == 2
    assert "holds other files" in done.err
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_check_that_changes_its_mind_is_told(residual: Path, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(
        "import os, pathlib, sys\n"
        "count = pathlib.Path('count')\n"
        "count.write_text(str(int(count.read_text() if count.exists() else 0) + 1))\n"
        "sys.exit(int(int(count.read_text()) == 1))\n"
    )
    done = _reduce(residual, "--command", f"{sys.executable} check.py", "-o", tmp_path / "out")
    assert done.code == 2
    assert "not deterministic" in done.err


def test_the_best_so_far_stays_after_an_interruption(residual: Path, tmp_path: Path) -> None:
    # The first smaller model shows the fault; the look at the next one does not end by itself.
    (tmp_path / "check.py").write_text(
        "import pathlib, sys, time, onnx\n"
        "smaller = len(onnx.load(sys.argv[1]).graph.node) < 6\n"
        "if smaller and pathlib.Path('found').exists():\n"
        "    pathlib.Path('looking').touch()\n"
        "    time.sleep(600)\n"
        "if smaller:\n"
        "    pathlib.Path('found').touch()\n"
        "sys.exit(1)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "optimc", "reduce", str(residual), "-o", str(out)]
    command += ["--command", f"{sys.executable} check.py {{}}"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    while not (tmp_path / "looking").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130, words
    assert 0 < len(_kept(out)) < 6
    assert json.loads((out / "reduced.json").read_text())["complete"] is False


def test_when_the_time_is_up_the_best_so_far_is_written(residual: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = _reduce(residual, "--command", _check(tmp_path), "-o", out, "--time-limit", "0")
    assert done.code == 0, done.err
    assert "the time was up" in done.out
    assert len(_kept(out)) > 2


@pytest.mark.slow
def test_a_planted_fault_in_resnet56_leaves_five_nodes_at_most(
    shared: Path, tmp_path: Path
) -> None:
    model = shared / "models" / "resnet56.onnx"
    graph = onnx.load(str(model)).graph
    planted = [node for node in graph.node if node.op_type == "Conv"][27].output[0]
    # As if a runtime computed one convolution wrongly, and only told by what comes after it.
    (tmp_path / "check.py").write_text(
        "import sys, onnx, numpy as np, onnxruntime\n"
        "model = onnx.load(sys.argv[1])\n"
        "feeds = dict(np.load(sys.argv[2], allow_pickle=False))\n"
        "run = lambda m: onnxruntime.InferenceSession(m.SerializeToString(),"
        " providers=['CPUExecutionProvider']).run(None, feeds)\n"
        "good = run(model)\n"
        "for node in model.graph.node:\n"
        f"    if {planted!r} in node.output:\n"
        "        node.output[0] = 'planted'\n"
        "        wrong = onnx.helper.make_node('Abs', ['planted'], "
        f"[{planted!r}])\n"
        "        nodes = list(model.graph.node)\n"
        "        nodes.insert(nodes.index(node) + 1, wrong)\n"
        "        del model.graph.node[:]\n"
        "        model.graph.node.extend(nodes)\n"
        "        break\n"
        "bad = run(model)\n"
        "sys.exit(int(any(np.abs(a - b).max() > 1e-3 for a, b in zip(good, bad))))\n"
    )
    out = tmp_path / "out"
    command = f"{sys.executable} {tmp_path / 'check.py'} {{}} {{inputs}}"
    done = run_optimc("reduce", model, "--command", command, "-o", out, cwd=tmp_path, timeout=900)
    assert done.code == 0, done.err
    reduced = onnx.load(str(out / "model.onnx")).graph.node
    assert len(reduced) <= 5
    assert planted in {name for node in reduced for name in node.output}
