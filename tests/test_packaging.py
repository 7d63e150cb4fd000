"""What is in the tree gets into the wheel. `.ci/run` compares the wheel itself."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import optimc

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pinned() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), "exact, without +cpu"
    return {canonicalize_name(pin.partition("==")[0]) for pin in pins}


def test_every_folder_of_modules_is_a_package(config: dict[str, Any]) -> None:
    """setuptools passes over a folder without __init__.py."""
    folders = {
        path.parent
        for root in config["tool"]["setuptools"]["package-dir"].values()
        for path in (ROOT / root).rglob("*.py")
        if path.parent.parent != ROOT / "recipes"  # scripts beside a recipe's data
    }
    assert folders
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_version_has_one_source(config: dict[str, Any]) -> None:
    assert config["project"]["dynamic"] == ["version"]
    assert version("optimc") == optimc.__version__


def test_constraints_pin_every_direct_dependency(config: dict[str, Any], pinned: set[str]) -> None:
    project = config["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"]]
    for name in ("onnxsim", "torch", "openvino", "dev"):
        wanted += extras[name]
    names = {canonicalize_name(Requirement(text).name) for text in wanted}
    assert names <= pinned


BINDINGS = {"cuda-bindings", "cuda-pathfinder"}
"""Python's side alone, without libraries: what the TensorRT code is checked against."""


def test_constraints_leave_gpu_packages_out(pinned: set[str]) -> None:
    assert not [
        name
        for name in pinned - BINDINGS
        if name.startswith(("nvidia", "cuda", "tensorrt")) or name == "triton"
    ]


def test_extra_all_is_every_runtime_but_tensorrt(config: dict[str, Any]) -> None:
    extras = config["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert Requirement(everything).extras == set(extras) - {"all", "dev", "tensorrt"}
