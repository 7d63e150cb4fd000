from __future__ import annotations

import pytest

from optimc.targets.native import refusal

ORT_RUN = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Div node. "
    "Name:'layer/div' Status Message: element_wise_ops.cc:703 Compute Integer division by zero"
)
ORT_LOAD = (
    "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 "
    "onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::PathString&, const "
    "onnxruntime::ModelOptions&) Unsupported model IR version: 15, max supported IR version: 14\n"
)
ORT_KERNEL = (
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Conv(11) "
    "node with name 'odd'"
)
OPENVINO = (
    "Exception from src/inference/src/cpp/infer_request.cpp:224:\n"
    "Exception from src/plugins/intel_cpu/src/node.cpp:794:\n"
    "[CPU] Reshape node with name 'y' Check 'minusOneCount <= 1 && inputProduct == outputProduct' "
    "failed at src/plugins/intel_cpu/src/shape_inference/custom/reshape.cpp:73:\n"
    "[cpu]reshape: the shape of input data conflicts with the reshape pattern\n\n\n"
)


@pytest.mark.parametrize(
    ("text", "where", "told"),
    [
        (ORT_RUN, "node `layer/div`", "element_wise_ops.cc:703 Compute Integer division by zero"),
        (ORT_LOAD, None, "Unsupported model IR version: 15, max supported IR version: 14"),
        (ORT_KERNEL, "node `odd`", "Could not find an implementation for Conv(11) node with name"),
        (OPENVINO, "node `y`", "[CPU] Reshape node with name 'y' [cpu]reshape: the shape of"),
        ("", None, "RuntimeError"),
    ],
)
def test_message_is_trimmed_and_names_the_node(text: str, where: str | None, told: str) -> None:
    error = refusal(RuntimeError(text), "The runtime", "running")
    assert error.what.startswith(f"The runtime fails while running: {told}")
    assert error.where == where
    assert "\n" not in error.what
    assert "_src/" not in error.what


def test_long_message_is_cut() -> None:
    assert len(refusal(RuntimeError("x" * 10_000), "The runtime", "running").what) < 500


@pytest.mark.parametrize(
    "text",
    [
        "std::bad_alloc",
        "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 8000000000",
        "Check 'ptr' failed at cpu_memory.cpp:257:\nFailed to allocate 6400000000 bytes of memory",
    ],
)
def test_memory_that_is_not_there_is_a_memory_error(text: str) -> None:
    with pytest.raises(MemoryError):
        refusal(RuntimeError(text), "The runtime", "running")
