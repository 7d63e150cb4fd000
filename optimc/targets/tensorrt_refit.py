"""Puts the weights of an ONNX file into a plan that was built without them (`strip_plan`).

API: NVIDIA TensorRT, Python API reference, `tensorrt.Refitter`, `tensorrt.OnnxParserRefitter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError
from optimc.targets.tensorrt_build import last_words

if TYPE_CHECKING:
    from types import ModuleType


def refit(trt: ModuleType, engine: Any, logger: Any, model: Path, errors: Sequence[str]) -> None:
    """Fills the `ICudaEngine` with the weights of the ONNX file `model`.

    `errors` is what `logger` collects. Raises CellError with the node where the file is not what
    the plan was built from.
    """
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(model)):
        node = parser.get_error(0).node_name() if parser.num_errors else ""
        place = f" at the node {node}" if node else ""
        raise CellError(
            f"TensorRT did not take the weights of {model.name}{place}{last_words(errors)}",
            fix="build the engine again: its plan and its ONNX file belong together",
        )
    if not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()[:3])
        lacking = f"; without weights: {missing}" if missing else ""
        raise CellError(f"TensorRT did not refit the engine{lacking}{last_words(errors)}")
