"""`correct_bias`: the contract, and that each channel's mean is the float model's afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import Calibration
from optimc.passes.correct_bias import CorrectBias
from optimc.testing import PassContract
from optimc.testing.calibrated import random_calibration
from optimc.testing.graphs import GraphBuilder
from optimc.testing.quantizable import conv
from optimc.testing.recoverable import depthwise_chain, float_models, quantized
from optimc.testing.runs import run_model, run_pass, seeded_feeds

FLOATS = float_models()
QUANTIZED = {name: quantized(model) for name, model in FLOATS.items()}


class TestCorrectBias(PassContract):
    passes = (CorrectBias(samples=32),)

    def models(self) -> Mapping[str, OnnxModel]:
        return QUANTIZED

    def calibration(self, model: OnnxModel) -> Calibration | None:
        return random_calibration(model)

    def quantized_from(self, model: OnnxModel) -> OnnxModel | None:
        return next(FLOATS[name] for name, one in QUANTIZED.items() if one is model or _same(one, model))


def _same(one: OnnxModel, other: OnnxModel) -> bool:
    return one.signature == other.signature
