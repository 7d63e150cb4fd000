"""`portable`: files that older releases of ONNX Runtime can read."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import onnx
import pytest

from optimc.core.errors import CellError
from optimc.core.targets import BuildContext
from optimc.targets.onnxruntime import OnnxRuntime, Portable, Release
from optimc.targets.onnxruntime_releases import ONNX_OF_RELEASE
from optimc.testing.graphs import GraphBuilder


def build(folder: Path, release: Release, opset: int) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    b = GraphBuilder(opset)
    b.node("Relu", b.input("x", ["n", 4]), to="y")
    b.output("y", ["n", 4])
    target = OnnxRuntime(portable=Portable(oldest_runtime=release))
    assert target.legalization == "never"
    place = folder / "engine"
    place.mkdir()
    engine = target.build(b.model(), place, BuildContext(workspace=folder))
    return onnx.load(engine.main), tuple(engine.manifest["notes"])


@pytest.mark.parametrize(("release", "ir_version"), [("1.14", 8), ("1.17", 9), ("1.22", 10)])
def test_the_ir_version_is_kept_low_enough(
    tmp_path: Path, release: Release, ir_version: int
) -> None:
    model, notes = build(tmp_path, release, opset=17)
    # The graph comes with IR version 10.
    assert model.ir_version == ir_version
    lowered = [note for note in notes if f"IR version 10 was written as {ir_version}" in note]
    assert len(lowered) == (1 if ir_version < 10 else 0)
    assert model.opset_import[0].version == 17


def test_a_newer_opset_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(
        CellError, match=r"opset 21, and ONNX Runtime 1\.17 reads up to 20"
    ) as error:
        build(tmp_path, "1.17", opset=21)
    assert "export it with opset 20" in str(error.value.fix)


def test_every_release_is_known() -> None:
    known = {row[0] for row in onnx.helper.VERSION_TABLE}
    assert set(ONNX_OF_RELEASE) == set(get_args(Release))
    assert set(ONNX_OF_RELEASE.values()) <= known
