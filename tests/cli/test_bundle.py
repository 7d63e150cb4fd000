"""`optimc bundle` on a real build: what servers read, and the proof that travels with it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from optimc.testing.commands import Finished, run_optimc

DIGITS = """
model: {{onnx: {model}}}
inputs: {{input: {{range: [0, 1]}}}}
dims: {{batch: {{min: 1, typical: 1, max: 16}}}}
variants: {{fp32: [], int8: [simplify, quantize_int8]}}
targets:
  ort: {{runtime: onnxruntime, threads: 1}}
  ov: {{runtime: openvino, threads: 1}}
"""

INFERENCE_SERVICE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": {
            "type": "object",
            "properties": {
                "name": {"pattern": "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"},
                "annotations": {"additionalProperties": {"type": "string"}},
            },
        },
        "spec": {
            "additionalProperties": False,
            "properties": {
                "predictor": {
                    "additionalProperties": False,
                    "properties": {
                        "model": {
                            "additionalProperties": False,
                            "required": ["modelFormat"],
                            "properties": {
                                "modelFormat": {
                                    "additionalProperties": False,
                                    "required": ["name"],
                                    "properties": {
                                        "name": {"enum": ["onnx", "triton"]},
                                        "version": {"type": "string"},
                                    },
                                },
                                "runtime": {"type": "string"},
                                "protocolVersion": {"enum": ["v1", "v2", "grpc-v2"]},
                                "storageUri": {"pattern": "^[a-z0-9]+://"},
                                "resources": {
                                    "additionalProperties": False,
                                    "properties": {
                                        kind: {
                                            "additionalProperties": False,
                                            "properties": {
                                                "cpu": {"pattern": "^[0-9]+m?$"},
                                                "memory": {"pattern": "^[0-9]+[KMGT]i$"},
                                            },
                                        }
                                        for kind in ("requests", "limits")
                                    },
                                },
                            },
                        }
                    },
                }
            },
        },
    },
}
"""The part of KServe's v1beta1 API that is used, with nothing else allowed in it.

KServe publishes its schema as a resource of Kubernetes and in its Python package, which wants an
old protobuf and so cannot stand beside ours. What is written was held against the classes that
kserve 0.15.2 generates from it: each name here is one of theirs.
"""

MODEL_SERVER: dict[str, Any] = {
    "additionalProperties": False,
    "required": ["model_config_list"],
    "properties": {
        "model_config_list": {
            "type": "array",
            "minItems": 1,
            "items": {
                "additionalProperties": False,
                "required": ["config"],
                "properties": {
                    "config": {
                        "additionalProperties": False,
                        "required": ["name", "base_path"],
                        "properties": {
                            "name": {"type": "string"},
                            "base_path": {"type": "string"},
                            "target_device": {"type": "string"},
                            "plugin_config": {
                                "type": "object",
                                "additionalProperties": {"type": ["string", "number"]},
                            },
                        },
                    }
                },
            },
        }
    },
}
"""The part of OpenVINO Model Server's configuration that is used (its src/schema.cpp)."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    folder = tmp_path_factory.mktemp("built")
    model = repository / "recipes" / "quickstart" / "digits.onnx"
    (folder / "digits.yaml").write_text(DIGITS.format(model=model))
    done = run_optimc("build", "digits.yaml", "-o", "out", "--no-measure", cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def bundle(built: Path, tmp_path: Path):
    def run(*options: str) -> tuple[Finished, Path]:
        done = run_optimc("bundle", built / "out", "-o", "b", *options, cwd=tmp_path)
        return done, tmp_path / "b"

    return run


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the bundle's own script where optimc cannot be imported."""
    return subprocess.run(
        [sys.executable, "-P", folder / "check.py"],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def model_config(folder: Path, name: str) -> Any:
    """config.pbtxt, read by the protobuf classes of Triton's own client."""
    from google.protobuf import text_format

    # The package's `grpc` module wants the grpc library, its generated file does not.
    files = metadata.files("tritonclient")
    assert files is not None
    [path] = [f for f in files if f.match("tritonclient/grpc/model_config_pb2.py")]
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(path.locate()))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (folder / "models" / name / "config.pbtxt").read_text()
    return text_format.Parse(text, module.ModelConfig())


@pytest.mark.parametrize("cell", ["int8/ort", "int8/ov"])
def test_plain_proves_itself_without_optimc(bundle, cell: str) -> None:
    done, folder = bundle("--cell", cell)
    assert done.code == 0, done.err
    assert "is not what ships" in done.err
    assert "import optimc" not in (folder / "check.py").read_text()
    result = checked(folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("ok, bit-equal") == 2
    about = json.loads((folder / "bundle.json").read_text())
    assert (about["cell"], about["format"], about["version"]) == (cell, "plain", 1)
    assert (folder / "load.cpp").exists() == (cell == "int8/ort")
    if cell == "int8/ort":
        assert "this very file was not compiled" in (folder / "load.cpp").read_text()


def test_the_script_tells_a_wrong_model(bundle, built: Path) -> None:
    _, folder = bundle("--cell", "int8/ort")
    shutil.copyfile(built / "out/artifacts/fp32/ort/model.onnx", folder / "model" / "model.onnx")
    data = dict(np.load(folder / "golden" / "0.npz"))
    data["output:logits"] = -data["output:logits"]
    np.savez(folder / "golden" / "0.npz", **data)
    result = checked(folder)
    assert result.returncode == 1
    assert "0.npz logits: DIFFERS, SQNR" in result.stdout


@pytest.mark.parametrize(
    ("cell", "backend"), [("int8/ort", "onnxruntime"), ("fp32/ov", "openvino")]
)
def test_triton_reads_the_configuration(bundle, cell: str, backend: str) -> None:
    done, folder = bundle(
        "--format", "triton", "--cell", cell, "--name", "digits_1", "--version", "7"
    )
    assert done.code == 0, done.err
    config = model_config(folder, "digits_1")
    assert config.name == "digits_1"
    assert config.backend == backend
    assert config.max_batch_size == 16
    assert config.HasField("dynamic_batching")
    [given] = config.input
    assert (given.name, list(given.dims)) == ("input", [1, 8, 8])
    assert [list(output.dims) for output in config.output] == [[10]]
    assert (folder / "models" / "digits_1" / "7" / config.default_model_filename).is_file()
    assert [warm.batch_size for warm in config.model_warmup] == [1, 16]
    for warm in config.model_warmup:
        file = folder / "models" / "digits_1" / "warmup" / warm.inputs["input"].input_data_file
        assert file.stat().st_size == warm.batch_size * 64 * 4
    assert checked(folder).returncode == 0


def test_kserve_takes_the_resource(bundle) -> None:
    done, folder = bundle("--format", "kserve", "--cell", "int8/ort", "--name", "digits")
    assert done.code == 0, done.err
    resource = yaml.safe_load((folder / "inferenceservice.yaml").read_text())
    jsonschema.validate(resource, INFERENCE_SERVICE)
    model = resource["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "onnx", "version": "1"}
    assert model_config(folder, "digits").max_batch_size == 16
    assert checked(folder).returncode == 0


def test_model_server_takes_what_openvino_built(bundle) -> None:
    done, folder = bundle("--format", "ovms", "--cell", "int8/ov", "--name", "digits")
    assert done.code == 0, done.err
    config = json.loads((folder / "models" / "config.json").read_text())
    jsonschema.validate(config, MODEL_SERVER)
    [entry] = config["model_config_list"]
    assert entry["config"]["base_path"] == "/models/digits"
    assert entry["config"]["plugin_config"]["INFERENCE_PRECISION_HINT"] == "f32"
    assert (folder / "models" / "digits" / "1" / "model.xml").is_file()
    assert checked(folder).returncode == 0


def test_bad_input_ends_in_one_message(bundle, built: Path, tmp_path: Path) -> None:
    for options, expected in (
        (["--format", "tritn"], "did you mean `triton`"),
        (["--cell", "int8/orr"], "did you mean `int8/ort`"),
        ([], "no cell of this build ships"),
        (["--format", "ovms", "--cell", "int8/ort"], "choose a cell whose target is openvino"),
        (["--format", "kserve", "--cell", "int8/ort", "--name", "My.Net"], "--name my-net"),
        (["--cell", "int8/ort", "--name", "../up"], "is no name for a model"),
    ):
        done, folder = bundle(*options)
        assert done.code == 2, (options, done.err)
        assert expected in done.err
        assert not done.traceback
        assert not folder.exists() or not any(folder.iterdir())


def test_only_bundles_are_replaced(bundle, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("years of work")
    done, folder = bundle("--cell", "int8/ort")
    assert done.code == 2
    assert "choose a new or empty folder" in done.err
    (folder / "thesis.txt").unlink()
    assert bundle("--cell", "int8/ort")[0].code == 0
    assert bundle("--cell", "fp32/ort")[0].code == 0
    assert json.loads((folder / "bundle.json").read_text())["cell"] == "fp32/ort"


def test_a_changed_engine_and_a_folder_that_is_no_build_are_refused(
    built: Path, tmp_path: Path
) -> None:
    shutil.copytree(built / "out", tmp_path / "out")
    with (tmp_path / "out/artifacts/int8/ort/model.onnx").open("ab") as file:
        file.write(b"\0")
    done = run_optimc("bundle", "out", "--cell", "int8/ort", cwd=tmp_path)
    assert done.code == 2
    assert "not the one that was built and verified" in done.err
    done = run_optimc("bundle", ".", cwd=tmp_path)
    assert done.code == 2
    assert "the build's report cannot be read" in done.err
    (tmp_path / "report.json").write_text('{"schema": 2}')
    done = run_optimc("bundle", ".", cwd=tmp_path)
    assert done.code == 2
    assert "no report of this version" in done.err
    assert not done.traceback
