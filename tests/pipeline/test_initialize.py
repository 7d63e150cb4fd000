from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from optimc.core.errors import InputError
from optimc.frontends.onnx import read_signature
from optimc.pipeline.initialize import initial_recipe, write_initial_recipe
from optimc.pipeline.inputs import check_signature, resolved_dims
from optimc.pipeline.recipe import Recipe, load_recipe

Dims = Sequence[int | str | None]


def save(
    path: Path, inputs: dict[str, tuple[int, Dims]], operator: str = "Relu", **attributes: object
) -> Path:
    """A model that applies one operator to each input and has an output for each."""
    nodes = [
        helper.make_node(operator, [name], [f"out{i}"], **attributes)
        for i, name in enumerate(inputs)
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, dtype, dims) for n, (dtype, dims) in inputs.items()],
        [
            helper.make_tensor_value_info(f"out{i}", dtype, dims)
            for i, (dtype, dims) in enumerate(inputs.values())
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def convolution(path: Path, dims: Dims) -> Path:
    """A model with one convolution of one channel to one."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [2.0])
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["out"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, dims)],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def initialized(model: Path, folder: Path) -> Recipe:
    """The written recipe, loaded and checked against the model as a build does it."""
    to = folder / "recipe.yaml"
    text = write_initial_recipe(model, to)
    assert to.read_text(encoding="utf-8") == text
    recipe = load_recipe(to)
    signature = read_signature(model)
    check_signature(recipe, signature)
    assert resolved_dims(recipe, signature, {}) == dict(recipe.dims)
    return recipe


def test_a_network_on_images(tmp_path: Path) -> None:
    recipe = initialized(convolution(tmp_path / "m.onnx", ["batch", 1, 8, 8]), tmp_path)
    assert recipe.model.onnx == tmp_path / "m.onnx"
    image = recipe.inputs["image"]
    assert (image.shape, image.dtype, image.range) == (("batch", 1, 8, 8), "float32", (-3, 3))
    assert recipe.dims["batch"].max == 8
    assert recipe.data is None
    assert recipe.gate is None
    names = {name: [p.name for p in v.passes] for name, v in recipe.variants.items()}
    assert names == {"fp32": ["simplify", "fuse"], "int8": ["simplify", "fuse", "quantize_int8"]}
    assert recipe.targets["ort"].runtime == "onnxruntime"
    assert recipe.benchmark.cases == ({"batch": 1},)


def test_inputs_of_every_kind(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.onnx",
        {
            "input_ids": (TensorProto.INT64, ["batch", "length"]),
            "mask": (TensorProto.BOOL, ["batch", "length"]),
            "bytes": (TensorProto.UINT8, ["batch", 4, 4, 3]),
            "photo": (TensorProto.FLOAT16, ["batch", 3, "height", "width"]),
            "features": (TensorProto.DOUBLE, [2, "width_of_features"]),
            "scalar": (TensorProto.FLOAT, []),
        },
        operator="Identity",
    )
    recipe = initialized(model, tmp_path)
    assert recipe.inputs["input_ids"].values == (0, 1)
    assert "#     tokenizer: tokenizer.json" in initial_recipe(model, to=tmp_path / "r.yaml")
    assert recipe.inputs["bytes"].values == (0, 255)
    assert recipe.inputs["mask"].values is None
    assert recipe.inputs["photo"].dtype == "float16"
    assert recipe.inputs["scalar"].shape == ()
    assert recipe.dims["length"].typical == 32
    assert recipe.dims["height"].min == recipe.dims["height"].max == 224
    assert list(recipe.variants) == ["fp32"]
    assert "no convolution and no matrix product" in (tmp_path / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    "name",
    ["input.1", "x:0", "no", "1", "a b", "ü", 'q"uote', "${HOME}", "line\nbreak", "\x7f", "😀"],
)
def test_names_that_yaml_would_read_otherwise(tmp_path: Path, name: str) -> None:
    model = save(tmp_path / "m.onnx", {name: (TensorProto.FLOAT, [name, 3])})
    recipe = initialized(model, tmp_path)
    assert recipe.inputs[name].shape == (name, 3)
    assert list(recipe.dims) == [name]


def test_dims_without_a_name_get_one(tmp_path: Path) -> None:
    model = save(tmp_path / "m.onnx", {"x": (TensorProto.FLOAT, [None, 3])})
    assert list(initialized(model, tmp_path).dims) == ["x_dim0"]


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    model = save(tmp_path / "models" / "my model.onnx", {"x": (TensorProto.FLOAT, [1])})
    to = tmp_path / "recipes" / "recipe.yaml"
    write_initial_recipe(model, to)
    assert 'model: {onnx: "../models/my model.onnx"}' in to.read_text()
    assert "model: {onnx: ../../m.onnx}" in initial_recipe(
        save(tmp_path / "m.onnx", {"x": (TensorProto.FLOAT, [1])}),
        to=tmp_path / "a" / "b" / "recipe.yaml",
    )
    assert load_recipe(to).model.onnx.resolve() == model
    monkeypatch.chdir(tmp_path / "models")
    text = initial_recipe(Path("my model.onnx"), to=Path("here.yaml"))
    assert 'model: {onnx: "my model.onnx"}' in text


def test_a_quantized_model_gets_no_int8(tmp_path: Path) -> None:
    model = convolution(tmp_path / "m.onnx", [1, 1, 4, 4])
    proto = onnx.load(model)
    proto.graph.node[0].input[0] = "x"
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    proto.graph.initializer.append(scale)
    proto.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "scale"], ["x"]))
    proto.graph.node.insert(0, helper.make_node("QuantizeLinear", ["image", "scale"], ["q"]))
    onnx.save(proto, model)
    assert list(initialized(model, tmp_path).variants) == ["fp32"]


def test_examples_in_comments_are_valid(tmp_path: Path) -> None:
    """Whoever removes the comment signs gets a recipe that loads, once the files are there."""
    to = tmp_path / "recipe.yaml"
    text = write_initial_recipe(convolution(tmp_path / "m.onnx", ["batch", 1, 8, 8]), to)
    for name in ("calibration.npz", "evaluation.npz"):
        (tmp_path / name).write_bytes(b"x")
    lines = text.splitlines()
    sections = ("# data:", "#   ", "# metrics:", "# gate:")
    to.write_text("\n".join(ln[2:] if ln.startswith(sections) else ln for ln in lines))
    recipe = load_recipe(to)
    assert recipe.data is not None
    assert list(recipe.data.splits) == ["calibration", "evaluation"]
    assert list(recipe.metrics) == ["top1"]
    assert recipe.gate is not None
    assert recipe.gate.drop == {"top1": 0.003}


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    model = save(tmp_path / "m.onnx", {"x": (TensorProto.FLOAT, [1])})
    to = tmp_path / "recipe.yaml"
    to.write_text("mine")
    with pytest.raises(InputError, match=r"exists already\n  fix: .*--force"):
        write_initial_recipe(model, to)
    assert to.read_text() == "mine"
    write_initial_recipe(model, to, force=True)
    assert load_recipe(to).seed == 0


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    to = tmp_path / "recipe.yaml"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="not an ONNX model"):
        write_initial_recipe(broken, to)
    with pytest.raises(InputError, match="cannot read the model"):
        write_initial_recipe(tmp_path / "none.onnx", to)
    with pytest.raises(InputError, match="there is no such file"):
        write_initial_recipe(tmp_path / "model.pt2", to)
    with pytest.raises(InputError, match="holds weights, and no model"):
        write_initial_recipe(tmp_path / "model.pth", to)
    text = save(tmp_path / "text.onnx", {"t": (TensorProto.STRING, [1])}, operator="Identity")
    with pytest.raises(InputError, match="input `t` holds strings"):
        write_initial_recipe(text, to)
    assert not to.exists()


def test_only_onnx_is_imported(tmp_path: Path) -> None:
    model = save(tmp_path / "m.onnx", {"x": (TensorProto.FLOAT, [1])})
    code = (
        "import sys; from pathlib import Path; from optimc.pipeline.initialize import *;"
        f"initial_recipe(Path({str(model)!r}), to=Path('r.yaml'));"
        "heavy = ('onnx_ir', 'scipy', 'torch', 'onnxruntime', 'openvino');"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
