"""Calibration tables as files: written, read back, reused, and refused where they do not fit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimc.calibration.observe import ActivationCalibration
from optimc.calibration.random_data import RandomDataset
from optimc.calibration.stored import StoredCalibration, write_calibration
from optimc.calibration.table import HISTOGRAMS, TABLE
from optimc.core.errors import InputError
from optimc.core.passes import Calibration
from optimc.passes.fuse import Fuse
from optimc.passes.quantize_int8 import QuantizeInt8
from optimc.targets.quantization_specs import onnxruntime_cpu
from optimc.testing import run_pass
from optimc.testing.calibrated import FolderStore, target_spec
from optimc.testing.graphs import convolutions
from optimc.testing.quantizable import residual


def observed(folder: Path) -> ActivationCalibration:
    model = residual()
    data = RandomDataset(model.signature, {}, {}, seed=0, samples=20)
    return ActivationCalibration(model, data, 0, FolderStore(folder / "store"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of one model."""
    folder = tmp_path_factory.mktemp("table")
    kept = observed(folder)
    quantized(kept)
    exported = kept.exported()
    assert exported is not None
    write_calibration(folder / "calibration", *exported)
    return folder / "calibration"


def quantized(calibration: Calibration) -> str:
    spec = target_spec(onnxruntime_cpu({"avx512_vnni"}))
    result = run_pass(QuantizeInt8(), residual(), spec=spec, calibration=calibration)
    return str(result.model.digest)


def test_a_table_gives_what_the_data_gave(table: Path, tmp_path: Path) -> None:
    assert quantized(StoredCalibration(table / TABLE)) == quantized(observed(tmp_path))


def test_it_can_be_read_and_says_what_it_is_of(table: Path) -> None:
    content = json.loads((table / TABLE).read_text())
    assert content["about"]["samples"] == 20
    assert list(content["values"]) == sorted(content["values"])
    assert content["values"]["logits"]["count"] == 20 * 20
    assert {"minimum", "maximum", "average_minimum"} < set(content["values"]["logits"])


def test_nothing_is_observed_to_export(tmp_path: Path) -> None:
    kept = observed(tmp_path)
    assert kept.exported() is None
    kept.statistics(residual(), ["logits"])
    again = observed(tmp_path)
    first, second = kept.exported(), again.exported()
    assert first is not None
    assert second is not None
    assert first[0].keys() == second[0].keys()
    assert first[1] == second[1]
    assert again.sweeps == 0


def test_later_sweeps_are_found_again(tmp_path: Path) -> None:
    kept = observed(tmp_path)
    kept.statistics(residual(), ["logits"])
    names = [str(node.outputs[0].name) for node in residual().ir.graph]
    whole = kept.statistics(residual(), names)
    assert kept.sweeps == 2
    again = observed(tmp_path)
    assert again.statistics(residual(), names).keys() == whole.keys()
    assert again.sweeps == 0


def test_the_digest_is_of_the_contents(table: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (TABLE, HISTOGRAMS):
        (copy / name).write_bytes((table / name).read_bytes())
    assert StoredCalibration(copy / TABLE).digest == StoredCalibration(table / TABLE).digest
    text = (copy / TABLE).read_text()
    (copy / TABLE).write_text(text.replace('"samples": 20', '"samples": 21'))
    assert StoredCalibration(copy / TABLE).digest != StoredCalibration(table / TABLE).digest


def test_a_table_of_another_model_is_refused_by_names(table: Path) -> None:
    with pytest.raises(InputError, match="lacks `") as caught:
        run_pass(
            QuantizeInt8(),
            run_pass(Fuse(), convolutions()).model,  # type: ignore[arg-type]
            spec=target_spec(onnxruntime_cpu({"avx512_vnni"})),
            calibration=StoredCalibration(table / TABLE),
        )
    assert TABLE in str(caught.value.where)
    assert "data.calibration" in str(caught.value.fix)


def test_values_that_a_pass_changed_are_refused(table: Path) -> None:
    model = residual().clone()
    value = model.ir.graph[0].outputs[0]
    value.meta.clear()
    with pytest.raises(InputError, match="changed the numbers"):
        StoredCalibration(table / TABLE).statistics(model.sealed(), [str(value.name)])


def test_samples_cannot_be_had_from_a_table(table: Path) -> None:
    with pytest.raises(InputError, match="ranges alone") as caught:
        StoredCalibration(table / TABLE).reader(8)
    assert "data.calibration" in str(caught.value.fix)
    with pytest.raises(InputError, match="ranges alone"):
        StoredCalibration(table / TABLE).feeds(1)


def edited(table: Path, folder: Path, **changes: Any) -> Path:
    """A copy whose entry for `logits` is changed."""
    content = json.loads((table / TABLE).read_text())
    content["values"]["logits"].update(changes)
    (folder / TABLE).write_text(json.dumps(content))
    (folder / HISTOGRAMS).write_bytes((table / HISTOGRAMS).read_bytes())
    return folder / TABLE


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 7},
        {"minimum": 1e9},
        {"minimum": None},
        {"maximum": "high"},
        {"limit": 0.0},
        {"limit": 1e-9},
        {"average_minimum": float("nan")},
        {"more": 1},
    ],
)
def test_damaged_scalars_are_one_message(
    table: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="no calibration table") as caught:
        StoredCalibration(edited(table, tmp_path, **changes))
    assert "from a build" in str(caught.value.fix)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"about": {}}', "\0\1", '{"values": {}}'])
def test_other_files_are_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(InputError, match="no calibration table"):
        StoredCalibration(tmp_path / "other.json")


def test_histograms_are_looked_at_before_they_are_read(table: Path, tmp_path: Path) -> None:
    path = edited(table, tmp_path)
    (tmp_path / HISTOGRAMS).unlink()
    with pytest.raises(InputError):
        StoredCalibration(path)
    (tmp_path / HISTOGRAMS).write_bytes(b"PK nothing")
    with pytest.raises(InputError):
        StoredCalibration(path)
    np.savez(tmp_path / HISTOGRAMS, counts=np.zeros((3, 8), np.int64))
    with pytest.raises(InputError, match="a histogram for each"):
        StoredCalibration(path)
    header = b"\x93NUMPY\x01\x00"
    rows = len(json.loads(path.read_text())["values"])
    described = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({rows}, {1 << 30}), }}"
    described = described.ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / HISTOGRAMS, "w") as archive:
        archive.writestr(
            "counts.npy", header + len(described).to_bytes(2, "little") + described.encode()
        )
    with pytest.raises(InputError):
        StoredCalibration(path)
