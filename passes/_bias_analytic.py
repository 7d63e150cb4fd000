"""Analytic bias correction: what a weight's rounding does to the mean of a layer's output.

With the rounding error e = Wq - W and inputs of the means E[x] (Nagel et al. 2019,
arXiv:1906.04721, section 4.2),

    E[Wq x] - E[W x] = sum over i, k of  e[o, i, k] p[k] E[x_i]

where p[k] is the share of positions at which the tap k of a convolution lies inside of the image
and not in the padding (the paper takes 1). Behind a BatchNormalization with factor g and shift b,
a channel is taken for normal with mean b and standard deviation |g| (section 4.2.1 and appendix C);
clipped to [l, h], with u = (l - b) / |g| and v = (h - b) / |g|,

    E[x] = l F(u) + h (1 - F(v)) + b (F(v) - F(u)) + |g| (f(u) - f(v))

for the standard normal's density f and distribution F. Elsewhere the means are those of the float
model on calibration data: one sweep for all layers. Imports onnx_ir.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from optimc.calibration.values import Reduction
from optimc.core.errors import InputError
from optimc.passes._quantize_graph import number
from optimc.passes._quantize_units import constant
from optimc.passes._recovery_layers import dequantizer, integers_of, scale_of

if TYPE_CHECKING:
    from optimc.core.passes import PassContext
    from optimc.passes._recovery_layers import QuantizedLayer

Floats = NDArray[np.float64]

NO_MEANS = (
    "no BatchNormalization before it tells the means of its inputs, and a calibration table holds"
    " ranges alone"
)


def unfit(layer: QuantizedLayer) -> str | None:
    """Why the formula does not hold for a layer, or None."""
    node, given = layer.node, layer.float_node.inputs
    if node.op_type == "ConvTranspose":
        return "the analytic method knows no ConvTranspose"
    if node.op_type == "Gemm" and number(node, "transA", 0):
        return "the analytic method knows no transposed inputs"
    if len(given) < 3 or constant(given[2]) is None:
        return "the float model has no constant bias there"
    return None


def input_means(
    layers: Sequence[QuantizedLayer], context: PassContext, samples: int
) -> tuple[dict[str, Floats], set[str]]:
    """The mean of each input channel by layer, and the layers whose means BatchNormalization told.

    Layers are missing where nothing tells.
    """
    means = {layer.label: means_by_norm(layer.float_node.inputs[0]) for layer in layers}
    found = {label: mean for label, mean in means.items() if mean is not None}
    by_norm = set(found)
    unknown = [layer for layer in layers if layer.label not in found]
    if unknown:
        found |= _means_by_data(unknown, context, samples)
    return found, by_norm


def _means_by_data(
    layers: Sequence[QuantizedLayer], context: PassContext, samples: int
) -> dict[str, Floats]:
    """From one sweep over the float model; nothing where there are no samples."""
    assert context.float_model is not None
    reductions = {
        layer.label: Reduction(
            "channel_moments",
            [("model", str(layer.float_node.inputs[0].name))],  # type: ignore[union-attr]
            {"axis": layer.axis},
        )
        for layer in layers
    }
    try:
        reader = context.calibration.reader(samples)
    except InputError:
        return {}
    with reader:
        told = reader.reduce({"model": context.float_model}, reductions)
    return {label: np.asarray(one["mean"], np.float64) for label, one in told.items()}


def means_by_norm(value: ir.Value | None) -> Floats | None:
    """The means of the channels of [Relu or Clip of] a BatchNormalization, or None."""
    low, high = -math.inf, math.inf
    node = None if value is None else value.producer()
    if node is not None and node.op_type in ("Relu", "Clip"):
        limits = _limits(node)
        if limits is None:
            return None
        (low, high), first = limits, node.inputs[0]
        node = None if first is None else first.producer()
    if node is None or node.op_type != "BatchNormalization":
        return None
    factor, shift = constant(node.inputs[1]), constant(node.inputs[2])
    if factor is None or shift is None:
        return None
    return clipped_mean(shift.astype(np.float64), np.abs(factor.astype(np.float64)), low, high)


def _limits(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, math.inf
    found = [-math.inf, math.inf]
    for index, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        array = constant(value)
        if array is None or array.size != 1:
            return None
        found[index] = float(array.reshape(()))
    return found[0], found[1]


def clipped_mean(mean: Floats, deviation: Floats, low: float, high: float) -> Floats:
    """The means [n] of normal variables, by `mean` and `deviation` [n], clipped to [low, high]."""
    from scipy.special import ndtr

    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = (low - mean) / deviation, (high - mean) / deviation
    inside = mean * (ndtr(v) - ndtr(u)) + deviation * (_density(u) - _density(v))
    below = low * ndtr(u) if math.isfinite(low) else 0.0
    above = high * (1.0 - ndtr(v)) if math.isfinite(high) else 0.0
    fixed = np.clip(mean, low, high)
    return np.asarray(np.where(deviation > 0.0, inside + below + above, fixed))


def _density(x: Floats) -> Floats:
    return np.asarray(np.exp(-0.5 * np.square(x)) / math.sqrt(2.0 * math.pi))


def correction(layer: QuantizedLayer, means: Floats) -> Floats | str:
    """What to add to each output channel so that the bias becomes that of the formula; or why
    it cannot be had."""
    error = _weight_error(layer)
    if error is None:
        return "its weight has another shape than the float model's"
    node = layer.node
    if node.op_type == "Gemm":
        shift = means @ error if len(error) == len(means) else None
    else:
        shift = _of_conv(layer, error, means)
    if shift is None:
        return "its inputs are not of one size for each channel"
    return np.asarray(_float_bias(layer) - _bias(layer) - shift)


def _weight_error(layer: QuantizedLayer) -> Floats | None:
    """The quantized weight less the float one; Gemm's as a matrix [inputs, outputs].

    `quantize_int8` puts Gemm's factors into the constants, so each node's own ones count.
    """
    dq = dequantizer(layer.node.inputs[1])
    integers, wanted = integers_of(layer.node.inputs[1]), constant(layer.float_node.inputs[1])
    if dq is None or integers is None or wanted is None:
        return None
    rounded = integers.astype(np.float64) * scale_of(dq).astype(np.float64)
    pair = [(layer.node, rounded), (layer.float_node, wanted.astype(np.float64))]
    if layer.node.op_type == "Gemm":
        pair = [
            (node, number(node, "alpha", 1.0) * (array.T if number(node, "transB", 0) else array))
            for node, array in pair
        ]
    (_, new), (_, old) = pair
    return np.asarray(new - old) if new.shape == old.shape else None


def _bias(layer: QuantizedLayer) -> Floats:
    """What the bias adds to the outputs as it stands."""
    assert layer.bias is not None
    dq = dequantizer(layer.bias)
    stored = constant(layer.bias if dq is None else dq.inputs[0])
    assert stored is not None
    step = 1.0 if dq is None else scale_of(dq).astype(np.float64)
    return np.asarray(_beta(layer.node) * stored.astype(np.float64) * step)


def _float_bias(layer: QuantizedLayer) -> Floats:
    """What it adds in the float model."""
    stored = constant(layer.float_node.inputs[2])
    assert stored is not None, "unfit says so"
    return np.asarray(_beta(layer.float_node) * stored.astype(np.float64))


def _beta(node: ir.Node) -> float:
    return number(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0


def _of_conv(layer: QuantizedLayer, error: Floats, means: Floats) -> Floats | None:
    groups = int(number(layer.node, "group", 1))
    outputs, inputs = error.shape[:2]
    if len(means) != groups * inputs or outputs % groups:
        return None
    taps = np.ones(error.shape[2:])
    for axis, share in enumerate(_shares(layer.float_node, error.shape[2:])):
        taps *= share.reshape([-1 if i == axis else 1 for i in range(taps.ndim)])
    sums = (error * taps).reshape(outputs, inputs, -1).sum(axis=2)
    mean = means.reshape(groups, inputs)
    grouped = sums.reshape(groups, outputs // groups, inputs)
    return np.asarray(np.einsum("goi,gi->go", grouped, mean).reshape(outputs))


def _shares(node: ir.Node, kernel: Sequence[int]) -> list[Floats]:
    """For each axis of space: the share of positions at which each tap lies inside.

    1 where the sizes are not known before run time.
    """
    rank, ones = len(kernel), [np.ones(size) for size in kernel]
    read, made = (_space(value, rank) for value in (node.inputs[0], node.outputs[0]))
    if read is None or made is None:
        return ones
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return ones
    pads = _numbers(node, "pads", 0, 2 * rank)
    strides, gaps = _numbers(node, "strides", 1, rank), _numbers(node, "dilations", 1, rank)
    found = []
    for axis, size in enumerate(kernel):
        starts = np.arange(made[axis])[:, None] * strides[axis] - pads[axis]
        at = starts + np.arange(size)[None, :] * gaps[axis]
        found.append(((at >= 0) & (at < read[axis])).mean(axis=0))
    return found


def _space(value: ir.Value | None, rank: int) -> list[int] | None:
    shape = None if value is None else value.shape
    if shape is None or len(shape) != rank + 2:
        return None
    sizes = [dim for dim in list(shape)[2:] if isinstance(dim, int) and dim > 0]
    return sizes if len(sizes) == rank else None


def _numbers(node: ir.Node, name: str, default: int, count: int) -> Sequence[int]:
    attribute = node.attributes.get(name)
    return [default] * count if attribute is None else list(attribute.as_ints())
