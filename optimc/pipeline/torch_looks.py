"""PyTorch and Hugging Face models without a recipe: for `optimc init` and `optimc inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.core.model import Signature

if TYPE_CHECKING:
    from optimc.pipeline.recipe.model_sources import ExportedSource, HuggingFaceSource
    from optimc.pipeline.recipe.schema import Recipe

CHECKPOINTS = (".pt", ".pth", ".bin", ".safetensors")


@dataclass(frozen=True)
class TorchLook:
    """What a recipe for the model says of it."""

    fields: str
    """What stands beside the path under `model`, such as `, task: embedding`."""
    kind: str
    signature: Signature
    known: dict[str, Any]
    """See `ingest_torch.with_known`."""


def is_torch(path: Path) -> bool:
    """Whether the path names a PyTorch program or a folder of transformers.

    Raises InputError for a checkpoint, which holds weights and no model.
    """
    if path.suffix in CHECKPOINTS:
        raise InputError(
            "this file holds weights, and no model",
            where=str(path),
            fix="write model: {factory: package.module:function, weights: {file: ...}}, "
            "or export the model (torch.export.save, torch.onnx.export)",
        )
    return path.suffix == ".pt2" or (path.is_dir() and (path / "config.json").is_file())


def look_at_torch(path: Path) -> TorchLook:
    """The inputs of the model at `path` and what is known of them. Loads it, by torch."""
    from optimc.pipeline.build import worker_limits
    from optimc.pipeline.ingest_torch import describe_source, known_of

    source = _source(path)
    recipe = _bare_recipe(source)
    description = describe_source(recipe, source, worker_limits(recipe))
    task = getattr(source, "task", None)
    return TorchLook(
        f", task: {task}" if task else "",
        "hf" if task else "exported",
        Signature(description.inputs, ()),
        known_of(description, recipe),
    )


@contextmanager
def exported_onnx(path: Path) -> Iterator[Path]:
    """The ONNX file that a build of the model at `path` starts from, while the block lasts."""
    from optimc.pipeline.build import worker_limits
    from optimc.pipeline.cache import Cache
    from optimc.pipeline.ingest import read_source
    from optimc.pipeline.initialize import guessed_dims
    from optimc.pipeline.recipe.schema import DimRange

    recipe = _bare_recipe(_source(path))
    look = look_at_torch(path)
    dims = {
        name: DimRange(min=least, typical=typical, max=most)
        for name, ((least, typical, most), _) in guessed_dims(look.signature).items()
        if name not in look.known["dims"]
    }
    recipe = recipe.model_copy(update={"dims": dims})
    cache = Cache()
    try:
        with cache.workspace() as workspace:
            yield read_source(recipe, cache, worker_limits(recipe), workspace).path
    finally:
        cache.close()


def _source(path: Path) -> ExportedSource | HuggingFaceSource:
    from optimc.pipeline.recipe.model_sources import ExportedSource, HuggingFaceSource

    path = path.absolute()
    if path.suffix == ".pt2":
        if not path.is_file():
            raise InputError("there is no such file", where=str(path), fix="check the path")
        return ExportedSource(exported=path)
    from optimc.frontends.huggingface import likely_task, read_config

    return HuggingFaceSource(hf=path, task=likely_task(read_config(path)))


def _bare_recipe(source: ExportedSource | HuggingFaceSource) -> Recipe:
    """A recipe that holds the model alone."""
    from optimc.pipeline.recipe.schema import Recipe

    assert source.place is not None
    path = source.place.parent / "recipe.yaml"
    return Recipe(path=path, sha256="", model=source, variants={}, targets={})
