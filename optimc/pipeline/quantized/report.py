"""The figures behind `optimc inspect --quantization`: plain data of any quantized ONNX file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimc.core.statistics import TensorStatistics
    from optimc.pipeline.quantized.onnx_layers import Quantized, QuantizedLayer

Statistics = Mapping[str, "TensorStatistics"]


def quantization_report(
    path: Path, targets: Sequence[str] = (), feeds: Path | None = None
) -> dict[str, Any]:
    """Layers, their tensors, and findings by target, as plain data.

    `targets` are names of runtimes. `feeds` is an npz file with samples [n, ...] for each input:
    activations are then observed on them. Raises InputError for a file that is no ONNX model, that
    holds nothing quantized, and for feeds that do not fit.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import InlinePass

    from optimc.core.registry import target_class
    from optimc.frontends.onnx_files import check_tensors, parse
    from optimc.pipeline.quantized.onnx_layers import quantized_layers
    from optimc.pipeline.quantized.onnx_lint import lint

    check_tensors(parse(path), path)
    model = ir.load(path)
    InlinePass()(model)
    layers = quantized_layers(model)
    if not layers:
        raise InputError(
            "the model holds no quantized layers",
            where=str(path),
            fix="name a quantized ONNX file; `optimc inspect MODEL` shows any model",
        )
    observed = _observed(model, layers, feeds) if feeds is not None else {}
    return {
        "layers": [_layer(layer, observed) for layer in layers],
        "types": _types(model, layers),
        "findings": {
            name: [
                {"rule": f.rule, "layer": f.where, "message": f.message}
                for f in lint(model, target_class(name)(runtime=name).spec())
            ]
            for name in targets
        },
        "activations": "observed on the feeds" if feeds else "not observed: no --feeds",
    }


def _types(model: ir.Model, layers: Sequence[QuantizedLayer]) -> dict[str, dict[str, int]]:
    """By operator type: how many layers are quantized, and how many there are in float."""
    quantized = Counter(layer.node.op_type for layer in layers)
    ours = {layer.node for layer in layers}
    floats = Counter(node.op_type for node in model.graph if node not in ours)
    return {
        kind: {"quantized": count, "float": floats.get(kind, 0)}
        for kind, count in quantized.most_common()
    }


def _layer(layer: QuantizedLayer, observed: Statistics) -> dict[str, Any]:
    return {
        "name": layer.name,
        "operator": layer.node.op_type,
        "form": layer.form,
        "tensors": [_tensor(tensor, observed) for tensor in layer.tensors],
    }


def _tensor(tensor: Quantized, observed: Statistics) -> dict[str, Any]:
    scale, zero = tensor.scale, tensor.zero_point.reshape(-1)
    found: dict[str, Any] = {
        "role": tensor.role,
        "name": tensor.name,
        "dtype": tensor.dtype,
        "granularity": tensor.granularity,
        "axis": tensor.axis,
        "channels": 0 if scale is None else int(scale.size),
        "scale": None if scale is None else [float(scale.min()), float(scale.max())],
        "zero_point": [int(zero.min()), int(zero.max())] if zero.size else None,
        "range": tensor.limits,
    }
    if tensor.role == "weight":
        found["sqnr_db"], found["sqnr_is"] = _weight_sqnr(tensor)
    elif tensor.name in observed:
        found |= _activation(tensor, observed[tensor.name])
    return found


def _weight_sqnr(tensor: Quantized) -> tuple[float | None, str]:
    """The signal-to-noise ratio of a weight's rounding, in dB, and how it is known.

    Where the file holds the floats, the measured one. Where it holds integers alone, what rounding
    errors that are uniform over a step of s give: mean(w^2) / (s^2 / 12).
    """
    import numpy as np

    from optimc.pipeline.quantized.onnx_layers import array_of

    floats, integers = array_of(tensor.floats), array_of(tensor.integers)
    array = floats if floats is not None else integers
    if array is None or tensor.scale is None or not array.size:
        return None, "the weight is not a constant"
    shape = [-1 if i == (tensor.axis or 0) % array.ndim else 1 for i in range(array.ndim)]
    many = tensor.scale.size > 1
    if many and tensor.scale.size != array.shape[(tensor.axis or 0) % array.ndim]:
        return None, "its scales stand for blocks"
    scale = tensor.scale.reshape(shape) if many else tensor.scale
    zero = tensor.zero_point.reshape(shape) if tensor.zero_point.size > 1 else tensor.zero_point
    wide = array.astype(np.float64)
    if floats is not None:
        info = np.iinfo(tensor.dtype)
        q = np.clip(np.rint(wide / scale) + zero, info.min, info.max)
        signal, noise = np.square(wide).sum(), np.square((q - zero) * scale - wide).sum()
        return _decibels(float(signal), float(noise)), "measured"
    signal = np.square((wide - zero) * scale).sum()
    noise = np.broadcast_to(np.square(scale) / 12, array.shape).sum()
    return _decibels(float(signal), float(noise)), "expected of rounding"


def _activation(tensor: Quantized, seen: TensorStatistics) -> dict[str, Any]:
    """What quantizing does to an activation, from its histogram."""
    import numpy as np

    from optimc.calibration.affine import Affine
    from optimc.passes._activation_noise import activation_sqnr

    found: dict[str, Any] = {"observed": [seen.minimum, seen.maximum]}
    if tensor.scale is None or tensor.scale.size != 1 or tensor.limits is None:
        return found
    info, zero = np.iinfo(tensor.dtype), int(tensor.zero_point.reshape(-1)[0])
    affine = Affine(tensor.dtype, float(tensor.scale), zero)
    sqnr = activation_sqnr(seen, affine)
    found["sqnr_db"] = sqnr if math.isfinite(sqnr) else None
    edges = np.linspace(-seen.limit, seen.limit, len(seen.histogram) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    q = np.rint(centres / affine.scale) + zero
    outside = seen.histogram[(q < info.min) | (q > info.max)].sum()
    found["sqnr_is"] = "measured"
    found["clipped"] = float(outside / max(1, seen.histogram.sum()))
    return found


def _decibels(signal: float, noise: float) -> float | None:
    if signal <= 0.0 or noise <= 0.0:
        return None
    return 10.0 * math.log10(signal / noise)


def _observed(
    model: ir.Model, layers: Sequence[QuantizedLayer], feeds: Path
) -> Mapping[str, TensorStatistics]:
    """Statistics of what stands in front of the Qs, on the samples of an npz file."""
    from optimc.calibration.checks import check_against
    from optimc.calibration.npz import NpzSource
    from optimc.calibration.observe import ActivationCalibration
    from optimc.core.model import OnnxModel
    from optimc.pipeline.cache import Cache

    source = OnnxModel(model).sealed()
    names = {spec.name: spec.name for spec in source.signature.inputs}
    written = {"npz": feeds.name, "inputs": names}
    dataset = NpzSource.model_validate(written).open(feeds.absolute().parent, 0)
    check_against(dataset, source.signature)
    wanted = {
        str(tensor.floats.name)
        for layer in layers
        for tensor in layer.tensors
        if tensor.floats is not None and tensor.role in ("input", "output")
    }
    calibration = ActivationCalibration(source, dataset, 0, Cache(enabled=False))
    return calibration.statistics(source, sorted(wanted))
