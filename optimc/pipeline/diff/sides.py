"""The two sides of a comparison: whatever a user names, as a file that a runtime runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.core.model import Signature
from optimc.core.targets import Engine
from optimc.core.worker import Limits
from optimc.pipeline.values import Runnable, RuntimeName, ValueRunner

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel

_RECIPES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """A value of a model: `names` are all that a runtime knows it by, the first is shown."""

    names: tuple[str, ...]
    operator: str
    inputs: tuple[str, ...]
    """What it is computed from, constants left out."""
    source: str | None = None
    """Its name in the model that it came from, where that is another."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return self.names[0]


@dataclass(frozen=True)
class Side:
    """One model of the two, ready to run. `values` are in the order of computation."""

    label: str
    signature: Signature
    runnable: Runnable
    values: tuple[ValueInfo, ...]
    notes: tuple[str, ...] = ()
    known: Any = None
    """The recipe that it is the source of, or None."""

    @property
    def how(self) -> str:
        """How it is run, in words."""
        if self.runnable.runtime == "openvino":
            return f"OpenVINO, {self.runnable.precision}"
        state = "on" if self.runnable.optimized else "off"
        return f"ONNX Runtime, graph optimizations {state}"


@contextmanager
def opened(
    path: Path,
    *,
    runtime: RuntimeName | None,
    optimized: bool | None,
    limits: Limits,
    workspace: Path,
    untrusted: bool,
) -> Iterator[Side]:
    """The side that `path` names: an ONNX file, an engine's folder, a recipe (its source), or a
    PyTorch program or folder of transformers in its exported form.

    `runtime` and `optimized` None take what fits the file: its own runtime for an engine, else
    ONNX Runtime with graph optimizations off. Raises InputError for what cannot be read or run so.
    """
    if (path / Engine.MANIFEST).is_file():
        side = _engine(path, runtime, optimized, limits)
    elif path.suffix in _RECIPES:
        with _recipe_source(path, untrusted, limits) as (model, recipe):
            yield _onnx(path, model, runtime, optimized, recipe)
        return
    elif path.suffix == ".onnx" or not _is_torch(path):
        from optimc.frontends.onnx import load_onnx

        loaded = load_onnx(path, workspace=workspace, limits=limits)
        loaded.model.save(workspace / "stored")
        side = _onnx(path, _stored(workspace / "stored"), runtime, optimized, None)
        side = replace(side, notes=loaded.notes)
    else:
        _refuse_user_code(path, untrusted)
        from optimc.pipeline.torch_looks import exported_onnx

        with exported_onnx(path) as exported:
            model = _stored(exported.parent)
            side = _onnx(path, model, runtime, optimized, None)
            note = f"{path.name} is compared in its exported form"
            yield replace(side, notes=(note,))
        return
    yield side


def _is_torch(path: Path) -> bool:
    from optimc.pipeline.torch_looks import is_torch

    return is_torch(path)


def _refuse_user_code(path: Path, untrusted: bool) -> None:
    if untrusted and path.suffix == ".pt2":
        raise InputError(
            "a .pt2 file may run code of whoever wrote it, which --untrusted refuses",
            where=str(path),
            fix="export it to ONNX where it is trusted",
        )


def _stored(folder: Path) -> OnnxModel:
    from optimc.core.model import OnnxModel, load_model

    model = load_model(folder)
    assert isinstance(model, OnnxModel)
    return model


@contextmanager
def _recipe_source(path: Path, untrusted: bool, limits: Limits) -> Iterator[tuple[Any, Any]]:
    from optimc.pipeline.cache import Cache
    from optimc.pipeline.ingest import read_source
    from optimc.pipeline.ingest_torch import with_known
    from optimc.pipeline.recipe import load_recipe

    recipe = load_recipe(path, (), untrusted)
    cache = Cache()
    try:
        with cache.workspace() as workspace:
            source = read_source(recipe, cache, limits, workspace)
            yield source.model, with_known(recipe, source.known)
    finally:
        cache.close()


def _onnx(
    path: Path, model: OnnxModel, runtime: RuntimeName | None, optimized: bool | None, recipe: Any
) -> Side:
    assert model.path is not None
    run = Runnable(model.path, runtime or "onnxruntime", bool(optimized))
    values = values_of(model.path, dict(model.provenance))
    return Side(str(path), model.signature, run, values, known=recipe)


def _engine(
    folder: Path, runtime: RuntimeName | None, optimized: bool | None, limits: Limits
) -> Side:
    engine = Engine.read(folder)
    if engine.runtime not in ("onnxruntime", "openvino"):
        raise InputError(
            f"engines of {engine.runtime} do not give out inner values",
            where=str(folder),
            fix="compare the ONNX files that went in",
        )
    if runtime is not None and runtime != engine.runtime:
        raise InputError(
            f"this is an engine of {engine.runtime}",
            where=str(folder),
            fix="leave out --runtime, or name an ONNX file",
        )
    session = engine.manifest["session"]
    if engine.runtime == "onnxruntime":
        own = session.get("graph_optimization") != "disabled"
        run = Runnable(engine.main, "onnxruntime", own if optimized is None else optimized)
        return Side(str(folder), engine.signature, run, values_of(engine.main))
    run = Runnable(engine.main, "openvino", True, str(session.get("precision", "f32")))
    with ValueRunner(run, limits, "OpenVINO reading an engine") as runner:
        values = [ValueInfo(tuple(n), op, tuple(i)) for n, op, i in runner.listed()]
    kept = tuple(value for value in values if value.operator != "Parameter")
    return Side(str(folder), engine.signature, run, kept)


def values_of(path: Path, provenance: dict[str, str] | None = None) -> tuple[ValueInfo, ...]:
    """What the nodes of the main graph compute; the file was checked before."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    known = provenance or {}
    found = []
    for node in graph.node:
        inputs = tuple(name for name in node.input if name and name not in constant)
        for name in node.output:
            if name and node.op_type == "Constant":
                constant.add(name)
            elif name:
                source = known.get(name, name)
                other = source if source != name else None
                found.append(ValueInfo((name,), node.op_type, inputs, other))
    return tuple(found)


def has_subgraphs(path: Path) -> bool:
    """Whether nodes of the file hold graphs of their own."""
    import onnx

    if path.suffix != ".onnx":
        return False
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return any(a.HasField("g") or a.graphs for node in nodes for a in node.attribute)
