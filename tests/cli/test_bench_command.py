"""`optimc bench` and `optimc gate --remeasure` on real engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from optimc.cli import main
from optimc.testing.timed import chain, timed_chain


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("engines")
    for layers in (6, 40):
        timed_chain(str(layers), layers, folder / str(layers)).close()
    return {layers: folder / str(layers) / "engine" for layers in (6, 40)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIMC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.mark.slow
def test_a_model_and_an_engine_in_turns(capsys, tmp_path, engines):
    model = tmp_path / "model.onnx"
    chain(6).write_onnx(model)
    assert main(["bench", str(model), str(engines[40]), "--seconds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["subjects"]
    assert found["baseline"] == first["name"] == str(model)
    assert first["speedup"] is None
    assert second["speedup"]["value"] < 1
    assert first["inputs"] == {"x": ["float32", [16, 128]]}
    assert first["p50_ms"]["ci95"][0] <= first["p50_ms"]["value"] <= first["p50_ms"]["ci95"][1]
    assert first["throughput_per_s"]["value"] > second["throughput_per_s"]["value"] > 0
    assert first["first_result_ms"] > 0
    assert first["steady_memory_mb"] <= first["peak_memory_mb"]
    assert found["noise_floor"]["ci95"][0] < found["noise_floor"]["ci95"][1]


@pytest.mark.slow
def test_figures_that_the_sample_does_not_support_are_skipped(capsys, tmp_path, engines):
    np.savez(tmp_path / "x.npz", x=np.ones((16, 128), np.float32))
    arguments = ["bench", str(engines[40]), "--seconds", "0.1", "--threads", "1"]
    assert main([*arguments, "--inputs", str(tmp_path / "x.npz")]) == 0
    out = capsys.readouterr().out
    assert "p99          skipped: needs 500 runs, has " in out
    assert "1 thread; x float32[16, 128]" in out
    assert max(map(len, out.splitlines())) <= max(100, len(str(engines[40])))


@pytest.mark.slow
def test_the_gate_measures_engines_side_by_side(capsys, tmp_path, engines):
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "slowdown: 0.5\nmemory_growth: 0.5\nthroughput_per_s: 1\nat_most: 2 min\n"
    )  # ends when decided
    for candidate, code in ((6, 0), (40, 4)):
        arguments = ["gate", str(engines[candidate]), "--baseline", str(engines[6])]
        found = main([*arguments, "--policy", str(policy), "--remeasure", "--json"])
        report = json.loads(capsys.readouterr().out)
        checks = {check["name"]: check["verdict"] for check in report["checks"]}
        assert found == code
        assert report["remeasured"] is True
        assert checks["slowdown"] == ("passed" if code == 0 else "failed")
        assert checks["memory_growth"] == checks["throughput_per_s"] == "passed"
        assert report["noise_floor"]["ci95"][0] < report["noise_floor"]["ci95"][1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.onnx"], "no such file"),
        (["."], "this folder holds no manifest.json"),
        (["ENGINE", "--case", "batch"], "`batch` is not DIM=SIZE"),
        (["ENGINE", "--case", "batch=0"], "is not DIM=SIZE"),
        (["ENGINE", "--case", "batch=2"], "unknown dim `batch`"),
        (["ENGINE", "--case", "batch=2", "--inputs", "x.npz"], "leave out --case or --inputs"),
        (["ENGINE", "--inputs", "x.npz"], "the inputs cannot be read"),
        (["ENGINE", "--inputs", "other.npz"], "unknown input `x`"),
        (["text.onnx", "--runtime", "tensorflow"], "unknown runtime `tensorflow`"),
        (["text.onnx"], "text.onnx"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_one_message(capsys, tmp_path, monkeypatch, engines, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "x.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", y=np.ones(3))
    given = [str(engines[6]) if text == "ENGINE" else text for text in arguments]
    assert main(["bench", *given, "--seconds", "0.1"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
