"""Which files say what code does that a recipe names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from optimc.core.user_code import code_files, importable


def imported(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files of module `name` in `folder`."""
    with importable(folder):
        module = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, module)
    files = code_files(name)
    assert files is not None
    return [file.relative_to(folder.resolve()).as_posix() for file in files]


def test_a_module_has_its_file_and_those_it_imports_from_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code_of_a.py").write_text("def f():\n    import code_of_b, json\n")
    (tmp_path / "code_of_b.py").write_text("")
    (tmp_path / "code_of_c.py").write_text("")
    assert imported(tmp_path, "code_of_a", monkeypatch) == ["code_of_a.py", "code_of_b.py"]


def test_a_module_of_a_package_has_the_packages_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code_package").mkdir()
    (tmp_path / "code_package" / "__init__.py").write_text("import code_beside")
    (tmp_path / "code_package" / "inner.py").write_text("")
    (tmp_path / "code_beside.py").write_text("")
    expected = ["code_beside.py", "code_package/__init__.py", "code_package/inner.py"]
    assert imported(tmp_path, "code_package.inner", monkeypatch) == expected
    assert imported(tmp_path, "code_package", monkeypatch) == expected


def test_an_installed_module_has_its_own_file_alone() -> None:
    import json.decoder as installed

    assert code_files("json.decoder") == [Path(installed.__file__).resolve()]
    assert code_files("pytest") == [Path(pytest.__file__).resolve()]


def test_code_in_memory_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "code_in_memory", ModuleType("code_in_memory"))
    assert code_files("code_in_memory") is None
    assert code_files("sys") is None
