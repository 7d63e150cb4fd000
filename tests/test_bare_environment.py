"""Every module imports without the extras. `.ci/run` repeats it where they are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
