"""What a kit for TensorRT holds beside the model: a `trtexec` line and a script without optimc."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimc.targets.tensorrt_build import PlanOptions, Shapes

OPTIONS = "tensorrt.json"
SCRIPT = "build_engine.py"
COMMAND = "trtexec.sh"
README = "README.md"
_FLAGS = {
    "REFIT": "--refit",
    "SPARSE_WEIGHTS": "--sparsity=enable",
    "STRIP_PLAN": "--stripWeights",
    "VERSION_COMPATIBLE": "--versionCompatible",
    "WEIGHT_STREAMING": "--allowWeightStreaming",
}
_COMPATIBILITY = {
    "AMPERE_PLUS": "ampere+",
    "SAME_COMPUTE_CAPABILITY": "sameComputeCapability",
}
_README = """\
# An engine that is still to be built

`model/model.onnx` is the model as it was placed for TensorRT; its types say the precision.
Any of these builds it, on a machine with an NVIDIA GPU and TensorRT {release} or newer:

    optimc finish .          # builds, compares, measures, judges
    python build_engine.py   # builds and compares; needs tensorrt, cuda-bindings and numpy
    sh trtexec.sh            # builds

`probes.npz` holds inputs with the outputs that ONNX Runtime gave for the placed model
(`<probe>.out.<i>`) and for the source (`<probe>.ref.<i>`); `kit.json` names them.
`calibration/`, where there is one, holds the ranges that the Q and DQ in the model come from.
A plan that is stripped of its weights (`STRIP_PLAN` in `tensorrt.json`) has to be refitted from
`model/model.onnx` before it runs.
"""


def write_scripts(folder: Path, options: PlanOptions, release: str) -> None:
    """Writes the options, the script, the command and a page that explains them.

    `release` is the oldest TensorRT that the model was checked for.
    """
    from optimc.targets import tensorrt_kit_script

    profiles = [{name: list(shapes) for name, shapes in one.items()} for one in options.profiles]
    content = {
        "profiles": profiles,
        "optimization_level": options.optimization_level,
        "workspace_mb": options.workspace_mb,
        "shared_memory_kb": options.shared_memory_kb,
        "flags": sorted(options.flags),
        "hardware_compatibility": options.hardware_compatibility,
        "plugins": [str(path) for path in options.plugins],
        "weight_streaming_mb": options.weight_streaming_mb,
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / OPTIONS).write_text(text, encoding="utf-8")
    (folder / README).write_text(_README.format(release=release), encoding="utf-8")
    (folder / COMMAND).write_text(f"{trtexec(options)}\n", encoding="utf-8")
    shutil.copyfile(Path(tensorrt_kit_script.__file__), folder / SCRIPT)


def trtexec(options: PlanOptions) -> str:
    """The command that makes the same build, as one line for a shell."""
    words = [
        "trtexec",
        "--onnx=model/model.onnx",
        "--saveEngine=model.plan",
        "--stronglyTyped",  # 11 knows no other networks, and takes the flag
        "--skipInference",
        f"--builderOptimizationLevel={options.optimization_level}",
        "--profilingVerbosity=detailed",
    ]
    if "TF32" not in options.flags:
        words.append("--noTF32")
    words += [text for name, text in _FLAGS.items() if name in options.flags]
    # In bytes: trtexec's M is 2 to the power of 20.
    pools = []
    if options.workspace_mb is not None:
        pools.append(f"workspace:{options.workspace_mb * 10**6}B")
    if options.shared_memory_kb is not None:
        pools.append(f"tacticSharedMem:{options.shared_memory_kb * 1000}B")
    if pools:
        words.append(f"--memPoolSize={','.join(pools)}")
    if options.hardware_compatibility in _COMPATIBILITY:
        level = _COMPATIBILITY[options.hardware_compatibility]
        words.append(f"--hardwareCompatibilityLevel={level}")
    words += [f"--dynamicPlugins={path}" for path in options.plugins]
    for index, shapes in enumerate(options.profiles):
        words += [f"--profile={index}"] if len(options.profiles) > 1 else []
        words += _shapes(shapes)
    return shlex.join(words)


def _shapes(shapes: Shapes) -> list[str]:
    """The least, usual and greatest shapes of one profile."""
    sides = ("minShapes", "optShapes", "maxShapes")
    return [
        f"--{side}=" + ",".join(f"{_quoted(name)}:{_sizes(s[index])}" for name, s in shapes.items())
        for index, side in enumerate(sides)
    ]


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _quoted(name: str) -> str:
    """An input's name, in the quotes that trtexec asks for where it would split the name."""
    return f"'{name}'" if set(name) & set(":,") else name
