"""Rounds the weights of a quantized model up or down by what each layer's output loses.

Layer by layer, with the inputs that the layer gets in the quantized model and the outputs that it
had in the float one (the asymmetric reconstruction of Nagel et al. 2020, "Up or Down? Adaptive
Rounding for Post-Training Quantization", arXiv:2004.10568, section 3, without its activation
function, so that the error stays quadratic). The algebra is in `_rounding`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from optimc.core.model import Level
from optimc.core.passes import Effect, Input, Pass, PassContext, PassResult, lossy

if TYPE_CHECKING:
    from optimc.core.model import Model, OnnxModel
    from optimc.core.passes import ValueReader
    from optimc.passes._recovery_layers import QuantizedLayer
    from optimc.passes._rounding_layers import Rows

NAME = "fit_rounding"
_SERVICE = "optimc.passes._rounding_service:RoundingService"


class FitRounding(Pass):
    """Chooses for each weight of a quantized layer whether it is rounded up or down.

    Rewrites: the int8 weights of each quantized Conv, Gemm and MatMul, layer by layer in the order
        of the graph, so that each makes up for the errors of the layers before it. Scales, biases
        and everything else stay. One numbered rewrite is one layer.
    Refuses: ConvTranspose, convolutions with SAME padding, weights with more than two dims in a
        MatMul, layers that the float model does not have under the same name, layers of which
        rounding to nearest is the best already, and what is left when the time is up. A model that
        no pass before it quantized is an error.
    Accuracy: lossy; changes constants alone. No layer's squared error on the calibration data gets
        larger than with rounding to nearest. Judged by the gate where the recipe limits a metric,
        else by an output SQNR of 10 dB against the model that it was given.
    Options: samples, positions, iterations, at_most.
    """

    samples: Annotated[int, Field(ge=1)] = 256
    """How many calibration samples the errors are taken over (all where there are fewer)."""
    positions: Annotated[int, Field(ge=1)] = 64
    """How many rows of a layer's output (pixels, tokens) each sample gives at most, by chance."""
    iterations: Annotated[int, Field(ge=0, le=100_000)] = 500
    """Steps of the continuous relaxation. With 0, and in layers where it would take minutes,
    weights are only turned one or two at a time."""
    at_most: Annotated[float, Field(gt=0)] = 900.0
    """Seconds after which no further layer is begun: those left stay as they are, and the report
    lists them. Where that happens, a slower machine gives another result."""

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
        from optimc.passes._rounding_layers import rows_of

        log, start = context.log, time.monotonic()
        errors = [0.0, 0.0]
        found = quantized_layers(model, context, NAME)
        layers: list[tuple[QuantizedLayer, Rows]] = []
        for layer in found:
            rows = rows_of(layer)
            if isinstance(rows, str):
                log.refuse(NAME, layer.label, rows)
            else:
                layers.append((layer, rows))
        with context.calibration.reader(self.samples, _SERVICE) as reader:
            for number, (layer, rows) in enumerate(layers):
                if time.monotonic() - start > self.at_most:
                    reason = f"the {self.at_most:g} s that at_most gives were over before its turn"
                    log.refuse(NAME, layer.label, reason)
                    continue
                context.progress(number / len(layers), f"fitting {layer.label}")
                integers, before, after = self._fit(reader, model, context, layer, rows)
                if (integers == rows.integers).all():
                    log.refuse(NAME, layer.label, "its weights are rounded the best way already")
                elif log.allow("round the weights", layer.label):
                    rows.store(integers)
                    errors = [errors[0] + before, errors[1] + after]
                else:
                    break
        return PassResult(
            model.sealed(), bool(log.rewrites), _stats(errors), log.rewrites, log.refusals
        )

    def _fit(
        self,
        reader: ValueReader,
        model: OnnxModel,
        context: PassContext,
        layer: QuantizedLayer,
        rows: Rows,
    ) -> tuple[Any, float, float]:
        """The integers as they are stored, and the errors before and after."""
        from optimc.calibration.values import Reduction

        assert context.float_model is not None
        reduction = Reduction(
            "products",
            [
                ("quantized", str(layer.source.name)),
                ("float", str(layer.float_node.outputs[0].name)),
            ],
            {**rows.options, "positions": self.positions, "seed": context.seed},
        )
        models = {"quantized": model, "float": context.float_model}
        reader.reduce(models, {"layer": reduction}, fetch=False)
        answer = reader.call(
            "fit", rows.arrays(), key="layer", limit=rows.limit, iterations=self.iterations
        )
        nearest, fitted, exact = (float(error) for error in answer["errors"])
        return rows.in_place(answer["integers"]), nearest - exact, fitted - exact


def _stats(errors: list[float]) -> dict[str, float]:
    """By how many dB the layers' summed squared errors fell, against the float weights."""
    import math

    before, after = errors
    return {"gain_db": 10 * math.log10(before / after)} if 0 < after < before else {}
