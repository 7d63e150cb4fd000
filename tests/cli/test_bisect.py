"""`optimc bisect`: a planted fault is named, by every criterion; what cannot be is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optimc.testing.commands import (
    Finished,
    run_optimc,
    temporary_leftovers,
    workers_with,
)
from optimc.testing.plugins import WRONG_PASS, WRONG_REWRITE, make_plugin

RECIPE = """
model: {{onnx: {folder}/digits.onnx}}
inputs: {{input: {{range: [0, 1]}}}}
data:
  allow_overlap: true
  evaluation:
    npz: {folder}/digits_evaluation.npz
    inputs: {{input: images}}
    labels: labels
    transform: [nchw, {{divide: 16}}]
  tuning:
    npz: {folder}/digits_evaluation.npz
    inputs: {{input: images}}
    labels: labels
    transform: [nchw, {{divide: 16}}]
    take: 200
metrics: {{top1: {{}}}}
variants:
  good: [simplify, fuse]
  short: [simplify, {{copy_weights: {{together: {together}}}}}]
  bad: [simplify, {{copy_weights: {{together: {together}}}}}, fuse, simplify]
targets: {{ort: {{runtime: onnxruntime}}}}
"""


@pytest.fixture
def bisect(tmp_path: Path, repository: Path):
    """Runs the command on a recipe whose second pass is wrong."""
    plugins = tmp_path / "plugins"
    passes = {"copy_weights": "wrong_rewrite:CopyWeights", "scale_outputs": "wrong:ScaleOutputs"}
    make_plugin(plugins, "wrong_rewrite", WRONG_REWRITE, {"optimc.passes": passes})
    (plugins / "wrong.py").write_text(WRONG_PASS)
    folder = repository / "recipes" / "quickstart"

    def run(*options: str, together: int = 1, cell: str = "bad/ort") -> Finished:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(folder=folder, together=together))
        return run_optimc(
            "bisect",
            recipe,
            "--cell",
            cell,
            *options,
            cwd=tmp_path,
            environment={"PYTHONPATH": str(plugins), "OPTIMC_CACHE_DIR": str(tmp_path / "cache")},
        )

    return run


def _found(done: Finished) -> dict:
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_what_verification_takes_back_is_named_at_once(bisect, tmp_path: Path) -> None:
    done = bisect()
    assert done.code == 0, done.err
    assert "rolled back  copy_weights (pass 2), by verification" in done.out
    assert "pass 2 of 4: copy_weights, in bad/ort" in done.out
    assert "enough by itself" in done.out
    assert "--limit copy_weights=" in done.out
    assert not temporary_leftovers(tmp_path)


def test_by_the_error_it_names_the_pass_and_the_one_rewrite(bisect) -> None:
    found = _found(bisect("--max-error", "1e-3", "--no-verify", "--json"))
    assert (found["passes"], found["number"], found["count"]) == (["copy_weights"], 2, 4)
    assert len(found["rewrites"]) == 1 < found["of"]
    assert found["rewrites"][0]["number"] == found["of"] // 2 + 1
    assert found["rolled_back"] == []
    assert found["complete"] is True
    again = _found(bisect("--max-error", "1e-3", "--no-verify", "--json"))
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


def test_rewrites_that_are_needed_together_are_both_named(bisect) -> None:
    found = _found(bisect("--max-error", "1e-3", "--no-verify", "--json", together=2))
    first, second = (rewrite["number"] for rewrite in found["rewrites"])
    assert (first, second) == (found["of"] // 2 + 1, found["of"] // 2 + 2)


def test_by_the_drop_of_the_first_metric_on_tuning_data(bisect) -> None:
    found = _found(bisect("--drop", "0.001", "--no-verify", "--json"))
    assert found["criterion"] == "top1 drops by more than 0.001 on the tuning data"
    assert found["passes"] == ["copy_weights"]


def test_by_a_command(bisect, tmp_path: Path) -> None:
    check = tmp_path / "check.py"
    check.write_text(
        "import sys, onnx\n"
        "from onnx import numpy_helper\n"
        "graph = onnx.load(sys.argv[1]).graph\n"
        "sums = [abs(numpy_helper.to_array(t)).sum() for t in graph.initializer]\n"
        "sys.exit(int(sum(x.sum() for x in sums) > 6000))\n"
    )
    command = f"{sys.executable} {check} {{}}"
    found = _found(bisect("--command", command, "--no-verify", "--json", cell="short/ort"))
    assert found["passes"] == ["copy_weights"]
    assert len(found["rewrites"]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-error", "1e-3"], "good"),
        (["--max-error", "0", "--drop", "1"], "two criteria"),
        (["--no-verify"], "nothing says what is bad"),
        (["--command", ""], "empty"),
        (["--command", "/no/such/program"], "cannot be run"),
        (["--max-error", "-1"], "--max-error"),
        (["--time-limit", "x"], "--time-limit"),
    ],
)
def test_what_is_wrong_is_told(options: list[str], words: str, bisect) -> None:
    done = bisect(*options, cell="good/ort")
    assert done.code == 2
    assert words in done.err
    assert not done.traceback


def test_a_cell_has_to_be_named_where_there_are_several(bisect) -> None:
    done = bisect("--max-error", "1", cell="nothing/ort")
    assert done.code == 2
    assert "no cell is called `nothing/ort`" in done.err
    assert "bad/ort" in done.err


def test_where_all_is_proved_there_is_nothing_to_blame(bisect) -> None:
    done = bisect(cell="good/ort")
    assert done.code == 2
    assert "every pass proved itself" in done.err
    assert "--max-error" in done.err


def test_where_the_source_is_bad_no_pass_is_to_blame(bisect) -> None:
    done = bisect("--command", "false", cell="good/ort")
    assert done.code == 2
    assert "before any pass" in done.err


def test_the_time_limit_ends_it_with_a_message(bisect) -> None:
    done = bisect("--max-error", "1e-3", "--no-verify", "--time-limit", "0")
    assert done.code == 2
    assert "--time-limit" in done.err


def test_of_quantization_it_names_the_layers(repository: Path, tmp_path: Path) -> None:
    recipe = repository / "recipes" / "quickstart.yaml"
    options = ["--cell", "int8/ort", "--max-error", "0.004", "--json"]
    found = _found(run_optimc("bisect", recipe, *options, cwd=tmp_path))
    assert found["passes"] == ["quantize_int8"]
    assert 1 <= len(found["rewrites"]) <= found["of"]
    assert all(rewrite["rule"].startswith("quantize ") for rewrite in found["rewrites"])


def test_an_interruption_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    recipe = repository / "recipes" / "quickstart.yaml"
    (tmp_path / "check.py").write_text("open('began', 'w').close(); import time; time.sleep(60)")
    mark = {"OPTIMC_TEST_MARK": str(tmp_path), "OPTIMC_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "optimc", "bisect", str(recipe), "--cell", "int8/ort"]
    command += ["--command", f"{sys.executable} check.py {{}}"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **mark}, start_new_session=True
    )
    while not (tmp_path / "began").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert not temporary_leftovers(tmp_path)
    assert not workers_with("OPTIMC_TEST_MARK", str(tmp_path))
