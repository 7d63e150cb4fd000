from __future__ import annotations

from typing import ClassVar

from optimc.core.targets import Target
from optimc.targets.onnxruntime import OnnxRuntime
from optimc.testing.target_contract import TargetContract


class TestOnnxRuntimeContract(TargetContract):
    targets: ClassVar[tuple[Target, ...]] = (
        OnnxRuntime(),
        OnnxRuntime(threads=2, optimized=True),
    )
