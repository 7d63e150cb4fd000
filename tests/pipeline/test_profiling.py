from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from optimc.core.model import OnnxModel
from optimc.core.targets import TimedLayer
from optimc.pipeline.profiling import Origins
from optimc.testing.commands import run_optimc
from optimc.testing.graphs import GraphBuilder


def _model() -> OnnxModel:
    """A convolution with a weight that is made in the graph, an activation, and a product."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 2, 4, 4])
    w = b.node("Relu", b.weight(3, 2, 1, 1), name="/weight", to="w")
    h = b.node("Conv", x, w, name="/conv", to="h")
    r = b.node("Relu", h, name="/relu", to="r")
    f = b.node("Flatten", r, name="/flatten", to="f")
    b.node("MatMul", f, b.weight(48, 5), name="/head", to="y")
    b.output("y", ["batch", 5])
    return b.model()


def _layer(name: str, *parts: str) -> TimedLayer:
    return TimedLayer(name, "Conv", "float32", 1.0, parts)


def test_what_no_layer_names_was_taken_in_by_its_producer_or_its_reader() -> None:
    source = _model()
    layers = [_layer("conv", "/conv"), _layer("head", "y")]
    assert Origins(source, source).of(layers) == [
        ("/weight", "/conv", "/relu", "/flatten"),
        ("/head",),
    ]


def test_values_name_layers_as_nodes_do_and_a_stranger_stands_for_nothing() -> None:
    source = _model()
    layers = [_layer("h", "h"), _layer("r", "r"), _layer("reorder", "reorder_1"), _layer("y", "y")]
    assert Origins(source, source).of(layers) == [
        ("/weight", "/conv"),
        ("/relu", "/flatten"),
        (),
        ("/head",),
    ]


def _residual(*blocks: int, head: str = "Gemm") -> OnnxModel:
    """Residual blocks as an export calls them: nodes are counted anew, parameters are not."""
    b = GraphBuilder()
    value = b.input("x", ["batch", 4])
    for count, block in enumerate(blocks):
        w = b.constant(b.rng.normal(size=(4, 4)), f"module.{block}.weight")
        h = b.node("Gemm", value, w, name=f"/linear_{count}", to=f"linear_{count}")
        s = b.node("Add", value, h, name=f"/add_{count}", to=f"add_{count}")
        value = b.node("Relu", s, name=f"/relu_{count}", to=f"relu_{count}")
    turned = b.constant(b.rng.normal(size=(4, 2)), "val_3")
    h = b.node("MatMul", value, turned, name="/product", to="product")
    bias = b.constant(b.rng.normal(size=2), "module.head.bias")
    b.node("Add", h, bias, name="/biased", to="y")
    b.output("y", ["batch", 2])
    return b.model()


def test_layers_of_a_pruned_module_are_told_by_their_modules() -> None:
    source, pruned = _residual(0, 1, 2), _residual(0, 2)
    layers = [
        *(_layer(f"/linear_{n}", f"/linear_{n}") for n in (0, 1)),
        *(_layer(f"/add_{n}", f"/add_{n}", f"/relu_{n}") for n in (0, 1)),
        _layer("/product", "/product", "/biased"),
        _layer("reorder", "reorder_1"),
    ]
    origins = Origins(pruned, source, pruned)
    nodes = origins.of(layers)
    assert nodes == [
        ("/linear_0",),
        ("/linear_2",),
        ("/add_0", "/relu_0"),
        ("/add_2", "/relu_2"),
        ("/product", "/biased"),
        (),
    ]
    names = [origins.name_of(layer, n) for layer, n in zip(layers, nodes, strict=True)]
    assert names == ["/linear_0", "/linear_2", "/add_0", "/add_2", "/product", "reorder"]


def test_nodes_that_passes_changed_behind_the_export_keep_their_modules() -> None:
    """A pass put new nodes around those it knows, which keep the names of their results."""
    source, exported = _residual(0, 1, 2), _residual(2)
    b = GraphBuilder()
    x = b.input("x", ["batch", 4])
    q = b.node("Identity", x, name="/quantized", to="x_quantized")
    folded = b.constant(b.rng.normal(size=(4, 4)), "module.2.weight_folded")
    r = b.node("Gemm", q, folded, name="/other", to="linear_0")
    b.node("MatMul", r, b.weight(4, 2), name="/product", to="y")
    b.output("y", ["batch", 2])
    layers = [_layer("q", "/quantized"), _layer("gemm", "/other"), _layer("head", "/product")]
    # What is not there any more was folded into what read it, as everywhere.
    head = ("/add_2", "/relu_2", "/product", "/biased")
    assert Origins(b.model(), source, exported).of(layers) == [(), ("/linear_2",), head]


@pytest.mark.slow
def test_a_build_profiles_what_ships_and_its_source(repository: Path, tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    shutil.copytree(repository / "recipes" / "quickstart", recipes / "quickstart")
    shutil.copy(repository / "recipes" / "quickstart.yaml", recipes)
    done = run_optimc(
        *("build", "quickstart.yaml", "--json", "--set", "benchmark.at_most=2 s"),
        *("--set", "gate.ship=int8/*", "--set", "gate.speedup=0.01"),
        cwd=recipes,
    )
    report = json.loads(done.out)
    assert done.code == 0, done.err
    profiles = {profile["engine"]: profile for profile in report["profiles"]}
    assert set(profiles) == {"source on ort", "source on ov", "int8/ort", "int8/ov"}
    for name, profile in profiles.items():
        assert profile["runs"] >= 5
        assert len(profile["layers"]) > 5
        assert all(layer["ms"] >= 0 for layer in profile["layers"])
        named = {node for layer in profile["layers"] for node in layer["nodes"]}
        assert {f"node_conv2d{n}" for n in ("", "_1", "_2", "_3", "_4", "_5")} <= named, name
    for name in ("int8/ort", "int8/ov"):
        dtypes = [
            layer["dtype"]
            for layer in profiles[name]["layers"]
            if any(node.startswith("node_conv2d") for node in layer["nodes"])
        ]
        assert dtypes.count("int8") >= 6


@pytest.mark.slow
def test_without_measuring_nothing_is_profiled_and_it_says_so(
    repository: Path, tmp_path: Path
) -> None:
    done = run_optimc(
        *("build", "quickstart.yaml", "--no-measure", "--json", "--variant", "fp32"),
        *("--target", "ort", "-o", tmp_path / "out"),
        cwd=repository / "recipes",
    )
    assert json.loads(done.out)["profiles"] == {"skipped": "measuring is off (--no-measure)"}
