"""PyTorch models through the front end: exported, compared by torch, and found in the cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from optimc.core.errors import InputError, UnavailableError
from optimc.core.worker import Limits
from optimc.frontends import torch_frontend
from optimc.pipeline import ingest_torch
from optimc.pipeline.cache import Cache
from optimc.pipeline.ingest import Source, read_source
from optimc.pipeline.recipe import load_recipe
from optimc.testing.commands import run_optimc
from optimc.testing.runs import run_model

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NETS = """
import torch
from helper import SCALE

class Nested(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
    def forward(self, x, extra):
        y = self.linear(x) * SCALE
        return {"y": y, "parts": (extra["mask"] * 2, y), "x": x}

class Function(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call
    def forward(self, x):
        return self.call(x)

def nested(): return Nested()
def branch(): return Function(lambda x: x * 2 if x.shape[0] == 1 else x + 1)
def noisy(): return Function(lambda x: x + torch.rand_like(x))
def fixed(): return Function(lambda x: x.reshape(2, -1, 4))
def values(): return Function(lambda x: x + 1 if x.sum() > 0 else x)
def fails(): return Function(lambda x: x @ x)
def loaded():
    from pathlib import Path
    from safetensors.torch import load_file
    folder = Path(__file__).parent
    scale = load_file(folder / "scale.safetensors")["scale"]
    scale = scale + torch.load(folder / "shift.pt")["shift"]
    return Function(lambda x: x * float(scale))
def nothing(): return Function(lambda x: 3)
def imaginary(): return Function(lambda x: {"y": x, "z": torch.fft.fft(x)})
def thin(): return Function(lambda x: x.to_sparse())
def unfilled():
    with torch.device("meta"): return torch.nn.Linear(4, 3)
def leaves(): raise SystemExit(3)
def number(): return 3
def broken(): raise KeyError("no")
"""

X = "inputs: {x: {shape: [batch, 4], dtype: float32, range: [-1, 1]}}"
NESTED = (
    "inputs: {x: {shape: [batch, 4], dtype: float32}, "
    "extra.mask: {shape: [batch], dtype: int64, values: [0, 1]}}"
)

Read = Callable[..., Source]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    (tmp_path / "helper.py").write_text("SCALE = 2.0\n", encoding="utf-8")
    cache = Cache(tmp_path / "cache")

    def run(model: str, *rest: str) -> Source:
        recipe = tmp_path / "recipe.yaml"
        lines = [f"model: {model}", *rest, "variants: {fp32: []}"]
        recipe.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with cache.workspace() as workspace:
            return read_source(load_recipe(recipe), cache, Limits(seconds=240), workspace)

    return run


def factory(name: str) -> str:
    return f'{{factory: "nets:{name}"}}'


def test_nested_values_are_flattened_and_found_again(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read(factory("nested"), NESTED)
    signature = source.model.signature
    assert [str(spec) for spec in signature.inputs] == [
        "x: float32[batch, 4]",
        "extra.mask: int64[batch]",
    ]
    assert [spec.name for spec in signature.outputs] == ["y", "parts.0", "parts.1", "x_out"]
    assert [spec.shape for spec in signature.outputs] == [
        ("batch", 3),
        ("batch",),
        ("batch", 3),
        ("batch", 4),
    ]
    assert "the output `x` is called `x_out`, because the name is taken" in source.notes
    assert "agrees with PyTorch on" in source.notes[-1]
    assert "batch=8" in source.notes[-1] or "batch=1" in source.notes[-1]
    assert set(source.files) == {"nets.py", "helper.py"}
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    (found,) = run_model(source.model, [{"x": x, "extra.mask": np.array([1, 0])}])
    assert found["parts.0"].tolist() == [2, 0]
    np.testing.assert_array_equal(found["parts.1"], found["y"])

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch was asked again")

    with monkeypatch.context() as patched:
        patched.setattr(ingest_torch, "TorchFrontEnd", refuse)
        assert read(factory("nested"), NESTED).model.digest == source.model.digest
    (tmp_path / "helper.py").write_text("SCALE = 3.0\n", encoding="utf-8")
    changed = read(factory("nested"), NESTED)
    assert changed.model.digest != source.model.digest
    (tmp_path / "helper.py").write_text("SCALE = 2.0\n", encoding="utf-8")
    monkeypatch.setattr(ingest_torch, "TorchFrontEnd", refuse)
    assert read(factory("nested"), NESTED).model.digest == source.model.digest


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("branch", X, r"output `output` differs by .* at the sizes seeded, batch=1 \(the limit"),
        ("noisy", X, "output `output` differs by"),
        ("fixed", X, r"takes `batch` .*as|cannot trace the model"),
        ("values", X, "cannot trace the model: .*"),
        ("fails", X, r"the module raised RuntimeError on inputs of the sizes x \[2, 4\]"),
        ("nothing", X, "the module returns no tensor"),
        ("imaginary", X, "output `z` is complex64, which engines do not have"),
        ("thin", X, r"output `output` is a tensor of the layout torch\.sparse_coo"),
        ("unfilled", X, r"2 tensors of the module .* have no values \(device meta\): weight, bias"),
        ("leaves", X, "left with exit code 3"),
        ("number", X, "`nets:number` returned int"),
        ("broken", X, "`nets:broken` raised KeyError: 'no'"),
        ("absent", X, "cannot import `nets:absent`: AttributeError"),
    ],
)
def test_modules_that_are_refused(read: Read, name: str, inputs: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(factory(name), inputs)
    assert caught.value.fix
    assert caught.value.where


def test_a_mistyped_factory_is_told_with_its_line_not_with_its_weights(
    read: Read, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    save_file({"scale": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="cannot import `nets:nestd`") as error:
        read('{factory: "nets:nestd", weights: {file: w.safetensors}}', NESTED)
    assert "recipe.yaml:1:" in str(error.value.where)


def test_files_that_the_factory_reads_are_in_the_key(read: Read, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"scale": torch.tensor(2.0)}, tmp_path / "scale.safetensors")
    torch.save({"shift": torch.tensor(1.0)}, tmp_path / "shift.pt")
    first = read(factory("loaded"), X)
    assert set(first.files) == {"nets.py", "helper.py", "scale.safetensors", "shift.pt"}
    save_file({"scale": torch.tensor(5.0)}, tmp_path / "scale.safetensors")
    x = np.ones((1, 4), dtype=np.float32)
    (found,) = run_model(read(factory("loaded"), X).model, [{"x": x}])
    assert found["output"].tolist() == [[6.0] * 4]


@pytest.mark.parametrize("inputs", ["inputs: {}", "inputs: {x: {shape: [batch, 4]}}"])
def test_a_factory_needs_declared_inputs(read: Read, inputs: str) -> None:
    with pytest.raises(InputError, match="does not say the shapes and dtypes of its inputs"):
        read(factory("nested"), inputs)


def test_a_missing_extra_is_named(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_frontend, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"pip install 'optimc\[torch\]'"):
        read(factory("nested"), NESTED)


class Pair(torch.nn.Module):
    def forward(self, x: Any, rows: Any) -> Any:
        return x * 2, rows.sum(1) + 1


def test_programs_name_their_dims_and_outputs(read: Read, tmp_path: Path) -> None:
    dims = {"x": {0: torch.export.Dim("n"), 1: torch.export.Dim("m")}, "rows": {1: None}}
    program = torch.export.export(Pair(), (torch.ones(3, 5), torch.ones(2, 7)), dynamic_shapes=dims)
    torch.export.save(program, tmp_path / "pair.pt2")
    with pytest.raises(InputError, match="the size of the dim `x_dim1` is not known"):
        read("{exported: pair.pt2}")
    sizes = "dims: {x_dim1: {min: 2, typical: 4, max: 9}}"
    signature = read("{exported: pair.pt2}", sizes).model.signature
    assert [str(s) for s in signature.inputs] == [
        "x: float32[batch, x_dim1]",
        "rows: float32[2, 7]",
    ]
    assert [s.shape for s in signature.outputs] == [("batch", "x_dim1"), (2,)]
    named = read(
        "{exported: pair.pt2}",
        "inputs: {x: {shape: [rows, 4]}}",
        "dims: {rows: {min: 1, typical: 2, max: 3}}",
    ).model.signature
    assert named.inputs[0].shape == named.outputs[0].shape == ("rows", 4)
    with pytest.raises(InputError, match="has shape"):
        read("{exported: pair.pt2}", "inputs: {rows: {shape: [2, 8]}}", sizes)
    (tmp_path / "text.pt2").write_text("no program")
    with pytest.raises(InputError, match=r"torch .*cannot read this file"):
        read("{exported: text.pt2}")


def test_the_trained_program_builds(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "models" / "resnet20.pt2", tmp_path)
    recipe = "model: {exported: resnet20.pt2}\nvariants: {fp32: [simplify]}\n"
    targets = "targets: {ort: {runtime: onnxruntime, threads: 1}}\n"
    (tmp_path / "recipe.yaml").write_text(recipe + targets, encoding="utf-8")
    built = run_optimc("build", "recipe.yaml", "-o", "out", "--no-measure", cwd=tmp_path)
    assert built.code == 0, built.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any("agrees with PyTorch" in note for note in report["notes"])
    assert report["source"]["path"] == "resnet20.pt2"
    lock = json.loads((tmp_path / "recipe.lock").read_text())
    assert set(lock["inputs"]) == {"resnet20.pt2"}
    assert {"torch", "onnxscript"} <= set(lock["tools"])
    written = run_optimc("init", "resnet20.pt2", "-o", "init.yaml", cwd=tmp_path)
    assert written.code == 0, written.err
    assert "model: {exported: resnet20.pt2}" in (tmp_path / "init.yaml").read_text()
    checked = run_optimc("check", "init.yaml", cwd=tmp_path)
    assert checked.code == 0, checked.err
    looked = run_optimc("inspect", "resnet20.pt2", cwd=tmp_path)
    assert "linear: float32[batch, 10]" in looked.out


def test_the_trained_factory_computes_what_its_onnx_file_does(
    shared: Path, read: Read, tmp_path: Path, repository: Path
) -> None:
    shutil.copy(repository / "tests" / "frontends" / "user_code" / "cifar_nets.py", tmp_path)
    weights = shared / "models" / "resnet20.safetensors"
    source = read(
        f'{{factory: "cifar_nets:resnet", arguments: {{depth: 20}}, weights: {{file: {weights}}}}}',
        "inputs: {image: {shape: [batch, 3, 32, 32], dtype: float32, range: [-3, 3]}}",
    )
    from optimc.frontends.onnx import load_onnx

    onnx = load_onnx(shared / "models" / "resnet20.onnx", workspace=tmp_path).model
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    (ours,) = run_model(source.model, [{"image": image}])
    (theirs,) = run_model(onnx, [{"input": image}])
    np.testing.assert_allclose(ours["logits"], theirs["logits"], rtol=0, atol=1e-4)
    with pytest.raises(InputError, match=r"the weights do not fit the module: \d+ missing"):
        read(
            f'{{factory: "cifar_nets:resnet", arguments: {{depth: 32}}, '
            f"weights: {{file: {weights}}}}}",
            "inputs: {image: {shape: [batch, 3, 32, 32], dtype: float32}}",
        )
