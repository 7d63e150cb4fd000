"""The ONNX front end: what it takes in, in which form, and what it says of the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimc.core.errors import InputError
from optimc.core.model import SOURCE_KEY, OnnxModel, load_model
from optimc.core.onnx_signature import all_values
from optimc.core.worker import Limits
from optimc.frontends.onnx import Loaded, load_onnx, read_signature
from optimc.frontends.onnx_service import OnnxService
from optimc.testing import as_model, run_model
from optimc.testing.graphs import GraphBuilder, branches, small_models

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])


def relu(
    *nodes: onnx.NodeProto,
    inputs: tuple[onnx.ValueInfoProto, ...] = (X,),
    outputs: tuple[onnx.ValueInfoProto, ...] = (Y,),
    weights: tuple[onnx.TensorProto, ...] = (),
    opset: int = 18,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model of the given nodes, by default one Relu."""
    nodes = nodes or (helper.make_node("Relu", ["x"], ["y"], name="only"),)
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def load(path: Path, folder: Path, **arguments: object) -> Loaded:
    return load_onnx(path, workspace=folder, **arguments)  # type: ignore[arg-type]


def refusal(path: Path, folder: Path) -> InputError:
    """The error of what runs in the worker, here in this process because there are many."""
    with pytest.raises(InputError) as caught:
        OnnxService().examine({}, str(path), {})
    return checked(caught.value, path)


def checked(error: InputError, path: Path) -> InputError:
    assert error.where == str(path)
    assert len(str(error)) < 900
    assert "Traceback" not in str(error)
    return error


# What is taken in, and how it comes out.


@pytest.mark.parametrize("name", sorted(small_models()))
def test_loaded_model_computes_the_same(name: str, tmp_path: Path) -> None:
    model = small_models()[name]
    model.write_onnx(tmp_path / "model.onnx")
    loaded = load(tmp_path / "model.onnx", tmp_path)
    assert loaded.model.digest == model.digest
    assert loaded.notes == ()


@pytest.mark.parametrize("name", sorted(small_models()))
def test_signature_can_be_read_alone(name: str, tmp_path: Path) -> None:
    model = small_models()[name]
    model.write_onnx(tmp_path / "model.onnx")
    assert read_signature(tmp_path / "model.onnx") == model.signature


def test_reading_a_signature_imports_no_graph_library(tmp_path: Path) -> None:
    path = saved(relu(), tmp_path)
    code = (
        "import sys, pathlib; from optimc.frontends.onnx import read_signature;"
        "print(read_signature(pathlib.Path(sys.argv[1])).inputs[0]);"
        "assert not {'onnx_ir', 'onnxruntime', 'onnxscript'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "x: float32[batch, 4]"


def test_every_value_has_its_own_name_as_source(tmp_path: Path) -> None:
    branches().write_onnx(tmp_path / "model.onnx")
    model = load(tmp_path / "model.onnx", tmp_path).model
    values = [value for value in all_values(model.ir) if value.name]
    assert len({value.name for value in values}) == len(values)
    assert all(value.meta[SOURCE_KEY] == value.name for value in values)


def test_names_that_two_branches_share_become_two(tmp_path: Path) -> None:
    """ONNX allows equal names in sibling subgraphs; calibration goes by name."""
    b = GraphBuilder()
    x, flag = b.input("x", ["batch", 3]), b.input("flag", [], "bool")
    sides = []
    for op_type in ("Relu", "Neg"):
        side = GraphBuilder()
        side.node(op_type, x, to="inner")
        side.node("Abs", "inner", to="result", name="last")
        side.output("result", ["batch", 3])
        sides.append(side.graph())
    b.node("If", flag, then_branch=sides[0], else_branch=sides[1], to="y")
    b.output("y", ["batch", 3])
    model = load(saved(b.proto(), tmp_path), tmp_path).model
    names = [value.name for value in all_values(model.ir)]
    assert names.count("inner") == 1
    assert "inner_1" in names
    nodes = [node.name for node in model.ir.graph.all_nodes()]
    assert len(set(nodes)) == len(nodes)


def test_unnamed_nodes_get_names_and_left_out_outputs_do_not(tmp_path: Path) -> None:
    pool = helper.make_node("MaxPool", ["x"], ["p", ""], kernel_shape=[1])
    shape = ["batch", 2, 4]
    proto = relu(
        pool,
        helper.make_node("Relu", ["p"], ["y"]),
        inputs=(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),),
        outputs=(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape),),
    )
    graph = load(saved(proto, tmp_path), tmp_path).model.ir.graph
    assert [node.name for node in graph] == ["MaxPool", "Relu"]
    assert not graph[0].outputs[-1].name or len(graph[0].outputs) == 1


def test_unnamed_dims_of_the_interface_get_names(tmp_path: Path) -> None:
    shapes = ([None, "?", -1, 4], ["", "?", None, 4])
    inputs, outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip("xy", shapes, strict=True)
    )
    path = saved(relu(inputs=(inputs,), outputs=(outputs,)), tmp_path)
    signature = load(path, tmp_path).model.signature
    assert signature.inputs[0].shape == ("x_dim0", "x_dim1", "x_dim2", 4)
    assert signature.outputs[0].shape == ("y_dim0", "y_dim1", "y_dim2", 4)
    assert read_signature(path) == signature


def test_recipe_may_name_and_fix_dims(tmp_path: Path) -> None:
    path = saved(relu(), tmp_path)
    named = load(path, tmp_path, declared_inputs={"x": ["n", 4]}).model.signature
    assert (named.inputs[0].shape, named.outputs[0].shape) == (("n", 4), ("n", 4))
    fixed = load(path, tmp_path, declared_inputs={"x": [2, 4]}).model
    assert (fixed.signature.inputs[0].shape, fixed.signature.outputs[0].shape) == ((2, 4), (2, 4))
    run_model(fixed, [{"x": np.zeros((2, 4), np.float32)}])


@pytest.mark.parametrize(
    ("shape", "part"),
    [(["batch", 4, 1], "another rank"), (["batch", 5], "5 for the fixed 4"), ([1], "another rank")],
)
def test_recipe_cannot_contradict_the_model(
    shape: list[int | str], part: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=part) as caught:
        load(saved(relu(), tmp_path), tmp_path, declared_inputs={"x": shape})
    assert "shape: [batch, 4]" in str(caught.value.fix)


def test_recipe_cannot_declare_an_unknown_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown input `z`") as caught:
        load(saved(relu(), tmp_path), tmp_path, declared_inputs={"z": [1]})
    assert caught.value.fix == "known: x"


def test_metadata_and_stack_traces_are_stripped(tmp_path: Path) -> None:
    secret = "/home/somebody/project/train.py"
    proto = relu()
    proto.doc_string = proto.producer_name = proto.graph.doc_string = secret
    proto.graph.node[0].doc_string = secret
    for value in (*proto.graph.input, *proto.graph.output):
        value.doc_string = secret
    for holder in (proto.metadata_props, proto.graph.node[0].metadata_props):
        holder.add(key="pkg.torch.onnx.stack_trace", value=secret)
    loaded = load(saved(proto, tmp_path), tmp_path).model
    loaded.save(tmp_path / "stored")
    assert secret.encode() not in (tmp_path / "stored" / "model.onnx").read_bytes()
    assert loaded.digest == load(saved(relu(), tmp_path), tmp_path).model.digest


def test_initializers_among_the_inputs_are_constants(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4,), np.float32), "w")
    listed = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])
    add = helper.make_node("Add", ["x", "w"], ["y"])
    path = saved(relu(add, inputs=(X, listed), weights=(weight,)), tmp_path)
    loaded = load(path, tmp_path)
    assert [value.name for value in loaded.model.ir.graph.inputs] == ["x"]
    assert loaded.notes == ("1 initializers that the file also lists as inputs are constants here",)
    assert read_signature(path) == loaded.model.signature


def test_functions_are_inlined(tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["b"])]
    opsets = [helper.make_opsetid("", 18)]
    function = helper.make_function("local", "NegRelu", ["a"], ["b"], body, opsets)
    call = helper.make_node("NegRelu", ["x"], ["y"], domain="local")
    proto = relu(call, domains=("local",))
    proto.functions.append(function)
    loaded = load(saved(proto, tmp_path), tmp_path)
    assert [node.op_type for node in loaded.model.ir.graph] == ["Relu", "Neg"]
    assert not loaded.model.ir.functions
    assert loaded.notes == ("functions were inlined",)


def test_old_opset_is_raised_and_compared(tmp_path: Path) -> None:
    squeeze = helper.make_node("Squeeze", ["x"], ["y"], axes=[1])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4])
    loaded = load(saved(relu(squeeze, inputs=(x,), opset=9), tmp_path), tmp_path)
    assert loaded.model.ir.opset_imports[""] == 13
    assert loaded.notes == ("opset 9 was raised to 13",)
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 1, 4)}
    np.testing.assert_array_equal(run_model(loaded.model, [feeds])[0]["y"], feeds["x"][:, 0])


def test_new_opset_and_ir_version_stay(tmp_path: Path) -> None:
    loaded = load(saved(relu(opset=19), tmp_path), tmp_path).model
    assert (loaded.ir.opset_imports[""], loaded.ir.ir_version) == (19, 10)


def test_opsets_older_than_the_runtime_are_refused(tmp_path: Path) -> None:
    """PRelu of opset 6 has one slope per channel. onnx's converter leaves it to the last axis, and
    no runtime here runs the original to tell: such a model must not be taken in.
    """
    slope = numpy_helper.from_array(np.array([0.1, 0.5, 0.9], np.float32), "s")
    shape = ["batch", 3, 3]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    prelu = helper.make_node("PRelu", ["x", "s"], ["y"])
    proto = relu(prelu, inputs=(x,), outputs=(y,), weights=(slope,), opset=6)
    error = refusal(saved(proto, tmp_path), tmp_path)
    assert error.fix == "export with opset 13 or later: ONNX Runtime begins at 7"


@pytest.mark.parametrize("version", [2**31, -1, 2**62])
def test_versions_of_domains_that_cannot_be_are_refused(version: int, tmp_path: Path) -> None:
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0])
    proto = relu(scaler, domains=("ai.onnx.ml",))
    proto.opset_import[1].version = version
    error = refusal(saved(proto, tmp_path), tmp_path)
    assert f"version {version} of the domain `ai.onnx.ml`" in str(error)
    assert error.fix is not None
    assert "opset_import" in error.fix


@pytest.mark.parametrize("kind", ["tensor_type", "sequence_type"])
def test_element_types_that_onnx_does_not_know_are_refused(kind: str, tmp_path: Path) -> None:
    nodes = (helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"]))
    proto = relu(*nodes)
    value = proto.graph.value_info.add(name="h")
    tensor = value.type if kind == "tensor_type" else value.type.sequence_type.elem_type
    tensor.tensor_type.elem_type = 39
    error = refusal(saved(proto, tmp_path), tmp_path)
    assert "value `h` has the element type 39" in str(error)


def test_wrong_inner_shapes_are_forgotten(tmp_path: Path) -> None:
    nodes = (helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"]))
    proto = relu(*nodes)
    proto.graph.value_info.append(
        helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 5])
    )
    loaded = load(saved(proto, tmp_path), tmp_path)
    assert loaded.model.ir.graph[0].outputs[0].shape is None
    assert "shapes of inner values in the file are not used" in loaded.notes[0]


def test_output_without_a_shape_gets_the_inferred_one(tmp_path: Path) -> None:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    loaded = load(saved(relu(outputs=(y,)), tmp_path), tmp_path)
    assert loaded.model.signature.outputs[0].shape == ("batch", 4)
    assert loaded.notes == ("the file gives no shape for the output `y`: it was inferred",)


def test_input_without_a_shape_takes_the_declared_one(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    path = saved(relu(inputs=(x,)), tmp_path)
    assert "shape" in refusal(path, tmp_path).what
    loaded = load(path, tmp_path, declared_inputs={"x": ["batch", 4]})
    assert loaded.model.signature.inputs[0].shape == ("batch", 4)


# Files that are refused.


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "cannot read the model" in refusal(tmp_path / "none.onnx", tmp_path).what
    assert "a folder" in refusal(tmp_path, tmp_path).what


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "the file is empty"),
        (b"hello, this is a text file\n" * 40, "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not an ONNX model"),
        (b"PK\x03\x04" + bytes(100), "not an ONNX model"),
        (bytes(64), "not an ONNX model"),
    ],
)
def test_files_that_are_not_onnx(content: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert part in refusal(path, tmp_path).what
    with pytest.raises(InputError, match=part):
        read_signature(path)


def test_truncated_files(tmp_path: Path) -> None:
    whole = onnx.ModelProto()
    small_models()["convolutions"].write_onnx(tmp_path / "whole.onnx")
    content = (tmp_path / "whole.onnx").read_bytes()
    whole.ParseFromString(content)
    path = tmp_path / "model.onnx"
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        assert "truncated" in refusal(path, tmp_path).what


def test_device_files_are_refused(tmp_path: Path) -> None:
    assert "not a regular file" in refusal(Path("/dev/zero"), tmp_path).what
    fifo = tmp_path / "fifo.onnx"
    os.mkfifo(fifo)
    assert "not a regular file" in refusal(fifo, tmp_path).what


def node(
    op_type: str, inputs: list[str], output: str, name: str, **attrs: object
) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=name, **attrs)


def _sparse() -> onnx.ModelProto:
    proto = relu(node("Add", ["x", "w"], "y", "add"))
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return proto


def _short_weight() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.dims[0] = 2**40
    return relu(node("Add", ["x", "w"], "y", "add"), weights=(weight,))


def _recursive() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    again = helper.make_node("F", ["a"], ["b"], domain="local")
    proto = relu(helper.make_node("F", ["x"], ["y"], domain="local"), domains=("local",))
    proto.functions.append(helper.make_function("local", "F", ["a"], ["b"], [again], opsets))
    return proto


def _billion_laughs() -> onnx.ModelProto:
    """30 functions, each calling the next twice: 2^30 nodes once inlined."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    proto = relu(helper.make_node("F0", ["x"], ["y"], domain="local"), domains=("local",))
    for level in range(30):
        twice = [
            helper.make_node(f"F{level + 1}", ["a"], ["t"], domain="local"),
            helper.make_node(f"F{level + 1}", ["t"], ["b"], domain="local"),
        ]
        proto.functions.append(
            helper.make_function("local", f"F{level}", ["a"], ["b"], twice, opsets)
        )
    last = [helper.make_node("Relu", ["a"], ["b"])]
    proto.functions.append(helper.make_function("local", "F30", ["a"], ["b"], last, opsets))
    return proto


def _string_input() -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.STRING, ["batch"])
    y = helper.make_tensor_value_info("y", TensorProto.STRING, ["batch"])
    return relu(node("Identity", ["x"], "y", "same"), inputs=(x,), outputs=(y,))


def _sequence_output() -> onnx.ModelProto:
    y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    return relu(node("SequenceConstruct", ["x"], "y", "list"), outputs=(y,))


def _huge_input(*shape: int) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    return relu(inputs=(x,), outputs=(helper.make_tensor_value_info("y", 1, shape),))


BAD_MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[str, ...]]] = {
    "output named like an inner value": (
        lambda: relu(node("Relu", ["x"], "y", "embed"), node("Abs", ["x"], "y", "pool")),
        ("`y`", "also the name of an output", "`embed` (Relu)", "`pool` (Abs)"),
    ),
    "value named like an input": (
        lambda: relu(node("Relu", ["x"], "x", "a"), node("Abs", ["x"], "y", "b")),
        ("`x` is defined twice", "the list of inputs", "`a` (Relu)"),
    ),
    "two initializers of one name": (
        lambda: relu(
            node("Add", ["x", "w"], "y", "add"),
            weights=(numpy_helper.from_array(np.ones(4, np.float32), "w"),) * 2,
        ),
        ("`w` is defined twice",),
    ),
    "output listed twice": (lambda: relu(outputs=(Y, Y)), ("`y` is listed twice",)),
    "cycle": (
        lambda: relu(
            node("Add", ["x", "b"], "a", "first"),
            node("Relu", ["a"], "b", "second"),
            node("Neg", ["b"], "y", "third"),
        ),
        ("the graph has a cycle", "`first` (Add)", "`second` (Relu)"),
    ),
    "wrong order": (
        lambda: relu(node("Neg", ["h"], "y", "late"), node("Relu", ["x"], "h", "early")),
        ("`late` (Neg) reads `h` before node `early` (Relu)",),
    ),
    "undefined value": (
        lambda: relu(node("Add", ["x", "ghost"], "y", "add")),
        ("`add` (Add) reads `ghost`, which nothing defines",),
    ),
    "output that nothing computes": (
        lambda: relu(node("Relu", ["x"], "z", "only")),
        ("no node computes the output `y`",),
    ),
    "misspelt operator": (
        lambda: relu(node("Sofmax", ["x"], "y", "end")),
        ("node `end` (Sofmax)", "no operator `Sofmax`", "did you mean `Softmax`?"),
    ),
    "operator of a later opset": (
        lambda: relu(node("Gelu", ["x"], "y", "g"), opset=18),
        ("`Gelu` is not in opset 18",),
    ),
    "custom operator": (
        lambda: relu(
            helper.make_node("Magic", ["x"], ["y"], name="spell", domain="my.ops"),
            domains=("my.ops",),
        ),
        ("node `spell` (Magic)", "domain `my.ops`"),
    ),
    "opset of the future": (lambda: relu(opset=9999), ("opset 9999",)),
    "wrong attribute": (
        lambda: relu(node("Relu", ["x"], "y", "only", wrong=1)),
        ("not a valid ONNX model", "wrong"),
    ),
    "strings": (_string_input, ("input `x` holds strings",)),
    "sequence": (_sequence_output, ("output `y` is a sequence",)),
    "sparse initializer": (_sparse, ("sparse initializer `w`",)),
    "initializer shorter than its dims": (_short_weight, ("16 bytes", "4,398,046,511,104")),
    "huge input": (lambda: _huge_input(2**31, 2**31), ("input `x` has the shape",)),
    "negative dim": (lambda: _huge_input(-5, 2), ("a negative dim",)),
    "function that calls itself": (_recursive, ("the function `F` calls itself",)),
    "function bomb": (_billion_laughs, ("more than 1,000,000 nodes",)),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models_are_named(case: str, tmp_path: Path) -> None:
    build, parts = BAD_MODELS[case]
    message = str(refusal(saved(build(), tmp_path), tmp_path))
    for part in parts:
        assert part in message


# External data.


def external(folder: Path, **changes: str) -> Path:
    """A model with 400 bytes of external data in `weights.bin`; `changes` are entries of it."""
    weight = numpy_helper.from_array(np.arange(100, dtype=np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 100])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 100])
    proto = relu(node("Add", ["x", "w"], "y", "add"), inputs=(x,), outputs=(y,), weights=(weight,))
    (folder / "weights.bin").write_bytes(weight.raw_data)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "length": "400", **changes}.items():
        tensor.external_data.add(key=key, value=value)
    return saved(proto, folder)


def test_small_external_data_is_read(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = load(path, tmp_path).model
    feeds = {"x": np.zeros((1, 100), np.float32)}
    np.testing.assert_array_equal(run_model(model, [feeds])[0]["y"][0], np.arange(100))
    model.save(tmp_path / "stored")
    (tmp_path / "weights.bin").unlink()
    stored = load_model(tmp_path / "stored")
    assert isinstance(stored, OnnxModel)
    assert stored.sealed().digest == model.digest


@pytest.mark.parametrize(
    ("location", "part"),
    [
        ("/etc/passwd", "an absolute path"),
        ("../secret.bin", "leaves the model's folder"),
        ("a/../../secret.bin", "leaves the model's folder"),
        ("C:\\secret.bin", "an absolute path"),
        ("missing.bin", "cannot be read"),
        ("", "not a file name"),
        ("linked.bin", "a link that leaves the model's folder"),
        ("linked/secret.bin", "a link that leaves the model's folder"),
        ("device", "a link that leaves the model's folder"),
        ("pipe", "not a regular file"),
        ("sub", "not a regular file"),
    ],
)
def test_external_data_stays_in_the_folder(location: str, part: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(400))
    (folder / "linked.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "device").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")
    error = refusal(external(folder, location=location), tmp_path)
    assert "initializer `w`" in error.what
    assert part in error.what


def test_link_within_the_folder_is_fine(tmp_path: Path) -> None:
    path = external(tmp_path, location="link.bin")
    (tmp_path / "link.bin").symlink_to("weights.bin")
    assert load(path, tmp_path).model.stats.bytes == 400


@pytest.mark.parametrize(
    "changes", [{"offset": "4"}, {"length": "396"}, {"offset": "-4"}, {"length": "1e3"}]
)
def test_external_data_has_the_right_size(changes: dict[str, str], tmp_path: Path) -> None:
    error = refusal(external(tmp_path, **changes), tmp_path)
    assert "initializer `w`" in error.what


# Limits: the worker dies, the compiler does not.


@pytest.mark.parametrize("case", ["cycle", "strings", "wrong attribute"])
def test_refusals_come_out_of_the_worker(case: str, tmp_path: Path) -> None:
    build, parts = BAD_MODELS[case]
    path = saved(build(), tmp_path)
    with pytest.raises(InputError) as caught:
        load(path, tmp_path)
    assert all(part in str(checked(caught.value, path)) for part in parts)


def test_time_and_memory_limits_end_in_a_message(tmp_path: Path) -> None:
    path = saved(relu(), tmp_path)
    with pytest.raises(InputError, match="time limit"):
        load(path, tmp_path, limits=Limits(seconds=0.001))
    with pytest.raises(InputError, match="could not be examined"):
        load(path, tmp_path, limits=Limits(memory_mb=30))


PEAK = """
import json, sys, threading, time
from pathlib import Path
import psutil
from optimc.frontends.onnx import load_onnx

folder, peaks = Path(sys.argv[1]), {}

def private(pid):
    # Anonymous memory: the mapped file does not count, a copy of the weights would.
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000

def watch():
    while True:
        for process in [psutil.Process(), *psutil.Process().children()]:
            try:
                peaks[process.pid] = max(peaks.get(process.pid, 0), private(process.pid))
            except OSError:
                pass
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
loaded = load_onnx(folder / "model.onnx", workspace=folder)
digest, size = loaded.model.digest, loaded.model.stats.bytes
kinds = {type(v.const_value).__name__ for v in loaded.model.ir.graph.initializers.values()}
print(json.dumps({"bytes": size, "kinds": sorted(kinds), "peaks_mb": sorted(peaks.values())}))
"""


@pytest.mark.slow
def test_more_than_2_gb_is_never_copied(tmp_path: Path) -> None:
    """2.4 GB of weights are examined, loaded and hashed in two processes of small memory."""
    rows, columns = 20_000, 30_000
    path = tmp_path / "model.onnx"
    weight = TensorProto(name="w", dims=[rows, columns], data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", rows])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])
    matmul = node("MatMul", ["x", "w"], "y", "matmul")
    path.write_bytes(relu(matmul, inputs=(x,), outputs=(y,), weights=(weight,)).SerializeToString())
    with open(tmp_path / "weights.bin", "wb") as file:
        file.truncate(rows * columns * 4)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (found["bytes"], found["kinds"]) == (rows * columns * 4, ["ExternalTensor"])
    assert len(found["peaks_mb"]) == 2
    assert max(found["peaks_mb"]) < 500, found


def test_as_model_is_what_the_front_end_gives(tmp_path: Path) -> None:
    """Tests elsewhere build models by `as_model`: it must not drift away from the real thing."""
    proto = onnx.shape_inference.infer_shapes(branches_proto())
    loaded = load(saved(proto, tmp_path), tmp_path).model
    assert loaded.digest == as_model(proto).digest
    assert loaded.names_digest == as_model(proto).names_digest


def branches_proto() -> onnx.ModelProto:
    b = GraphBuilder()
    x = b.input("x", [None, 3])
    b.nodes("Split", x, to=["a", "b"], axis=1, num_outputs=2)
    b.node("Relu", "a", to="y")
    b.output("y", ["batch", 2])
    return b.proto()
