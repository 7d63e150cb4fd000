"""Every module imports without the extras, and no file of the user's is taken for one of ours.

`.ci/run` repeats this where the extras are not installed, with a whole build.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from optimc.core.worker import Worker

SCRIPT = Path(__file__).parents[1] / ".ci" / "bare_environment.py"


def test_every_module_imports_without_the_extras(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--hide-extras"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "modules import without the extras" in done.stdout


@pytest.mark.parametrize("name", ["optimc", "json", "numpy"])
def test_workers_import_nothing_from_the_working_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was run')\n")
    monkeypatch.chdir(tmp_path)
    # Fails where the worker does not start.
    Worker("collections:Counter", name="a counter").close()
