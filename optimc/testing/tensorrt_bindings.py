"""TensorRT's real Python bindings on a machine that has neither its libraries nor a GPU.

The bindings' extension leaves a few C functions of the libraries undefined. Stub libraries with
the names that it asks for and these functions, which do nothing, let it load: every class,
enumeration and signature of the real API is then there to check code against. One process can load
one version; use `python -m optimc.testing.tensorrt_contract` for each.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


@dataclass(frozen=True)
class Wheel:
    """A distribution, for CPython 3.11 on x86-64 Linux."""

    distribution: str
    version: str
    sha256: str

    @property
    def major(self) -> str:
        """The number in the libraries' names."""
        return self.version.split(".", maxsplit=1)[0]


WHEELS = (
    Wheel(
        "tensorrt-cu13-bindings",
        "11.4.0.106",
        "d072ac2a095e2be749fefc847adfb25d5ebe70303401df62ede8fe67a59f27fc",
    ),
    Wheel(
        "tensorrt-cu13-bindings",
        "10.16.1.11",
        "f986d47980d042cc126506a9b84586e55ad13737a7a46826fe45457c04d66294",
    ),
    Wheel(
        "tensorrt-cu12-bindings",
        "10.12.0.36",
        "58cf45605bb330e86f8ad49bc8997ed68cfdf5b09da229534fb7f84aa3fe5bf4",
    ),
)
"""The newest of 11, the newest of 10, and the oldest that optimc takes."""

NVML = Wheel(
    "nvidia-ml-py",
    "13.615.71",
    "959bf4adf6fe1308e4bd739e722236b0d1ec8392e2cefad33ff70c311380b9b6",
)
"""The module `pynvml`."""


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Downloads `wheel` with pip, checks its digest and unpacks it; returns the unpacked folder.

    Raises OSError where no package index can be reached or holds it, ValueError for other bytes.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", "--dest", str(folder)]
    asked = f"{wheel.distribution}=={wheel.version}"
    done = subprocess.run([*command, asked], capture_output=True, text=True, check=False)
    files = sorted(folder.glob("*.whl"))
    if done.returncode or not files:
        raise OSError(f"pip could not download {asked}: {done.stderr.strip()[-300:]}")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise ValueError(f"{files[0].name} has the digest {digest}, expected {wheel.sha256}")
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(files[0]) as archive:
        archive.extractall(unpacked)
    return unpacked


def compile_stubs(folder: Path, major: str, compiler: str = "cc") -> None:
    """Compiles the stub libraries for TensorRT `major` into `folder`."""
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}() {{ return 0; }}\n" for name in FUNCTIONS))
    for name in LIBRARIES:
        soname = f"lib{name}.so.{major}"
        command = [compiler, "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}"]
        subprocess.run([*command, "-o", str(folder / soname), str(source)], check=True)


def load(bindings: Path, stubs: Path, major: str) -> ModuleType:
    """The module `tensorrt_bindings` from the folder `bindings`, over the stubs."""
    for name in LIBRARIES:
        ctypes.CDLL(str(stubs / f"lib{name}.so.{major}"), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(bindings))
    return importlib.import_module("tensorrt_bindings")
