"""The kit's trtexec line, read as trtexec reads it: the same build as optimc's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimc.core.model import Signature, TensorSpec
from optimc.core.targets import DimSizes
from optimc.targets.tensorrt import TensorRT
from optimc.targets.tensorrt_kit import trtexec
from optimc.testing.tensorrt_command import read_trtexec

ALWAYS = [
    ("--onnx", "model/model.onnx"),
    ("--saveEngine", "model.plan"),
    ("--stronglyTyped", None),
    ("--skipInference", None),
]


def line(input_name: str = "x", **options: Any) -> list[tuple[str, str | None]]:
    target = TensorRT(**options)
    signature = Signature((TensorSpec(input_name, "float32", ("batch", 3)),), ())
    return read_trtexec(trtexec(target.plan_options(signature, {"batch": DimSizes(1, 2, 8)})))


def test_defaults() -> None:
    found = line()
    assert found[: len(ALWAYS)] == ALWAYS
    assert ("--noTF32", None) in found
    assert found[-3:] == [
        ("--minShapes", "x:1x3"),
        ("--optShapes", "x:2x3"),
        ("--maxShapes", "x:8x3"),
    ]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"optimization_level": 5}, ("--builderOptimizationLevel", "5")),
        ({"workspace_mb": 64}, ("--memPoolSize", "workspace:64000000B")),
        ({"shared_memory_kb": 48}, ("--memPoolSize", "tacticSharedMem:48000B")),
        ({"sparse_weights": True}, ("--sparsity", "enable")),
        ({"version_compatible": True}, ("--versionCompatible", None)),
        ({"hardware_compatibility": "ampere_plus"}, ("--hardwareCompatibilityLevel", "ampere+")),
        (
            {"hardware_compatibility": "same_compute_capability"},
            ("--hardwareCompatibilityLevel", "sameComputeCapability"),
        ),
        ({"refit": True}, ("--refit", None)),
        ({"strip_plan": True}, ("--stripWeights", None)),
        ({"weight_streaming_mb": 100}, ("--allowWeightStreaming", None)),
        ({"plugins": [Path("own library.so")]}, ("--dynamicPlugins", "own library.so")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_option_is_in_the_line(
    options: dict[str, Any], wanted: tuple[str, str | None]
) -> None:
    assert wanted in line(**options)
    assert wanted not in line()


def test_pools_are_one_option() -> None:
    pools = ("--memPoolSize", "workspace:1000000B,tacticSharedMem:2000B")
    assert pools in line(workspace_mb=1, shared_memory_kb=2)


def test_tf32() -> None:
    assert ("--noTF32", None) not in line(tf32=True)


def test_several_profiles_are_numbered() -> None:
    found = line(profiles=[{"batch": (1, 1, 2)}, {"batch": (3, 4, 8)}])
    assert [value for name, value in found if name == "--profile"] == ["0", "1"]
    assert [value for name, value in found if name == "--maxShapes"] == ["x:2x3", "x:8x3"]


def test_names_that_trtexec_would_split_are_quoted() -> None:
    assert ("--minShapes", "'in:0':1x3") in line("in:0")


@pytest.mark.parametrize(
    "wrong", ["trtexec --fast", "trtexec --sparsity=yes", "trtexec --refit --refit", "exec --refit"]
)
def test_what_trtexec_would_refuse_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"no --fast|does not take yes|twice|is not trtexec"):
        read_trtexec(wrong)
