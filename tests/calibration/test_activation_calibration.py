"""Observing a model over data: once, in bounded memory, by source name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from optimc.calibration.arrays import ArrayDataset, ArrayOptions, StoredArray
from optimc.calibration.observe import ActivationCalibration
from optimc.calibration.observe_service import ObserverService
from optimc.calibration.random_data import RandomDataset
from optimc.core.errors import CellError, InputError
from optimc.core.model import OnnxModel
from optimc.core.passes import Calibration
from optimc.passes.fuse import Fuse
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.passes.simplify import Simplify
from optimc.targets.quantization_specs import onnxruntime_cpu, openvino_cpu, tensorrt
from optimc.testing import run_pass
from optimc.testing.calibrated import FolderStore, target_spec
from optimc.testing.graphs import GraphBuilder, convolutions
from optimc.testing.quantizable import residual
from optimc.testing.runs import run_model


def data_for(model: OnnxModel, samples: int = 40) -> RandomDataset:
    return RandomDataset(model.signature, {}, {}, seed=0, samples=samples)


def calibration(model: OnnxModel, folder: Path, **options: int) -> ActivationCalibration:
    return ActivationCalibration(model, data_for(model), 0, FolderStore(folder), **options)


def inner_names(model: OnnxModel) -> list[str]:
    names = [value.name for node in model.ir.graph for value in node.outputs]
    return [*(spec.name for spec in model.signature.inputs), *map(str, names)]


def test_statistics_are_those_of_the_values(tmp_path: Path) -> None:
    model = residual()
    names = inner_names(model)
    found = calibration(model, tmp_path).statistics(model, names)
    exposed = model.clone()
    graph = exposed.ir.graph
    given = {output.name for output in graph.outputs}
    values = [v for node in graph for v in node.outputs if v.name not in given]
    graph.outputs.extend(values)
    (expected,) = run_model(exposed.sealed(), [b.feeds for b in data_for(model).batches(40)])
    assert set(expected) < set(found)
    for name, array in expected.items():
        seen = found[name]
        assert seen.count == array.size
        np.testing.assert_allclose(
            [seen.minimum, seen.maximum], [array.min(), array.max()], rtol=1e-5, atol=1e-6
        )
        assert seen.histogram.sum() == array.size


def test_chunks_and_their_size_change_nothing(tmp_path: Path) -> None:
    model = residual()
    names = inner_names(model)
    whole = calibration(model, tmp_path / "whole").statistics(model, names)
    one_by_one = calibration(model, tmp_path / "chunks", chunk_bytes=1).statistics(model, names)
    assert whole.keys() == one_by_one.keys()
    for name, seen in whole.items():
        assert seen.count == one_by_one[name].count
        assert seen.limit == one_by_one[name].limit
        # One sample a run may take another kernel than 32: the last bit of a value may move.
        assert np.abs(seen.histogram - one_by_one[name].histogram).sum() <= seen.count * 0.01


def test_values_without_a_known_shape_are_of_the_size_of_others(tmp_path: Path) -> None:
    """Alone they are no reason for a chunk each: they may be as large as the graph's largest."""
    b = GraphBuilder()
    x = b.input("x", ["batch", 8])
    size = b.node("Add", b.node("NonZero", x), b.constant(1, dtype="int64"))
    h = [b.node("Expand", b.node("Tanh", x), b.node("Gather", size, b.constant(i))) for i in (0, 1)]
    b.node("Add", h[0], h[1], to="y")
    b.output("y", ["batch", 8])
    model = b.model()
    model.write_onnx(tmp_path / "model.onnx")
    service = ObserverService(str(tmp_path / "model.onnx"), chunk_bytes=1 << 20)
    names = [str(n.outputs[0].name) for n in model.ir.graph if n.op_type == "Expand"]
    feed = {"x": np.zeros((4, 8), np.float32)}
    assert {name: service._sizes(feed)[name] for name in names} == dict.fromkeys(names)
    told, _ = service.plan(feed, names)
    assert told == {"chunks": [names], "samples": 32}


def test_one_sweep_serves_all_targets_and_variants(tmp_path: Path) -> None:
    """One variant is fused as it comes, the other is simplified first: other values remain."""
    source = convolutions()
    shared: Calibration = (kept := calibration(source, tmp_path))
    simplified = run_pass(Simplify(), source).model
    fused = run_pass(Fuse(), simplified).model
    for model in (run_pass(Fuse(), source).model, fused):
        assert isinstance(model, OnnxModel)
        for spec in (onnxruntime_cpu({"avx512_vnni"}), openvino_cpu(set()), tensorrt()):
            for ranges in ("minmax", "mse"):
                result = run_pass(
                    QuantizeInt8(ranges=ranges),  # type: ignore[arg-type]
                    model,
                    spec=target_spec(spec),
                    calibration=shared,
                )
                assert result.rewrites
    assert kept.sweeps == 1


def test_what_the_store_knows_is_not_observed_again(tmp_path: Path) -> None:
    model = residual()
    first, second = calibration(model, tmp_path), calibration(model, tmp_path)
    one = first.statistics(model, ["logits"])
    two = second.statistics(model, ["logits"])
    assert (first.sweeps, second.sweeps) == (1, 0)
    np.testing.assert_array_equal(one["logits"].histogram, two["logits"].histogram)
    other = ActivationCalibration(model, data_for(model, 8), 0, FolderStore(tmp_path))
    other.statistics(model, ["logits"])
    assert other.sweeps == 1


def test_values_without_a_source_are_observed_on_their_own_model(tmp_path: Path) -> None:
    source = residual()
    changed = source.clone()
    node = changed.ir.graph[0]
    for value in changed.ir.graph[0].outputs:
        value.meta.clear()
        value.name = "of_a_pass"
    kept = calibration(source, tmp_path)
    found = kept.statistics(changed.sealed(), ["of_a_pass", "logits"])
    assert node.op_type == "Conv"
    assert set(found) == {"of_a_pass", "logits"}
    assert kept.sweeps == 2
    kept.statistics(changed.sealed(), ["of_a_pass"])
    assert kept.sweeps == 2


def test_the_table_can_be_read(tmp_path: Path) -> None:
    model = residual()
    calibration(model, tmp_path).statistics(model, ["logits"])
    (table,) = tmp_path.glob("calibration/*/table.json")
    content = json.loads(table.read_text())
    assert content["about"]["samples"] == 40
    assert content["values"]["logits"]["count"] == 40 * 20
    assert {"minimum", "maximum", "limit"} < set(content["values"]["logits"])


def test_infinities_are_counted_and_integers_left_out(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", ["batch", 4])
    b.node("Log", b.node("Relu", x), to="y")
    b.node("ArgMax", x, axis=1, to="ids")
    b.output("y", ["batch", 4])
    b.output("ids", ["batch", 1], "int64")
    model = b.model()
    found = calibration(model, tmp_path).statistics(model, ["y", "ids"])
    assert set(found) == {"y"}
    zeros = sum((batch.feeds["x"] <= 0).sum() for batch in data_for(model).batches(40))
    assert found["y"].non_finite == zeros > 0
    assert np.isfinite([found["y"].minimum, found["y"].maximum]).all()


def fixed_batch_model() -> OnnxModel:
    b = GraphBuilder()
    b.node("Relu", b.input("x", [4, 3]), to="y")
    b.output("y", [4, 3])
    return b.model()


def test_a_fixed_batch_is_kept_to(tmp_path: Path) -> None:
    model = fixed_batch_model()
    assert calibration(model, tmp_path).statistics(model, ["y"])["y"].count == 120
    uneven = ActivationCalibration(model, data_for(model, 6), 0, FolderStore(tmp_path))
    with pytest.raises(InputError, match="6 samples do not fill batches of 4") as caught:
        uneven.statistics(model, ["y"])
    assert caught.value.fix == "take: 4"


def test_data_that_the_model_cannot_take_names_the_batch(tmp_path: Path) -> None:
    b = GraphBuilder()
    ids = b.input("ids", ["batch", 2], "int64")
    b.node("Gather", b.weight(5, 3), ids, to="y")
    b.output("y", ["batch", 2, 3])
    model = b.model()
    array = np.zeros((40, 2), np.int64)
    array[35, 1] = 99
    stored = StoredArray("ids.npz: ids", array.shape, array.dtype, lambda: array)
    data = ArrayDataset("ids.npz", {"ids": stored}, None, ArrayOptions(), 0)
    kept = ActivationCalibration(model, data, 0, FolderStore(tmp_path))
    with pytest.raises(CellError, match="starts at sample 32") as caught:
        kept.statistics(model, ["y"])
    assert "indices element out of data bounds" in caught.value.what
    assert not list(tmp_path.glob("calibration/*"))


def test_weights_beside_the_model_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimc.core.model.EXTERNAL_DATA_THRESHOLD", 100)
    model = residual()
    model.save(tmp_path / "stored")
    assert (tmp_path / "stored" / "model.onnx.data").exists()
    stored = OnnxModel(folder=tmp_path / "stored")
    found = calibration(stored, tmp_path / "one").statistics(stored, ["logits"])
    expected = calibration(residual(), tmp_path / "two").statistics(residual(), ["logits"])
    np.testing.assert_array_equal(found["logits"].histogram, expected["logits"].histogram)


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    model, shares = residual(), []
    ActivationCalibration(
        model,
        data_for(model, 70),
        0,
        FolderStore(tmp_path),
        progress=lambda share, text: shares.append(share),
    ).statistics(model, ["logits"])
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) == 3
