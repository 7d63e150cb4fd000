"""Training data for tests: samples in a folder, as passes that train get them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.digest import digest_of
from optimc.testing.calibrated import session_store

if TYPE_CHECKING:
    from optimc.calibration.dataset import Dataset
    from optimc.core.model import OnnxModel


@dataclass(frozen=True)
class FolderTraining:
    """An `optimc.core.passes.Training` whose samples are stored already."""

    digest: str
    folder: Path

    def stored(self) -> Path:
        """The folder."""
        return self.folder


def training_on(data: Dataset, name: str) -> FolderTraining:
    """The samples of `data`, stored for the test run; `name` tells them from others."""
    from optimc.calibration.sample_store import store_samples

    digest = digest_of("training", name)
    store = session_store()
    folder = store.get("training", digest) or store.put(
        "training", digest, lambda folder: store_samples(data, folder / "samples")
    )
    return FolderTraining(digest, folder / "samples")


def random_training(model: OnnxModel, samples: int = 64) -> FolderTraining:
    """Seeded inputs for `model`; every dynamic dim but the batch has the size 3."""
    from optimc.calibration.random_data import RandomDataset

    dims = dict.fromkeys(model.signature.symbols, 3)
    data = RandomDataset(model.signature, dims, {}, seed=0, samples=samples)
    return training_on(data, f"random {samples} {model.signature.to_json()}")
