"""What every test gets: no user's cache, plain output, and the shared models where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--regenerate-goldens` writes the goldens anew; look at the difference before committing."""
    parser.addoption("--regenerate-goldens", action="store_true", help="write goldens anew")


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of this run's own, which worker processes inherit, and output without colours.

    Set for good, not restored: workers that end at exit must not fall back to the user's cache.
    """
    os.environ["OPTIMC_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["NO_COLOR"] = "1"
    os.environ["COLUMNS"] = "100"
    os.environ.pop("FORCE_COLOR", None)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Trained ResNets and real data, which are no part of the repository."""
    folder = Path(os.environ.get("OPTIMC_SHARED", ROOT.parent / "shared"))
    if not (folder / "models" / "resnet20.onnx").is_file():
        pytest.skip(f"no shared models in {folder}: set OPTIMC_SHARED to their folder")
    return folder
