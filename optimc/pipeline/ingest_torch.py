"""Reading a model of PyTorch or Hugging Face: exported, compared, and remembered.

The key of the cache holds the contents of every file that was read. Which source files a factory
imports is known only once it ran; so that is remembered too, by the files known before.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.digest import digest_of
from optimc.core.errors import InputError
from optimc.core.files import file_sha256
from optimc.core.model import OnnxModel, Signature, TensorSpec, load_model
from optimc.core.worker import Limits
from optimc.frontends.torch_frontend import TorchFrontEnd
from optimc.pipeline.cache import Cache
from optimc.pipeline.ingest import Source
from optimc.pipeline.inputs import check_signature, resolved_dims
from optimc.pipeline.outputs import with_outputs
from optimc.pipeline.recipe.meaning import plain
from optimc.pipeline.recipe.model_sources import (
    ExportedSource,
    FactorySource,
    HuggingFaceSource,
    TorchSource,
)
from optimc.pipeline.versions import compiler_digest, tool_versions

if TYPE_CHECKING:
    from optimc.frontends.torch_frontend import Description
    from optimc.pipeline.recipe.schema import DimRange, Recipe

_TOOLS = ("onnx", "onnx-ir", "onnxruntime", "onnxscript")

Files = dict[str, tuple[str, int]]
"""SHA-256 and bytes by the path relative to the recipe's folder."""


def read_torch_source(
    recipe: Recipe, model: TorchSource, cache: Cache, limits: Limits, workspace: Path
) -> Source:
    """The recipe's PyTorch model as ONNX, or from the cache without importing torch.

    Raises InputError for whatever is wrong with the files, or where the ONNX form does not agree
    with the module.
    """
    files = _known_files(recipe, model, cache)
    entry = None if files is None else cache.get("ingest", _key(recipe, model, files))
    if entry is None:
        with TorchFrontEnd(
            kind_of(model),
            opening_options(recipe, model),
            where=where_of(recipe, model),
            limits=limits,
        ) as front:
            description = front.describe()
            files = _remember_files(recipe, model, cache, description.files)
            entry = cache.put(
                "ingest",
                _key(recipe, model, files),
                lambda out: write_exported(out, front, description, recipe, limits, workspace),
            )
    assert files is not None
    content = json.loads((entry / "source.json").read_text(encoding="utf-8"))
    onnx = load_model(entry / "model")
    assert isinstance(onnx, OnnxModel)
    return Source(
        onnx,
        tuple(content["notes"]),
        {name: sha for name, (sha, _) in files.items()},
        sum(size for _, size in files.values()),
        known=content["known"],
        origin=_origin(recipe, model, files),
        key=_key(recipe, model, files),
    )


def describe_source(recipe: Recipe, model: TorchSource, limits: Limits) -> Description:
    """What the model says of its inputs, without exporting it."""
    options = opening_options(recipe, model)
    with TorchFrontEnd(
        kind_of(model), options, where=where_of(recipe, model), limits=limits
    ) as front:
        return front.describe()


def kind_of(model: TorchSource) -> str:
    """The kind as `torch_service` has it."""
    if isinstance(model, ExportedSource):
        return "exported"
    return "hf" if isinstance(model, HuggingFaceSource) else "factory"


def where_of(recipe: Recipe, model: TorchSource) -> str:
    """What messages call the model."""
    if isinstance(model, FactorySource):  # what is wrong with its weights names their file
        return recipe.where("model", "factory")
    return str(model.place)


def opening_options(recipe: Recipe, model: TorchSource) -> dict[str, Any]:
    """What `torch_service` takes for this kind."""
    declared = {
        name: {"dtype": spec.dtype, "shape": None if spec.shape is None else list(spec.shape)}
        for name, spec in recipe.inputs.items()
    }
    if isinstance(model, ExportedSource):
        return {"path": str(model.exported)}
    if isinstance(model, HuggingFaceSource):
        return {
            "path": str(model.hf),
            "task": model.task,
            "pooling": model.pooling or "mean",
            "normalize": bool(model.normalize),
            "declared": declared,
        }
    for name, spec in recipe.inputs.items() or [("x", None)]:
        if spec is None or spec.shape is None or spec.dtype is None:
            raise InputError(
                "a module does not say the shapes and dtypes of its inputs",
                where=recipe.where("inputs", name),
                fix=f"declare them: inputs: {{{name}: {{shape: [batch, 3, 32, 32], "
                "dtype: float32}}",
            )
    weights = model.weights
    return {
        "call": model.factory,
        "folder": str(recipe.folder),
        "arguments": dict(model.arguments),
        "weights": None
        if weights is None
        else {"file": str(weights.file), "key": weights.key, "prefix": weights.prefix},
        "declared": declared,
        "seed": recipe.seed,
    }


def _key(recipe: Recipe, model: TorchSource, files: Files) -> str:
    return digest_of(
        ["ingest-torch", plain(model, recipe.folder), {n: sha for n, (sha, _) in files.items()}],
        [[name, spec.model_dump(mode="json")] for name, spec in recipe.inputs.items()],
        {name: dim.model_dump(mode="json") for name, dim in recipe.dims.items()},
        {name: plain(option, recipe.folder) for name, option in recipe.outputs.items()},
        [recipe.seed, compiler_digest(), module_tools(model)],
    )


def module_tools(model: TorchSource) -> Mapping[str, str]:
    """Versions of the libraries that make, run and export the module; of a factory that is
    installed, that of its package."""
    top = re.split(r"[.:]", model.factory)[0] if isinstance(model, FactorySource) else None
    return tool_versions([*_TOOLS, *model.tools, *([top] if top else [])])


def _origin(recipe: Recipe, model: TorchSource, files: Files) -> str:
    """Names the module as the source makes it: no version of ours or of a library."""
    contents = {name: sha for name, (sha, _) in files.items()}
    return digest_of("module", plain(model, recipe.folder), contents, recipe.seed)


def _named_files(model: TorchSource) -> list[Path]:
    """The files that the recipe names, and those of a folder of transformers."""
    if isinstance(model, HuggingFaceSource):
        from optimc.frontends.huggingface import model_files, read_config

        read_config(model.hf)
        return model_files(model.hf)
    return [] if model.place is None else [model.place]


def _digests(recipe: Recipe, paths: Sequence[Path]) -> Files:
    """Raises InputError where a file cannot be read."""
    files: Files = {}
    for path in paths:
        name = Path(os.path.relpath(path, recipe.folder)).as_posix()
        try:
            files[name] = (file_sha256(path), path.stat().st_size)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return files


def _imports_key(recipe: Recipe, model: FactorySource, files: Files) -> str:
    return digest_of("torch-imports", plain(model, recipe.folder), files, compiler_digest())


def _known_files(recipe: Recipe, model: TorchSource, cache: Cache) -> Files | None:
    """Every file that a build of this source reads; None where that is not known yet.

    For a factory, from the files known so far to those that it imported when they were such, until
    nothing is added.
    """
    files = _digests(recipe, _named_files(model))
    while isinstance(model, FactorySource):
        entry = cache.get("torch-imports", _imports_key(recipe, model, files))
        if entry is None:
            return None
        names = json.loads((entry / "files.json").read_text(encoding="utf-8"))
        paths = [recipe.folder / name for name in names]
        if not all(path.is_file() for path in paths):
            return None
        more = _digests(recipe, [*_named_files(model), *paths])
        if more == files:
            break
        files = more
    return files


def _remember_files(
    recipe: Recipe, model: TorchSource, cache: Cache, imported: Sequence[str]
) -> Files:
    """All files of a source that was opened; for a factory, remembered for `_known_files`."""
    named = _named_files(model)
    paths = [Path(name) for name in imported]
    files = _digests(recipe, [*named, *paths])
    if isinstance(model, FactorySource):
        names = [Path(os.path.relpath(path, recipe.folder)).as_posix() for path in paths]

        def write(folder: Path) -> None:
            (folder / "files.json").write_text(json.dumps(names), encoding="utf-8")

        for known in (_digests(recipe, named), files):
            cache.put("torch-imports", _imports_key(recipe, model, known), write)
    return files


def write_exported(
    folder: Path,
    front: TorchFrontEnd,
    description: Description,
    recipe: Recipe,
    limits: Limits,
    workspace: Path,
) -> None:
    """Fills a cache's entry: the ONNX model (`model`), proved on the probes, and what the report
    says of it (`source.json`)."""
    from optimc.frontends.onnx import load_onnx
    from optimc.pipeline.probes import ProbeSource

    known = known_of(description, recipe)
    told = with_known(recipe, known)
    signature = _signature(description, recipe)
    dims = resolved_dims(told, signature, {})
    probes = ProbeSource(signature, dims, told.inputs, recipe.seed)
    with tempfile.TemporaryDirectory(prefix="ingest-", dir=workspace) as own:
        target = Path(own) / "exported.onnx"
        example = ProbeSource(signature, example_dims(dims), told.inputs, recipe.seed)
        notes, most = front.export(target, signature.inputs, example.for_passes("fast")[0].feeds)
        _check_most(recipe, dims, most)
        loaded = load_onnx(target, limits=limits, workspace=Path(own))
        loaded.model.save(Path(own) / "whole")
        whole = load_model(Path(own) / "whole")
        assert isinstance(whole, OnnxModel)
        assert whole.path is not None
        feeds = [(probe.label, probe.feeds) for probe in probes.for_engines("fast")]
        comparison = front.compare(whole.path, feeds)
        with_outputs(whole, recipe).save(folder / "model")
    said = [*description.notes, *notes, *loaded.notes, str(comparison)]
    errors = [comparison.error, comparison.max_abs, comparison.sqnr_db]
    content = json.dumps({"notes": said, "known": known, "errors": errors})
    (folder / "source.json").write_text(content, encoding="utf-8")


def _signature(description: Description, recipe: Recipe) -> Signature:
    """The inputs with the recipe's shapes; outputs are not known yet."""
    own = Signature(description.inputs, ())
    check_signature(recipe, own, dims=False)
    shapes = {name: spec.shape for name, spec in recipe.inputs.items() if spec.shape is not None}
    return Signature(
        tuple(TensorSpec(s.name, s.dtype, shapes.get(s.name, s.shape)) for s in own.inputs), ()
    )


def known_of(description: Description, recipe: Recipe) -> dict[str, Any]:
    """What the model says of values and dims, with the names that the recipe gives to dims."""
    renamed: dict[str, int | str] = {}
    for spec in _signature(description, recipe).inputs:
        own = next(s for s in description.inputs if s.name == spec.name)
        renamed |= {
            old: new
            for old, new in zip(own.shape or (), spec.shape or (), strict=True)
            if isinstance(old, str)
        }
    dims = {renamed.get(name, name): sizes for name, sizes in description.dims.items()}
    integers = {spec.name: spec.dtype.startswith(("int", "uint")) for spec in description.inputs}
    return {
        "values": {n: list(v) for n, v in description.values.items() if integers[n]},
        "range": {n: list(v) for n, v in description.values.items() if not integers[n]},
        "dims": {name: list(sizes) for name, sizes in dims.items() if isinstance(name, str)},
        "modules": list(description.modules),
    }


def with_known(recipe: Recipe, known: Mapping[str, Any]) -> Recipe:
    """The recipe with what its model says itself, where the recipe does not say it."""
    from optimc.pipeline.recipe.schema import DimRange, InputSpec

    inputs = dict(recipe.inputs)
    for kind in ("values", "range"):
        for name, bounds in known.get(kind, {}).items():
            spec = inputs.get(name) or InputSpec()
            if spec.values is None and spec.range is None:
                inputs[name] = spec.model_copy(update={kind: tuple(bounds)})
    dims = {
        name: DimRange(min=least, typical=typical, max=most)
        for name, (least, typical, most) in known.get("dims", {}).items()
    }
    if inputs == dict(recipe.inputs) and not set(dims) - set(recipe.dims):
        return recipe
    return recipe.model_copy(update={"inputs": inputs, "dims": {**dims, **recipe.dims}})


def example_dims(dims: Mapping[str, DimRange]) -> dict[str, DimRange]:
    """One size a dim to trace with: 2 at least, and another for each, so that none seem equal."""
    from optimc.pipeline.recipe.schema import DimRange

    taken: set[int] = set()
    examples = {}
    for name, dim in dims.items():
        step = dim.multiple_of
        least = max(2, dim.min)
        size = -(-least // step) * step
        while size in taken and size + step <= dim.max:
            size += step
        taken.add(size)
        examples[name] = DimRange(min=size, typical=size, max=size)
    return examples


def _check_most(recipe: Recipe, dims: Mapping[str, DimRange], most: Mapping[str, int]) -> None:
    for name, limit in most.items():
        if name in dims and dims[name].max > limit:
            raise InputError(
                f"the dim `{name}` goes up to {dims[name].max}, the model takes {limit} at most",
                where=recipe.where("dims", name),
                fix=f"write `max: {limit}` or less",
            )
