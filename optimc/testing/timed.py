"""Real engines of a known cost for the tests and benches of measuring: chains of equal layers."""

from __future__ import annotations

from pathlib import Path

from optimc.core.model import OnnxModel
from optimc.core.targets import BuildContext
from optimc.targets.client import EngineWorker
from optimc.targets.onnxruntime import OnnxRuntime
from optimc.testing.graphs import GraphBuilder

WIDTH = 128


def chain(layers: int) -> OnnxModel:
    """A model of `layers` equal layers (MatMul, Tanh) on ``x`` float32 [16, 128]."""
    b = GraphBuilder()
    value = b.input("x", [16, WIDTH])
    weight = b.weight(WIDTH, WIDTH, scale=WIDTH**-0.5)
    for layer in range(layers):
        product = b.node("MatMul", value, weight)
        value = b.node("Tanh", product, to="y" if layer == layers - 1 else None)
    b.output("y", [16, WIDTH])
    return b.model()


def timed_chain(name: str, layers: int, folder: Path) -> EngineWorker:
    """`chain` as an ONNX Runtime engine on one thread in a worker, ready to be timed.

    The engine goes into the new folder `folder`; close the worker when done.
    """
    import numpy as np

    target = OnnxRuntime(runtime="onnxruntime", threads=1)
    place, workspace = folder / "engine", folder / "workspace"
    place.mkdir(parents=True)
    workspace.mkdir()
    engine = target.build(chain(layers), place, BuildContext(workspace=workspace))
    worker = EngineWorker(engine, name=name)
    worker.bind({"x": np.ones((16, WIDTH), np.float32)})
    return worker
