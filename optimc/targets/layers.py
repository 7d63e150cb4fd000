"""What the layers that a runtime reports say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from optimc.core.targets import Layer

SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
"""The names of precisions in recipes and reports."""


def summary(layers: Iterable[Layer]) -> dict[str, Any]:
    """Plain data: `precision`, `int8_share`, `islands` and `layers`.

    `precision` is the type that most heavy layers compute in (of all layers where none is heavy);
    `int8_share` the share of heavy layers that compute in int8, None where there is no heavy one;
    `islands` the heavy layers of a quantized model that do not, each with its reason.
    """
    layers = list(layers)
    heavy = [layer for layer in layers if layer.heavy]
    int8 = sum(layer.dtype == "int8" for layer in heavy)
    common = Counter(layer.dtype for layer in heavy or layers).most_common(1)
    return {
        "precision": SHORT.get(common[0][0], common[0][0]) if common else None,
        "int8_share": int8 / len(heavy) if heavy else None,
        "islands": [
            {"node": layer.name, "reason": layer.reason} for layer in heavy if layer.reason
        ],
        "layers": [[layer.name, layer.operator, layer.dtype] for layer in layers],
    }
