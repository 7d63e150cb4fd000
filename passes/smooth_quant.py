"""Moves the difficulty of quantizing activations with outlier channels into the weights.

    Y = X W = (X S^-1) (S W),    S = diag(s),    s_k = max|X_k|^alpha / max|W_k|^(1 - alpha)

over input channels k, with the maxima of the activations from calibration data (Xiao et al. 2022,
"SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
arXiv:2211.10438, equation 4). S^-1 goes into the scale and the bias of the normalization that makes
X.

With `alpha: auto` each group takes the alpha whose expected squared error of Y is least. A rounding
to steps of d has the variance d^2 / 12 (Bennett 1948), so with one step dx for all of X S^-1 and
one step dw_j for each output channel of S W

    E = sum_j ( dx^2 / 12 * sum_k (s_k W_kj)^2  +  dw_j^2 / 12 * sum_k E[(X_k / s_k)^2] )
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimc.core.model import Level
from optimc.core.passes import Effect, Input, Pass, PassContext, PassResult, tolerance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from optimc.core.model import OnnxModel
    from optimc.passes._smooth_groups import Group

NAME = "smooth_quant"
_WORTH = 0.9
"""The share of the expected error that has to be left at most for a group to be smoothed."""
_LEAST_CHANGE = 0.01
"""Groups none of whose channels changes by more than this share are smooth already."""


class SmoothQuant(Pass):
    """Makes activations behind normalizations easier to quantize, at the cost of the weights.

    Transformers have a few channels that are many times larger than the others; with one scale for
    the whole activation the others lose their bits. Run `fuse` before it, which writes
    LayerNormalization as one node, and `quantize_int8` behind it.

    Rewrites: the scale and the bias of a LayerNormalization, or the constant of a Mul, and the
        weights of the MatMuls and Gemms that read its result. Where other nodes read it too (the
        residual of BERT), a Mul is put in front of the products. One numbered rewrite is one group
        of products that read the same value.
    Refuses: groups whose weights are shared or no float32 constants of two dims, activations that
        are not finite on the calibration data, and groups that are smooth already or would not
        gain. A graph with Q/DQ nodes stays as it is.
    Accuracy: within 1e-5 of each output's scale: the same function, rounded in other places. Values
        that change lose their source names.
    Options: alpha, multiply, samples.
    """

    alpha: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = "auto"
    """How much of the difficulty goes into the weights: 0 evens out the weights, 1 the activations;
    `auto` takes for each group what promises the least error of its products."""
    multiply: bool = True
    """Whether to put in a Mul where a normalization's result is read by other nodes too."""
    samples: Annotated[int, Field(ge=1)] = 256
    """How many calibration samples the maxima are taken over (all where there are fewer)."""

    level: ClassVar[Level] = Level.ONNX
    reads: ClassVar[frozenset[Input]] = frozenset({Input.CALIBRATION})
    reads_names: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx-ir", "onnxruntime")

    @property
    def effect(self) -> Effect:
        """Scaled weights round differently."""
        return tolerance()

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class."""
        from optimc.core.analyses import QuantizationNodes
        from optimc.passes._smooth_groups import find_groups

        log = context.log
        if context.analysis(QuantizationNodes, model):
            log.refuse(NAME, "the whole graph", "float arithmetic stays in a quantized graph")
            return PassResult(model.sealed(), False, {}, log.rewrites, log.refusals)
        groups = find_groups(
            model.ir.graph, self.multiply, lambda where, why: log.refuse(NAME, where, why)
        )
        seen = self._seen(model, context, groups)
        changed = 0
        for group in groups:
            scale = self._scale(group, seen[group.label])
            if isinstance(scale, str):
                log.refuse(NAME, group.label, scale)
            elif log.allow("smooth", group.label):
                group.smooth(scale)
                changed += 1
        return PassResult(model.sealed(), changed > 0, {}, log.rewrites, log.refusals)

    def _seen(
        self, model: OnnxModel, context: PassContext, groups: Sequence[Group]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Maximum and mean square of each channel of each group's value, by label."""
        from optimc.calibration.values import Reduction

        if not groups:
            return {}
        reductions = {}
        for group in groups:
            value = [("model", str(group.value.name))]
            reductions[f"{group.label} max"] = Reduction("channel_maximum", value, {"axis": -1})
            reductions[f"{group.label} mean"] = Reduction("channel_moments", value, {"axis": -1})
        context.progress(0.0, "observing the channels of activations")
        with context.calibration.reader(self.samples) as reader:
            found = reader.reduce({"model": model}, reductions)
        return {
            group.label: {**found[f"{group.label} max"], **found[f"{group.label} mean"]}
            for group in groups
        }

    def _scale(self, group: Group, seen: Mapping[str, Any]) -> NDArray[Any] | str:
        """The factor s of each channel, or why there is none."""
        import numpy as np

        from optimc.passes._smooth_groups import smoothing

        most, square = seen["maximum"], seen["square"]
        if not (np.isfinite(most).all() and np.isfinite(square).all()):
            return "its activations are not finite on the calibration data"
        weight = group.weights()
        if self.alpha == "auto":
            tried = [smoothing(most, weight, step / 20) for step in range(21)]
            errors = [_expected_error(s, most, square, weight) for s in tried]
            scale, least = tried[int(np.argmin(errors))], min(errors)
            if least >= _WORTH * _expected_error(np.ones_like(most), most, square, weight):
                return "smoothing promises no error that is 10 % smaller"
        else:
            scale = smoothing(most, weight, self.alpha)
        if np.abs(np.log(scale)).max(initial=0.0) <= _LEAST_CHANGE:
            return "it is smooth already"
        return scale


def _expected_error(
    scale: NDArray[Any], most: NDArray[Any], square: NDArray[Any], weight: NDArray[Any]
) -> float:
    """E of the module's docstring, up to a constant; `weight` is [inputs, outputs] float64."""
    import numpy as np

    scaled = weight * scale[:, None]
    activation_step = 2 * (most / scale).max(initial=0.0) / 255
    weight_steps = np.abs(scaled).max(axis=0, initial=0.0) / 127
    of_activations = activation_step**2 * np.square(scaled).sum()
    of_weights = np.square(weight_steps).sum() * (square / scale**2).sum()
    return float(of_activations + of_weights)
