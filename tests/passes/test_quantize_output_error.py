"""`quantize_int8: {ranges: output_error}`: ranges by what the layers behind lose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.calibration.npz import NpzSource
from optimc.calibration.observe import ActivationCalibration
from optimc.calibration.stored import StoredCalibration, write_calibration
from optimc.calibration.table import TABLE
from optimc.core.errors import InputError
from optimc.core.model import Model, OnnxModel
from optimc.core.passes import Calibration, Drop
from optimc.core.targets import TargetSpec
from optimc.passes import _quantize_output_error as output_error
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import onnxruntime_cpu
from optimc.testing import PassContract
from optimc.testing.calibrated import FolderStore, random_calibration, target_spec
from optimc.testing.graphs import GraphBuilder
from optimc.testing.quantizable import matmul, option_a, residual
from optimc.testing.runs import run_model, run_pass

PASS = QuantizeInt8(ranges="output_error")
SPEC = target_spec(onnxruntime_cpu({"avx512_vnni"}))


@pytest.mark.slow
class TestOutputErrorRanges(PassContract):
    passes = (PASS,)

    def models(self) -> Mapping[str, OnnxModel]:
        return {"matmul": matmul(), "option a": option_a()}

    def spec(self) -> TargetSpec | None:
        return SPEC

    def calibration(self, model: OnnxModel) -> Calibration | None:
        return random_calibration(model)


def blind() -> OnnxModel:
    """A layer that hardly looks at the channel whose values are large."""
    b = GraphBuilder()
    x = b.input("rows", ["batch", 16])
    h = b.node("Relu", x)
    weight = b.rng.normal(0, 0.3, (16, 24)).astype(np.float32)
    weight[3] = 1e-6
    b.node("MatMul", h, b.constant(weight), to="y")
    b.output("y", ["batch", 24])
    return b.model()


def observed(model: OnnxModel, folder: Path) -> tuple[ActivationCalibration, Any]:
    """Rows of which one channel is fifty times as large as the others."""
    rows = np.random.default_rng(0).normal(size=(96, 16)).astype(np.float32)
    rows[:, 3] *= 50.0
    np.savez(folder / "rows.npz", rows=rows)
    source = NpzSource.model_validate({"npz": "rows.npz", "inputs": {"rows": "rows"}})
    data = source.open(folder, 0)
    return ActivationCalibration(model, data, 0, FolderStore(folder / "store")), rows


def noise(model: OnnxModel, calibration: Calibration, rows: Any, ranges: str) -> float:
    pass_ = QuantizeInt8.model_validate({"ranges": ranges})
    result = run_pass(pass_, model, spec=SPEC, calibration=calibration).model
    assert isinstance(result, OnnxModel)
    wanted, found = (run_model(m, [{"rows": rows}])[0]["y"] for m in (model, result))
    return float(np.square(found - wanted).mean() / np.square(wanted).mean())


def test_what_the_layer_does_not_look_at_is_clipped(tmp_path: Path) -> None:
    model = blind()
    calibration, rows = observed(model, tmp_path)
    lost = {r: noise(model, calibration, rows, r) for r in ("mse", "minmax", "output_error")}
    assert lost["output_error"] < 0.2 * min(lost["mse"], lost["minmax"])


def test_the_errors_are_those_of_running_the_layer(tmp_path: Path) -> None:
    """Of each candidate by hand, in numpy."""
    from optimc.passes._quantize_ranges import statistics_of
    from optimc.passes._quantize_units import find_units

    model = blind()
    calibration, rows = observed(model, tmp_path)
    quantization = SPEC.quantization
    assert quantization is not None
    units = find_units(model.ir.graph, quantization, lambda node, reason: None)
    statistics = statistics_of(units, model, calibration)
    (site,) = output_error._sites(units, statistics, quantization)
    trial, (name,) = output_error._with_errors(model, [site])
    trial.ir.graph.outputs.append(
        next(v for node in trial.ir.graph for v in node.outputs if v.name == name)
    )
    found = run_model(trial.sealed(), [{"rows": rows}])[0][name].reshape(-1)
    read, (weight,) = np.maximum(rows, 0.0), [units[0].node.inputs[1]]
    assert weight is not None
    assert weight.const_value is not None
    wanted = read @ weight.const_value.numpy()
    for error, candidate in zip(found, site.candidates, strict=True):
        affine = site.kind.parameters(candidate)
        rounded = affine.dequantize(affine.quantize(read)) @ weight.const_value.numpy()
        expected = np.square(rounded - wanted).sum() / np.square(wanted).sum()
        assert error == pytest.approx(expected, rel=1e-3, abs=1e-9)
    widths = [c.high - c.low for c in site.candidates]
    assert widths == sorted(widths, reverse=True)
    assert len(set(site.candidates)) == len(site.candidates) >= 5


def test_data_movement_takes_the_range_that_its_reader_wants() -> None:
    """A MaxPool between a convolution and the next: one scale, searched where it is read."""
    from optimc.passes._quantize_ranges import statistics_of
    from optimc.passes._quantize_units import find_units

    model = residual()
    quantization = SPEC.quantization
    assert quantization is not None
    units = find_units(model.ir.graph, quantization, lambda node, reason: None)
    statistics = statistics_of(units, model, random_calibration(model))
    sites = output_error._sites(units, statistics, quantization)
    pooled = next(node for node in model.ir.graph if node.op_type == "MaxPool")
    assert pooled.inputs[0] in [site.value for site in sites]
    assert pooled.outputs[0] not in [site.value for site in sites]


def test_chunks_give_what_one_sweep_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    model = matmul()
    calibration = random_calibration(model)
    whole = run_pass(PASS, model, spec=SPEC, calibration=calibration).model.digest
    monkeypatch.setattr(output_error, "CHUNK", 1)
    assert run_pass(PASS, model, spec=SPEC, calibration=calibration).model.digest == whole


class Flat:
    """A tuning split on which nothing drops."""

    digest = "flat"
    metric = "top1"

    def drop(self, model: Model) -> Drop:
        """None."""
        return Drop(0.0, 0.0, 0.0, 100)

    def drop_of(self, run: object) -> Drop:
        """Nothing asks for it."""
        raise NotImplementedError

    def sqnr_db(self, model: Model, reference: Model) -> float:
        """Nothing asks for it."""
        raise NotImplementedError


def test_max_drop_takes_the_same_ranges() -> None:
    model = matmul()
    calibration = random_calibration(model)
    plain = run_pass(PASS, model, spec=SPEC, calibration=calibration).model
    within = QuantizeInt8(ranges="output_error", max_drop=0.01)
    result = run_pass(within, model, spec=SPEC, calibration=calibration, tuning=Flat())
    assert result.model.digest == plain.digest


def test_a_calibration_table_has_no_samples_to_search_on(tmp_path: Path) -> None:
    model = residual()
    seen = random_calibration(model)
    run_pass(QuantizeInt8(), model, spec=SPEC, calibration=seen)
    exported = seen.exported()
    assert exported is not None
    write_calibration(tmp_path / "calibration", *exported)
    table = StoredCalibration(tmp_path / "calibration" / TABLE)
    with pytest.raises(InputError, match="ranges alone") as caught:
        run_pass(PASS, model, spec=SPEC, calibration=table)
    assert "data.calibration" in str(caught.value.fix)
