"""Oracles beside each other: one worker, and no probe is run twice on a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from optimc.core.errors import VerificationError
from optimc.core.model import OnnxModel
from optimc.core.worker import Limits
from optimc.pipeline.oracle import Oracle
from optimc.pipeline.oracle_service import OracleService
from optimc.pipeline.probes import Probe
from optimc.testing.graphs import GraphBuilder
from optimc.testing.inline_workers import inline_workers


def model_in(folder: Path, kind: str = "Neg") -> tuple[OnnxModel, Path]:
    """A model of one node, and its file."""
    b = GraphBuilder()
    b.output(b.node(kind, b.input("x", ["batch", 3]), to="y"), ["batch", 3])
    model = b.model()
    model.write_onnx(folder / "model.onnx")
    return model, folder / "model.onnx"


def probes(*sizes: int) -> list[Probe]:
    """One of ones for each size of the batch."""
    return [Probe(f"batch={n}", {"x": np.ones((n, 3), np.float32)}) for n in sizes]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The batches that the runtime was asked for, in order."""
    batches: list[int] = []
    right = OracleService.run

    def noted(self: OracleService, arrays: dict[str, np.ndarray], path: str) -> object:
        batches.append(len(arrays["x"]))
        return right(self, arrays, path)

    monkeypatch.setattr(OracleService, "run", noted)
    with inline_workers():
        yield batches


def test_an_oracle_beside_another_asks_for_new_probes_alone(
    tmp_path: Path, asked: list[int]
) -> None:
    model, path = model_in(tmp_path)
    with Oracle(probes(2, 1), Limits()) as first:
        first.outputs(model.digest, path)
        assert asked == [2, 1, 2, 1]
        beside = first.beside(probes(2, 1, 5))
        runs = beside.outputs(model.digest, path)
        assert asked[4:] == [5]
        assert [run["y"].shape for run in runs] == [(2, 3), (1, 3), (5, 3)]
        assert all((run["y"] == -1).all() for run in runs)
        assert beside.stable_outputs(model, path) == ("y",)
        assert len(first.outputs(model.digest, path)) == 2
        assert asked[5:] == []


def test_what_is_random_is_known_beside_too(tmp_path: Path, asked: list[int]) -> None:
    model, path = model_in(tmp_path, "RandomNormalLike")
    with Oracle(probes(2, 1), Limits()) as first:
        assert first.stable_outputs(model, path) == ()
        beside = first.beside(probes(7, 2))
        candidate = beside.outputs(model.digest, path)
        assert beside.wrong_form(model, path, candidate) is None
        cut = [{"y": run["y"][:, :2]} for run in candidate]
        assert "shape (7, 2) in place of (7, 3)" in str(beside.wrong_form(model, path, cut))


def test_no_probes_ask_nothing(tmp_path: Path, asked: list[int]) -> None:
    model, path = model_in(tmp_path)
    with Oracle([], Limits()) as oracle:
        assert oracle.outputs(model.digest, path) == []
        assert oracle.stable_outputs(model, path) == ("y",)
    assert asked == []


def test_what_is_asked_later_is_run_on_the_way(tmp_path: Path, asked: list[int]) -> None:
    model, path = model_in(tmp_path)
    with Oracle(probes(2, 1), Limits()) as first:
        beside = first.beside(probes(2, 1, 5))
        runs = first.outputs(model.digest, path, ahead=beside)
        assert [run["y"].shape for run in runs] == [(2, 3), (1, 3)]
        assert asked == [2, 1, 2, 1, 5]
        assert [run["y"].shape for run in beside.outputs(model.digest, path)][2:] == [(5, 3)]
        assert first.stable_outputs(model, path) == ("y",)
        assert asked[5:] == []


def test_what_breaks_on_the_way_is_left_to_who_asks(tmp_path: Path, asked: list[int]) -> None:
    b = GraphBuilder()
    shape = b.constant([2, 3])
    b.output(b.node("Reshape", b.input("x", ["batch", 3]), shape, to="y"), [2, 3])
    model = b.model()
    model.write_onnx(tmp_path / "model.onnx")
    with Oracle(probes(2), Limits()) as first:
        beside = first.beside(probes(5, 2))
        (run,) = first.outputs(model.digest, tmp_path / "model.onnx", ahead=beside)
        assert run["y"].shape == (2, 3)
        with pytest.raises(VerificationError):
            beside.outputs(model.digest, tmp_path / "model.onnx")
    assert asked == [2, 2, 5, 5]
