"""`optimc doctor`: what is installed and usable here, and what would fix what is not."""

from __future__ import annotations

import os
import platform
import shutil

from optimc import __version__
from optimc.core.cpu import cpu_features, cpu_model
from optimc.core.errors import OptimcError
from optimc.core.registry import target_class, target_names
from optimc.pipeline.versions import tool_version

_TOOLS = (
    ("onnx", None),
    ("onnx-ir", None),
    ("onnxscript", None),
    ("onnxruntime", None),
    ("numpy", None),
    ("onnxsim", "onnxsim"),
    ("openvino", "openvino"),
    ("nncf", "openvino"),
    ("pycocotools", "detection"),
    ("torch", "torch"),
    ("neural-compressor-pt", "inc"),
    ("tokenizers", "text"),
    ("pyarrow", "text"),
    ("pillow", "images"),
    ("tensorrt", "tensorrt"),
)


def run_doctor() -> int:
    """Prints versions, CPU, targets and cache, each with the fix where something is missing."""
    print(f"optimc {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"CPU    {cpu_model()}; {', '.join(sorted(cpu_features())) or 'no known features'}")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"cores  {usable} usable")
    print("\ntools")
    for tool, extra in _TOOLS:
        version = tool_version(tool)
        fix = f"  fix: pip install 'optimc[{extra}]'" if version == "absent" and extra else ""
        print(f"  {tool:<20} {version}{fix}")
    print("\ntargets")
    for runtime in target_names():
        try:
            missing = target_class(runtime).unavailable()
        except OptimcError as error:
            print(f"  {runtime:<12} broken: {error.what}")
            continue
        state = "available" if missing is None else f"not here: {missing.reason}"
        print(f"  {runtime:<12} {state}")
        if missing is not None:
            print(f"  {'':<12}   fix: {missing.remedy}")
    return _cache()


def _cache() -> int:
    from optimc.pipeline.cache import Cache

    print("\ncache")
    try:
        cache = Cache()
    except OptimcError as error:
        print(f"  broken: {error}")
        return 0
    free = shutil.disk_usage(cache.folder).free
    print(f"  {cache.folder}")
    print(f"  bound {cache.size_bytes / 1e9:g} GB, {free / 1e9:.0f} GB free on the disk")
    return 0
