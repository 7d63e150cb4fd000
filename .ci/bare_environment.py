"""Checks optimc as it is without any extra: core dependencies only.

    python .ci/bare_environment.py                 in an environment made from the wheel alone
    python .ci/bare_environment.py --hide-extras   anywhere: the imports alone, extras hidden

Every module imports, the command line starts, and a build for ONNX Runtime needs no extra. The
build runs in a folder with files named like ours and like its libraries': none of them is run.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

EXTRAS = (
    "PIL",
    "accelerate",
    "hypothesis",
    "neural_compressor",
    "nncf",
    "onnxsim",
    "openvino",
    "pyarrow",
    "pycocotools",
    "pytest",
    "safetensors",
    "sklearn",
    "tensorrt",
    "tokenizers",
    "torch",
    "torch_pruning",
    "transformers",
)
DECOYS = ("calibration", "json", "numpy", "onnx", "optimc", "passes", "recipes", "typer")


def import_everything() -> int:
    """Import each module of the package; how many there are."""
    imported = set()
    # In an editable install the mapped folders are not below the package's own.
    for package in ("optimc", "optimc.passes", "optimc.calibration", "optimc.recipes"):
        folders = importlib.import_module(package).__path__
        names = [module.name for module in pkgutil.walk_packages(folders, f"{package}.")]
        for name in (package, *names):
            if not name.endswith("__main__"):
                importlib.import_module(name)
                imported.add(name)
    return len(imported)


def run(*arguments: str, cwd: Path) -> str:
    """The output of `optimc ARGUMENTS`. Raises SystemExit with what it said where it fails."""
    command = [str(Path(sys.executable).with_name("optimc")), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = f"{done.stdout}\n{done.stderr}"
        raise SystemExit(f"optimc {' '.join(arguments)}: exit code {done.returncode}\n{said}")
    return done.stdout


def build_among_decoys(folder: Path) -> None:
    """Build the quickstart for ONNX Runtime where each file that could shadow ours fails."""
    for name in DECOYS:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user was run')\n")
    recipes = importlib.import_module("optimc.recipes")
    shutil.copytree(next(iter(recipes.__path__)), folder / "own")
    # Without its gate: what is not measured does not pass one.
    options = ["--target", "ort", "--no-measure", "--set", "gate=null", "-o", "out"]
    run("build", "own/quickstart.yaml", *options, cwd=folder)
    if not list((folder / "out" / "artifacts").glob("int8/ort/*.onnx")):
        raise SystemExit("the build for ONNX Runtime left no int8 engine")


def main() -> None:
    """All checks; exits non-zero with the first that fails."""
    if "--hide-extras" in sys.argv:
        sys.modules.update(dict.fromkeys(EXTRAS))  # type: ignore[arg-type]
        print(f"{import_everything()} modules import without the extras")
        return
    found = [name for name in EXTRAS if importlib.util.find_spec(name)]
    if found:
        raise SystemExit(f"not a bare environment: it has {', '.join(found)}")
    print(f"{import_everything()} modules import without the extras")
    with tempfile.TemporaryDirectory() as folder:
        if "build" not in run("--help", cwd=Path(folder)):
            raise SystemExit("optimc --help does not name the command build")
        build_among_decoys(Path(folder))
    print("optimc --help and a build for ONNX Runtime work")


if __name__ == "__main__":
    main()
