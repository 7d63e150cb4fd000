"""Calibration for tests: seeded inputs, observed in a real worker, kept for the test run."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.calibration.observe import ActivationCalibration
from optimc.calibration.random_data import RandomDataset

if TYPE_CHECKING:
    from optimc.core.model import OnnxModel
    from optimc.core.targets import QuantizationSpec, TargetSpec


class FolderStore:
    """A `core.store.Store` in one folder, without bounds."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, kind: str, key: str) -> Path | None:
        """The folder of an entry, or None."""
        path = self.root / kind / key
        return path if path.is_dir() else None

    def put(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """Fills an entry and returns its folder."""
        path = self.root / kind / key
        temporary = path.with_name(f"{key}.part")
        temporary.mkdir(parents=True)
        write(temporary)
        return temporary.replace(path)


@cache
def session_store() -> FolderStore:
    """A store that goes away when the process ends."""
    root = Path(tempfile.mkdtemp(prefix="optimc-test-calibration-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return FolderStore(root)


def random_calibration(model: OnnxModel, samples: int = 64) -> ActivationCalibration:
    """Statistics of `model` on seeded inputs; every dynamic dim but the batch has the size 3."""
    dims = dict.fromkeys(model.signature.symbols, 3)
    data = RandomDataset(model.signature, dims, {}, seed=0, samples=samples)
    return ActivationCalibration(model, data, 0, session_store())


def target_spec(quantization: QuantizationSpec) -> TargetSpec:
    """A target of which only the quantization matters."""
    from optimc.core.targets import TargetSpec

    return TargetSpec(
        runtime="test",
        max_opset=26,
        max_ir_version=13,
        dtypes=frozenset({"float32"}),
        quantization=quantization,
    )
