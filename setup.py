"""Finds the packages below each root that pyproject.toml maps; everything else stands there.

setuptools cannot search several folders for sub-packages of one package by configuration alone.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def package_names() -> list[str]:
    """The dotted names of all packages, mapped roots first."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = []
    for package, folder in config["tool"]["setuptools"]["package-dir"].items():
        names.append(package)
        names += [f"{package}.{name}" for name in find_packages(str(ROOT / folder))]
    return names


# In ./build, modules that were deleted since would leak into the next wheel.
with TemporaryDirectory() as build_base:
    setup(packages=package_names(), options={"build": {"build_base": build_base}})
