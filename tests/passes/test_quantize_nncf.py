"""`quantize_nncf`: the contract with NNCF in this process, and what it asks, keeps and refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from optimc.core.errors import CellError, PreconditionError, UnavailableError
from optimc.core.model import Model, OnnxModel
from optimc.core.passes import Calibration, Drop, Input, PassResult
from optimc.core.targets import TargetSpec
from optimc.passes.quantize_nncf import QuantizeNncf
from optimc.targets.quantization_specs import onnxruntime_cpu, openvino_cpu, tensorrt
from optimc.testing import PassContract
from optimc.testing.calibrated import random_calibration, target_spec
from optimc.testing.inline_workers import InlineWorker
from optimc.testing.quantizable import matmul, quantizable_models, residual
from optimc.testing.recoverable import depthwise_chain, quantized
from optimc.testing.runs import run_pass

needs_nncf = pytest.mark.skipif(
    find_spec("nncf") is None, reason="the extra `openvino` is not installed"
)
SPEC = target_spec(openvino_cpu({"avx512_vnni"}))


@pytest.fixture(name="inline")
def nncf_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process for each run: importing NNCF takes seconds."""
    from optimc.passes import _nncf_work

    monkeypatch.setattr(_nncf_work, "Worker", InlineWorker)


@needs_nncf
@pytest.mark.slow
@pytest.mark.usefixtures("inline")
class TestQuantizeNncf(PassContract):
    passes = (QuantizeNncf(samples=32, ranges="minmax"),)

    def models(self) -> Mapping[str, OnnxModel]:
        every = quantizable_models()
        return {name: every[name] for name in ("middle outputs", "residual", "transposed")}

    def spec(self) -> TargetSpec | None:
        return SPEC

    def calibration(self, model: OnnxModel) -> Calibration | None:
        return random_calibration(model)


def run(pass_: QuantizeNncf, model: OnnxModel, **more: Any) -> PassResult:
    given = {"spec": SPEC, "calibration": random_calibration(model), **more}
    return run_pass(pass_, model, **given)


def graph_of(result: PassResult) -> Any:
    assert isinstance(result.model, OnnxModel)
    return result.model.ir.graph


@dataclass
class Planned:
    """A tuning split whose drops are planned; keeps how many Q each model has."""

    drops: list[float]
    digest: str = "planned"
    metric: str = "top1"
    seen: list[int] = field(default_factory=list)

    def drop(self, model: Model) -> Drop:
        assert isinstance(model, OnnxModel)
        point = self.drops[min(len(self.seen), len(self.drops) - 1)]
        self.seen.append(sum(node.op_type == "QuantizeLinear" for node in model.ir.graph))
        return Drop(point, point, point, 100)

    def drop_of(self, run: object) -> Drop:
        """Nothing asks for it."""
        raise NotImplementedError

    def sqnr_db(self, model: Model, reference: Model) -> float:
        """Nothing asks for it."""
        raise NotImplementedError


@needs_nncf
@pytest.mark.slow
@pytest.mark.usefixtures("inline")
class TestNncf:
    """What NNCF makes of it."""

    def test_activations_biases_and_weights_are_of_the_kinds_that_are_told(self) -> None:
        graph = graph_of(run(QuantizeNncf(samples=16, preset="mixed"), residual()))
        convolution = next(node for node in graph if node.op_type == "Conv")
        read, weight = (value.producer() for value in convolution.inputs[:2])
        assert (read.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert weight.inputs[0].const_value.numpy().dtype == np.int8, "stored as integers"
        assert weight.inputs[1].const_value.numpy().shape == (8,)
        assert not weight.inputs[2].const_value.numpy().any()
        assert read.inputs[1].const_value.numpy().shape == ()
        assert convolution.inputs[2].producer() is None, "a float bias"

    def test_ranges_are_means_of_the_samples_extremes_or_the_extremes(self) -> None:
        scales = [
            float(graph_of(result)[0].inputs[1].const_value.numpy())
            for result in (
                run(QuantizeNncf(samples=16, ranges="mean"), residual()),
                run(QuantizeNncf(samples=16, ranges="minmax"), residual()),
            )
        ]
        assert scales[0] < scales[1]

    def test_the_full_range_is_taken_unless_the_cpu_saturates(self) -> None:
        def greatest(features: set[str]) -> list[int]:
            spec = target_spec(openvino_cpu(features))
            graph = graph_of(run(QuantizeNncf(samples=4), residual(), spec=spec))
            weights = [n.inputs[1].producer().inputs[0] for n in graph if n.op_type == "Conv"]
            return [int(np.abs(w.const_value.numpy().astype(int)).max()) for w in weights]

        assert set(greatest({"avx512_vnni"})) <= {127, 128}
        assert set(greatest(set())) <= {63, 64}

    def test_biases_are_corrected(self) -> None:
        """The mean output of a layer is that of the float model, nearer than without."""
        model = depthwise_chain()
        result = run(QuantizeNncf(samples=64), model)
        old = {n.name: n.inputs[2] for n in model.ir.graph if n.op_type == "Conv"}
        moved = [
            not np.array_equal(n.inputs[2].const_value.numpy(), old[n.name].const_value.numpy())
            for n in graph_of(result)
            if n.op_type == "Conv"
        ]
        assert any(moved)

    def test_attention_is_found_and_smoothed(self) -> None:
        smoothed = run(QuantizeNncf(samples=16), matmul())
        plain = run(QuantizeNncf(samples=16, smooth_quant=False), matmul())
        assert smoothed.model.digest != plain.model.digest
        products = [sum(n.op_type == "Mul" for n in graph_of(r)) for r in (smoothed, plain)]
        assert products[0] > products[1]
        told = run(QuantizeNncf(samples=16, transformer=False), matmul())
        assert sum(n.op_type == "Mul" for n in graph_of(told)) == products[1]

    def test_what_is_named_stays_in_float(self) -> None:
        result = run(QuantizeNncf(samples=8, keep_float=["Gemm"]), residual())
        assert all(
            v.producer() is None or v.producer().op_type != "DequantizeLinear"
            for n in graph_of(result)
            if n.op_type == "Gemm"
            for v in n.inputs
        )
        assert [r.reason for r in result.refusals if r.rule == "quantize Gemm"] == [
            "kept in float by `Gemm`"
        ]

    def test_where_nothing_is_quantized_it_says_so(self) -> None:
        with pytest.raises(PreconditionError, match="quantizes nothing") as caught:
            run(QuantizeNncf(samples=4, keep_float=["*"]), residual())
        assert "keep less in float" in str(caught.value.fix)

    def test_a_failure_of_nncf_is_one_message(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import nncf

        def broken(*_: object, **__: object) -> None:
            raise ValueError("it does not know this")

        monkeypatch.setattr(nncf, "quantize", broken)
        with pytest.raises(CellError, match="NNCF cannot quantize this model: ValueError: it does"):
            run(QuantizeNncf(samples=4), residual())

    def test_nothing_is_put_back_where_the_first_model_is_good(self) -> None:
        tuning = Planned([0.0])
        result = run(QuantizeNncf(samples=8, max_drop=0.01), residual(), tuning=tuning)
        assert result.choice == {"float": []}
        assert result.budget is not None
        assert result.budget.met
        assert len(tuning.seen) == 2, "NNCF's first model, and the one that ships"
        assert result.model.digest == run(QuantizeNncf(samples=8), residual()).model.digest

    def test_operators_go_back_to_float_until_the_drop_is_met(self) -> None:
        tuning = Planned([0.05, 0.03, 0.001])
        pass_ = QuantizeNncf(samples=8, max_drop=0.01)
        result = run(pass_, residual(), tuning=tuning)
        assert result.budget is not None
        assert (result.budget.name, result.budget.met) == ("max_drop.top1", True)
        kept = result.choice["float"]
        assert kept
        assert tuning.seen[0] > tuning.seen[1] > tuning.seen[2]
        assert len(tuning.seen) == 4, "three trials, and the model that ships"
        reasons = [r for r in result.refusals if "to meet max_drop 0.01" in r.reason]
        assert len(reasons) == len(kept)
        assert "best of 3 trials" in result.notes[0]
        # What the lock holds gives the same model, without a search.
        again = Planned([0.001])
        replayed = run(pass_, residual(), tuning=again, choice=result.choice)
        assert replayed.model.digest == result.model.digest
        assert len(again.seen) == 1
        with pytest.raises(PreconditionError, match="no operator here"):
            run(pass_, residual(), tuning=again, choice={"float": ["gone"]})

    def test_the_best_is_taken_where_the_time_is_up(self) -> None:
        tuning = Planned([0.05])
        pass_ = QuantizeNncf.model_validate({"samples": 8, "max_drop": 0.01, "at_most": "1 ms"})
        result = run(pass_, residual(), tuning=tuning)
        assert result.budget is not None
        assert not result.budget.met
        assert "NOT met" in result.notes[0]
        assert "the time was up" in result.notes[0]


def test_a_target_that_nncf_does_not_place_for_is_refused() -> None:
    for spec in (onnxruntime_cpu({"avx512_vnni"}), tensorrt()):
        with pytest.raises(PreconditionError, match="does not place") as caught:
            run(QuantizeNncf(), residual(), spec=target_spec(spec))
        assert "quantize_int8" in str(caught.value.fix)


def test_a_missing_extra_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UnavailableError, match="quantize_nncf needs the extra `openvino`"
    ) as caught:
        run(QuantizeNncf(), residual())
    assert caught.value.fix == "pip install 'optimc[openvino]'"


@needs_nncf
def test_a_quantized_model_and_patterns_without_effect_are_refused() -> None:
    with pytest.raises(PreconditionError, match="quantized already"):
        run(QuantizeNncf(), quantized(residual()))
    with pytest.raises(PreconditionError, match="keep_float: `Cnov` names no node"):
        run(QuantizeNncf(keep_float=["Cnov"]), residual())


def test_options_are_checked_and_max_drop_reads_the_tuning_split() -> None:
    with pytest.raises(ValidationError, match="at_most limits the search of max_drop"):
        QuantizeNncf.model_validate({"at_most": "1 min"})
    for bad in ({"samples": 0}, {"max_drop": -0.1}, {"preset": "fast"}):
        with pytest.raises(ValidationError):
            QuantizeNncf.model_validate(bad)
    assert Input.TUNING not in QuantizeNncf().needs
    assert Input.TUNING in QuantizeNncf(max_drop=0.01).needs


def test_samples_stream_in_batches() -> None:
    calibration = random_calibration(residual(), samples=10)
    sizes = [len(feeds["image"]) for feeds in calibration.feeds(4)]
    assert sizes == [4, 4, 2]
    assert [len(feeds["image"]) for feeds in calibration.feeds(1, 3)] == [1, 1, 1]
