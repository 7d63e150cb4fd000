"""The model's interface for checks that come before any build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.pipeline.inputs import declared_signature
from optimc.pipeline.recipe.model_sources import OnnxSource

if TYPE_CHECKING:
    from optimc.core.model import Signature
    from optimc.pipeline.recipe.schema import Recipe


def checked_signature(recipe: Recipe) -> tuple[Recipe, Signature]:
    """The recipe with what its model says of dims and values, and the model's signature.

    An ONNX file is only looked at. A model of PyTorch is exported and compared, because only that
    tells whether it can be; a build then finds it in the cache. Raises InputError.
    """
    if isinstance(recipe.model, OnnxSource):
        from optimc.frontends.onnx import read_signature

        return recipe, declared_signature(recipe, read_signature(recipe.model.onnx))
    from optimc.pipeline.build import worker_limits
    from optimc.pipeline.cache import Cache
    from optimc.pipeline.ingest import read_source
    from optimc.pipeline.ingest_torch import with_known
    from optimc.pipeline.naming import check_module_names

    cache = Cache()
    try:
        with cache.workspace() as workspace:
            source = read_source(recipe, cache, worker_limits(recipe), workspace)
            check_module_names(recipe, source.known)
            return with_known(recipe, source.known), source.model.signature
    finally:
        cache.close()
