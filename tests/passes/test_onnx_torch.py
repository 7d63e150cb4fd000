"""The torch form of ONNX graphs: every operator against ONNX Runtime, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.testing.graph_strategies import models
from optimc.testing.graphs import GraphBuilder, small_models
from optimc.testing.quantizable import quantizable_models
from optimc.testing.runs import run_model, seeded_feeds

torch = pytest.importorskip("torch")

from optimc.passes import _qat_proof  # noqa: E402
from optimc.passes._onnx_torch import TorchGraph, operators  # noqa: E402

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def agree(model: OnnxModel, *, sizes: tuple[int, ...] = (2, 3)) -> None:
    """Outputs of torch are those of ONNX Runtime."""
    graph = TorchGraph(model.ir)
    for feeds in seeded_feeds(model, sizes=sizes):
        wanted = run_model(model, [feeds])[0]
        with torch.no_grad():
            found = graph({name: torch.from_numpy(np.array(x)) for name, x in feeds.items()})
        for name, array in wanted.items():
            actual = found[name].numpy()
            assert actual.shape == array.shape, name
            if array.dtype.kind == "f":
                scale = np.abs(array[np.isfinite(array)]).max(initial=1e-3)
                np.testing.assert_allclose(actual, array, rtol=0, atol=1e-5 * scale, err_msg=name)
            else:
                assert np.array_equal(actual, array), name


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(model=models())
def test_generated_graphs_are_the_same_function(model: OnnxModel) -> None:
    if any(node.op_type == "If" for node in model.ir.graph):
        with pytest.raises(PreconditionError, match="is a If, for which there is no torch form"):
            TorchGraph(model.ir)
        return
    agree(model)


@pytest.mark.parametrize("name", sorted(set(small_models()) - {"branches"}))
def test_small_models(name: str) -> None:
    agree(small_models()[name])


@pytest.mark.parametrize("name", sorted(quantizable_models()))
def test_quantizable_models(name: str) -> None:
    agree(quantizable_models()[name])


IMAGE = (2, 4, 6, 6)
UNARY: dict[str, dict[str, Any]] = {
    **{
        name: {}
        for name in (
            "Abs",
            "Neg",
            "Exp",
            "Log",
            "Sqrt",
            "Erf",
            "Tanh",
            "Sigmoid",
            "Relu",
            "Sin",
            "Cos",
        )
    },
    **{name: {} for name in ("Floor", "Ceil", "Round", "Sign", "Softplus", "Softsign", "Mish")},
    **{
        name: {}
        for name in ("HardSwish", "Elu", "HardSigmoid", "Reciprocal", "Flatten", "Identity", "Size")
    },
    **{name: {} for name in ("GlobalAveragePool", "GlobalMaxPool", "Shape", "Dropout")},
    "LeakyRelu": {"alpha": 0.2},
    "Gelu": {"approximate": "tanh"},
    "Softmax": {"axis": 1},
    "LogSoftmax": {"axis": -1},
    "Transpose": {"perm": [0, 2, 3, 1]},
    "DepthToSpace": {"blocksize": 2, "mode": "CRD"},
    "SpaceToDepth": {"blocksize": 2},
    "ArgMax": {"axis": 1, "keepdims": 0},
    "ArgMin": {"axis": 2},
    "MaxPool": {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]},
    "AveragePool": {"kernel_shape": [3, 3], "pads": [1, 1, 0, 1], "strides": [2, 2]},
    "ReduceMean": {"noop_with_empty_axes": 1},
    "ReduceSumSquare": {"keepdims": 0},
}


@pytest.mark.parametrize("op_type", sorted(UNARY))
def test_operators_of_one_input(op_type: str) -> None:
    against_runtime(single(op_type, **UNARY[op_type]))


WEIGHT = np.random.default_rng(0).normal(0, 0.3, (4, 2, 3, 3)).astype(np.float32)
PAIR = np.random.default_rng(1).uniform(0.5, 2.0, (4, 1, 6)).astype(np.float32)
LINE = np.linspace(0.5, 2.0, 6, dtype=np.float32)
FOUR = np.linspace(0.5, 2.0, 4, dtype=np.float32)
OTHERS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "grouped conv": ("Conv", (WEIGHT,), {"group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1]}),
    "dilated conv": ("Conv", (WEIGHT, FOUR), {"group": 2, "dilations": [2, 2], "pads": [2] * 4}),
    "same conv": ("Conv", (WEIGHT,), {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "conv transpose": (
        "ConvTranspose",
        (WEIGHT, FOUR),
        {"group": 2, "strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 1]},
    ),
    "pow": ("Pow", (np.float32(2.0),), {}),
    "div": ("Div", (PAIR,), {}),
    "sum": ("Sum", (PAIR, LINE), {}),
    "mean": ("Mean", (PAIR, LINE), {}),
    "min": ("Min", (PAIR, LINE), {}),
    "greater": ("Greater", (PAIR,), {}),
    "less or equal": ("LessOrEqual", (PAIR,), {}),
    "prelu": ("PRelu", (PAIR,), {}),
    "clip": ("Clip", (None, np.float32(0.5)), {}),
    "layer norm": ("LayerNormalization", (LINE, LINE), {"axis": -1, "epsilon": 1e-3}),
    "instance norm": ("InstanceNormalization", (FOUR, FOUR), {}),
    "batch norm": ("BatchNormalization", (FOUR, FOUR, FOUR, FOUR), {"epsilon": 1e-3}),
    "reshape": ("Reshape", (np.array([0, -1, 3]),), {}),
    "unsqueeze": ("Unsqueeze", (np.array([1, -1]),), {}),
    "slice": (
        "Slice",
        (np.array([-1, 5]), np.array([-(2**62), 0]), np.array([1, 3]), np.array([-1, -2])),
        {},
    ),
    "gather": ("Gather", (np.array([[0, -1], [2, 1]]),), {"axis": 1}),
    "gather elements": ("GatherElements", (np.zeros((2, 4, 6, 2), np.int64) - 1,), {"axis": 3}),
    "tile": ("Tile", (np.array([1, 2, 1, 1]),), {}),
    "expand": ("Expand", (np.array([3, 1, 1, 1, 1]),), {}),
    "trilu": ("Trilu", (np.array(1),), {"upper": 0}),
    "pad": ("Pad", (np.array([0, 1, 0, -1, 0, 0, 2, 1]), np.float32(0.5)), {}),
    "reflect": ("Pad", (np.array([0, 0, 2, 1, 0, 0, 3, 4]),), {"mode": "reflect"}),
    "edge": ("Pad", (np.array([2, 1, 0, 3]), None, np.array([3, 2])), {"mode": "edge"}),
    "reduce max": ("ReduceMax", (np.array([1, -1]),), {"keepdims": 0}),
    "reduce l2": ("ReduceL2", (np.array([2]),), {}),
    "nearest": ("Resize", (None, np.array([1, 1, 1.7, 0.6], np.float32)), {"mode": "nearest"}),
    "floor": (
        "Resize",
        (None, None, np.array([2, 4, 12, 9])),
        {
            "mode": "nearest",
            "nearest_mode": "floor",
            "coordinate_transformation_mode": "asymmetric",
        },
    ),
    "linear": ("Resize", (None, None, np.array([2, 4, 11, 4])), {"mode": "linear"}),
    "corners": (
        "Resize",
        (None, None, np.array([2, 4, 11, 4])),
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "quantize": ("QuantizeLinear", (np.float32(0.02), np.array(120, np.uint8)), {}),
    "quantize channels": (
        "QuantizeLinear",
        (FOUR / 100, np.zeros(4, np.int8)),
        {"axis": 1},
    ),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_operators_with_constants(name: str) -> None:
    op_type, inputs, attributes = OTHERS[name]
    against_runtime(single(op_type, *inputs, **attributes))


def single(op_type: str, *inputs: Any, **attributes: Any) -> ir.Model:
    """A model of one operator on an image `x` and constants; None leaves an input out."""
    b = GraphBuilder(20)
    x = b.input("x", IMAGE)
    constants = ["" if value is None else b.constant(value) for value in inputs]
    b.node(op_type, x, *constants, to="y", **attributes)
    return ir.from_proto(b.proto())


def against_runtime(model: ir.Model) -> None:
    """The operator by the proof that training relies on, which compares every node."""
    import tempfile

    x = np.random.default_rng(2).normal(0, 1, IMAGE).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path)
        error = _qat_proof.prove(TorchGraph(model), path, {"x": torch.from_numpy(x)})
    assert error <= 1e-5


def parts() -> OnnxModel:
    """Shapes, types, comparisons and pieces, with a dynamic batch."""
    b = GraphBuilder(20)
    x = b.input("x", ["batch", 6])
    first, second, third = b.nodes("Split", x, to=["p1", "p2", "p3"], axis=1, num_outputs=3)
    flags = b.node("And", b.node("Less", first, second), b.node("Not", b.cast(third, "bool")))
    same = b.node("Xor", b.node("Equal", first, first), b.node("GreaterOrEqual", first, third))
    flags = b.node("Or", flags, same)
    h = b.node("Where", flags, first, b.node("Max", second, b.constant([0.5])))
    size = b.node("Shape", x, start=0, end=1)
    zeros = b.node("ConstantOfShape", b.node("Concat", size, b.constant([2]), axis=0))
    h = b.node("Sub", h, b.node("Add", zeros, b.node("Constant", value_float=0.25)))
    count = b.node("Squeeze", size, b.constant([0]))
    steps = b.node("Range", b.constant(0), count, b.constant(1))
    h = b.node("Mul", h, b.node("Unsqueeze", b.cast(steps, "float32"), b.constant([1])))
    reduced = [b.node(f"Reduce{kind}", h, b.constant([1]), keepdims=0) for kind in REDUCED]
    b.node("Sum", *reduced, to="y")
    b.node("Einsum", h, h, equation="ij,kj->ik", to="z")
    b.output("y", ["batch"])
    b.output("z", ["batch", "batch"])
    return b.model()


REDUCED = ("Sum", "Min", "Prod", "L1")


def test_shapes_types_and_parts() -> None:
    agree(parts())


def test_every_operator_is_tried() -> None:
    tried = set(UNARY) | {op_type for op_type, _, _ in OTHERS.values()}
    for model in (*quantizable_models().values(), *small_models().values(), parts()):
        tried |= {node.op_type for node in model.ir.graph}
    assert set(operators()) - tried == set()


def test_an_unknown_operator_is_named() -> None:
    model = single("NonZero")
    with pytest.raises(PreconditionError) as caught:
        TorchGraph(model)
    assert caught.value.what == "nonzero_0 is a NonZero, for which there is no torch form"
    assert caught.value.fix


def test_a_form_of_an_operator_that_torch_does_not_have_is_named() -> None:
    sizes = np.array([2, 4, 12, 12])
    graph = TorchGraph(single("Resize", None, None, sizes, mode="cubic"))
    with pytest.raises(PreconditionError, match="resize_0 has cubic interpolation"):
        graph({"x": torch.zeros(IMAGE)})


def test_a_wrong_operator_is_found_by_the_proof(
    tmp_path: Path,
) -> None:
    b = GraphBuilder(20)
    x = b.input("x", IMAGE)
    b.node("Relu", b.node("LeakyRelu", x, alpha=0.3, name="slope"), to="y")
    model = ir.from_proto(b.proto())
    ir.save(model, tmp_path / "model.onnx")
    graph = TorchGraph(model)
    graph.steps[0].call.attributes["alpha"] = 0.301  # type: ignore[index]
    with pytest.raises(PreconditionError, match="slope: its torch form gives an error of"):
        _qat_proof.prove(graph, tmp_path / "model.onnx", {"x": torch.randn(IMAGE)})
