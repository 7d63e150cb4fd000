"""Bias correction of a quantized model, empirical or analytic.

Rounding the weights W of a layer to Wq moves the mean of each output channel: with the inputs x of
the float model and xq of the quantized one,

    E[Wq xq] = E[W x] + d        b' = b - d

(Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
arXiv:1906.04721, section 4.2). A depthwise filter averages few roundings, so its d is large. The
empirical variant measures d on calibration data, with what the layers before do to x; the analytic
one computes (Wq - W) E[x] alone, see `_bias_analytic`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimc.core.model import Level
from optimc.core.passes import Effect, Input, Pass, PassContext, PassResult, lossy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from optimc.core.model import Model, OnnxModel
    from optimc.core.passes import ValueReader
    from optimc.passes._recovery_layers import QuantizedLayer

NAME = "correct_bias"
_LEAST_SHARE = 1e-3
"""Errors below this share of a layer's output (root mean square) are not worth a change."""


class CorrectBias(Pass):
    """Takes the mean error of each channel out of a quantized layer's bias.

    Rewrites: the bias of each quantized Conv, ConvTranspose and Gemm, layer by layer in the order
        of the graph, so that each sees the layers before it corrected. The mean of each output
        channel over the calibration data then is that of the float model. One numbered rewrite is
        one layer. `method: analytic` gives each bias what the rounding of its own weight takes
        from the mean, by a formula, in one sweep over the data or, behind BatchNormalization, in
        none.
    Refuses: layers without a constant bias of their own, layers that the float model does not have
        under the same name, and errors below 0.1 % of the layer's output (analytic: below half a
        step of the bias). Analytic: ConvTranspose, Gemm with transA, and with a calibration table
        in place of data, layers that no BatchNormalization stands before. A model that no pass
        before it quantized is an error.
    Accuracy: lossy; changes constants alone. Judged by the gate where the recipe limits a metric,
        else by an output SQNR of 10 dB against the model that it was given.
    Options: method, samples.
    """

    method: Literal["empirical", "analytic"] = "empirical"
    """`empirical` compares each layer's mean outputs in both models, one sweep for each layer;
    `analytic` takes the error of the weights times the mean inputs: faster, and blind for what
    clipped and rounded activations do."""
    samples: Annotated[int, Field(ge=1)] = 256
    """How many calibration samples the means are taken over (all where there are fewer)."""

    level: ClassVar[Level] = Level.ONNX
    reads: ClassVar[frozenset[Input]] = frozenset({Input.CALIBRATION, Input.FLOAT})
    reads_names: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx-ir", "onnxruntime")

    @property
    def effect(self) -> Effect:
        """LOSSY: what it mends may be far off."""
        return lossy(10.0)

    def check(self, model: Model, context: PassContext) -> None:
        """Raises PreconditionError where no pass before it quantized the model."""
        from optimc.passes._recovery_layers import check_quantized

        check_quantized(context, NAME)

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class."""
        from optimc.passes._recovery_layers import quantized_layers

        layers = [
            layer for layer in quantized_layers(model, context, NAME) if _has_bias(layer, context)
        ]
        if self.method == "analytic":
            return self._computed(model, context, layers)
        origin, log = context.float_model, context.log
        assert origin is not None
        corrected = 0
        with context.calibration.reader(self.samples) as reader:
            wanted = _moments(reader, origin, layers) if layers else {}
            for number, layer in enumerate(layers):
                context.progress(number / len(layers), f"correcting {layer.label}")
                key = layer.label
                seen = _moments(reader, model, [layer], quantized=True)[key]
                error = _error(wanted[key], seen, layer)
                if error is None:
                    log.refuse(NAME, key, "its mean error is below 0.1 % of its output")
                elif not _moves(layer, error):
                    log.refuse(NAME, key, "its mean error is below half a step of its bias")
                elif log.allow("correct the bias", key):
                    _correct(layer, error)
                    corrected += 1
                else:
                    break
        return PassResult(
            model.sealed(), corrected > 0, {"corrected": corrected}, log.rewrites, log.refusals
        )

    def _computed(
        self, model: OnnxModel, context: PassContext, layers: list[QuantizedLayer]
    ) -> PassResult:
        """The analytic variant."""
        from optimc.passes import _bias_analytic as analytic

        log, fitting = context.log, []
        for layer in layers:
            reason = analytic.unfit(layer)
            if reason is None:
                fitting.append(layer)
            else:
                log.refuse(NAME, layer.label, reason)
        means, by_norm = analytic.input_means(fitting, context, self.samples)
        corrected: list[str] = []
        for layer in fitting:
            mean = means.get(layer.label)
            error = analytic.NO_MEANS if mean is None else analytic.correction(layer, mean)
            if isinstance(error, str):
                log.refuse(NAME, layer.label, error)
            elif not _moves(layer, error):
                log.refuse(NAME, layer.label, "its bias is right already, to half a step")
            elif log.allow("correct the bias", layer.label):
                _correct(layer, error)
                corrected.append(layer.label)
            else:
                break
        stats = {
            "corrected": len(corrected),
            "by_batchnorm": sum(label in by_norm for label in corrected),
        }
        return PassResult(model.sealed(), bool(corrected), stats, log.rewrites, log.refusals)


def _has_bias(layer: QuantizedLayer, context: PassContext) -> bool:
    """Whether there is a bias to correct; refuses where not."""
    from optimc.passes._quantize_units import constant
    from optimc.passes._recovery_layers import dequantizer

    value = layer.bias
    if value is not None and (dequantizer(value) is not None or constant(value) is not None):
        return True
    context.log.refuse(NAME, layer.label, "it has no constant bias to correct")
    return False


def _moments(
    reader: ValueReader, model: OnnxModel, layers: list[QuantizedLayer], *, quantized: bool = False
) -> Mapping[str, Mapping[str, Any]]:
    """Mean and mean square of each output channel of the layers, by label."""
    from optimc.calibration.values import Reduction

    def value(layer: QuantizedLayer) -> str:
        return str((layer.output if quantized else layer.float_node.outputs[0]).name)

    return reader.reduce(
        {"model": model},
        {
            layer.label: Reduction(
                "channel_moments", [("model", value(layer))], {"axis": layer.axis}
            )
            for layer in layers
        },
    )


def _error(
    wanted: Mapping[str, Any], seen: Mapping[str, Any], layer: QuantizedLayer
) -> NDArray[Any] | None:
    """What to add to each channel, float64; None where it is not worth it or not finite."""
    import numpy as np

    error = wanted["mean"] - seen["mean"]
    scale = float(np.sqrt(wanted["square"].mean()))
    if not np.isfinite(error).all() or np.abs(error).max(initial=0.0) < _LEAST_SHARE * scale:
        return None
    return np.asarray(error)


def _moves(layer: QuantizedLayer, error: NDArray[Any]) -> bool:
    """Whether the bias can take any of the error: integers take whole steps, floats what is more
    than their own rounding."""
    import numpy as np

    from optimc.passes._quantize_units import constant
    from optimc.passes._recovery_layers import dequantizer, scale_of

    assert layer.bias is not None
    node = dequantizer(layer.bias)
    if node is not None:
        return bool(np.any(np.rint(error / scale_of(node).astype(np.float64))))
    bias = constant(layer.bias)
    assert bias is not None
    least = 1e-6 * max(float(np.abs(bias).max(initial=0.0)), float(np.finfo(np.float32).tiny))
    return float(np.abs(error).max(initial=0.0)) > least


def _correct(layer: QuantizedLayer, error: NDArray[Any]) -> None:
    """Adds to the bias: to the integers behind a DQ, or to the float constant."""
    import numpy as np

    from optimc.passes._quantize_units import constant
    from optimc.passes._recovery_layers import dequantizer, replace_input, scale_of

    assert layer.bias is not None
    node = dequantizer(layer.bias)
    if node is None:
        bias = constant(layer.bias)
        assert bias is not None
        beta = layer.node.attributes.get("beta")
        factor = 1.0 if beta is None or layer.node.op_type != "Gemm" else float(beta.value)
        replace_input(
            layer.node,
            2,
            (bias.astype(np.float64) + error / factor).astype(bias.dtype),
            "corrected",
        )
        return
    integers = constant(node.inputs[0])
    assert integers is not None
    step = scale_of(node).astype(np.float64)
    limit = 2.0**31 - 1
    moved = np.clip(np.rint(integers.astype(np.float64) + error / step), -limit, limit).astype(
        np.int32
    )
    replace_input(layer.node, 2, moved, "corrected")
