"""Models for the tests of pruning: what may go is small already, so that outputs hardly move."""

from __future__ import annotations

from optimc.core.model import OnnxModel

_SMALL = 1e-3


def nearly_sparse(model: OnnxModel) -> OnnxModel:
    """`model` with two of each four weights along the summed axis near zero.

    Where four does not divide that axis, it is half of the weight. Which ones is drawn by a seed,
    so cutting others breaks the outputs.
    """
    import numpy as np
    import onnx_ir as ir

    from optimc.core.onnx_sparsity import layer_weights

    clone, rng, done = model.clone(), np.random.default_rng(0), set()
    for weight in layer_weights(clone.ir.graph):
        if weight.value in done or weight.array.dtype != np.float32:
            continue
        array = weight.array.astype(np.float32)
        done.add(weight.value)
        last = np.moveaxis(array, weight.axis, -1)
        group = 4 if last.shape[-1] % 4 == 0 else array.size
        order = rng.permuted(np.tile(np.arange(group), (array.size // group, 1)), axis=-1)
        small = (order < (group + 1) // 2).reshape(last.shape)
        large = np.where(last < 0, -0.1, 0.1) + last
        new = np.moveaxis(np.where(small, last * _SMALL, large), -1, weight.axis)
        tensor = ir.Tensor(np.ascontiguousarray(new.astype(np.float32)), name=weight.value.name)
        weight.value.const_value = tensor
    return clone.sealed()


def sparse_contract_models() -> dict[str, OnnxModel]:
    """What pruning passes are held to the contract on."""
    from optimc.testing.graphs import small_models
    from optimc.testing.quantizable import quantizable_models

    models = {**small_models(), **quantizable_models()}
    names = ("branches", "convolutions", "depthwise", "quantized", "shared weights", "transposed")
    return {name: nearly_sparse(models[name]) for name in names}
