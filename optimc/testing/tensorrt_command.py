"""What `trtexec` takes: a stand-in that reads a command as it does, to check ours without it.

Flags and values are those that `samples/common/sampleOptions.cpp` of NVIDIA's TensorRT reads in
10.x; of 11 excerpts alone were read.
"""

from __future__ import annotations

import re
import shlex

_NUMBER = r"\d+"
_SHAPES = r"(?:'[^']+'|[^:,']+):\d+(?:x\d+)*(?:,(?:'[^']+'|[^:,']+):\d+(?:x\d+)*)*"
_POOL = r"(?:workspace|tacticSharedMem):\d+(?:\.\d+)?[BKMG]?"
_VALUES = {
    "--builderOptimizationLevel": "[0-5]",
    "--dynamicPlugins": ".+",
    "--hardwareCompatibilityLevel": r"none|ampere\+|sameComputeCapability",
    "--maxShapes": _SHAPES,
    "--memPoolSize": rf"{_POOL}(?:,{_POOL})*",
    "--minShapes": _SHAPES,
    "--onnx": ".+",
    "--optShapes": _SHAPES,
    "--profile": _NUMBER,
    "--profilingVerbosity": "layer_names_only|detailed|none",
    "--saveEngine": ".+",
    "--sparsity": "disable|enable|force",
}
_SWITCHES = {
    "--allowWeightStreaming",
    "--noTF32",
    "--refit",
    "--skipInference",
    "--stripWeights",
    "--stronglyTyped",
    "--versionCompatible",
}
_REPEATED = {"--dynamicPlugins", "--profile", "--minShapes", "--optShapes", "--maxShapes"}


def read_trtexec(line: str) -> list[tuple[str, str | None]]:
    """The options of a command line. Raises ValueError for what trtexec would not take."""
    program, *words = shlex.split(line)
    if program != "trtexec":
        raise ValueError(f"{program} is not trtexec")
    options = [_option(word) for word in words]
    names = [name for name, _ in options if name not in _REPEATED]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is there twice")
    return options


def _option(word: str) -> tuple[str, str | None]:
    name, equals, value = word.partition("=")
    if not equals:
        if name not in _SWITCHES:
            raise ValueError(f"trtexec has no {name}")
        return name, None
    if name not in _VALUES:
        raise ValueError(f"trtexec has no {name} with a value")
    if not re.fullmatch(_VALUES[name], value):
        raise ValueError(f"{name} does not take {value}")
    return name, value
