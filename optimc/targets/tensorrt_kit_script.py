"""Builds the engine of this kit with TensorRT and compares it with what the kit expects.

    python build_engine.py

Needs tensorrt (10.12 or newer), cuda-bindings and numpy, and an NVIDIA GPU; nothing of optimc.
Writes model.plan. Ends with 0 where the outputs agree, 1 where they do not, 3 where it cannot run.
"""

# A kit carries a copy of this file: it must import nothing of optimc.

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LEAST_SQNR_DB = {"float": 40.0, "quantized": 20.0}
"""40 dB is a difference of 1 % of the outputs, which is what float16 engines are allowed."""


def stop(what: str, fix: str) -> None:
    """Ends with a message."""
    sys.stderr.write(f"error: {what}\n  fix: {fix}\n")
    raise SystemExit(3)


def build(trt: Any, logger: Any, options: dict[str, Any]) -> Any:
    """The serialized engine."""
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        stop(f"tensorrt.Builder refused: {error}", "this call needs an NVIDIA GPU and its driver")
    for library in options["plugins"]:
        builder.get_plugin_registry().load_library(str(HERE / library))
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(HERE / "model" / "model.onnx")):
        refusal = parser.get_error(0)
        stop(f"{refusal.node_name()}: {refusal.desc()}", "see the log above")
    config = builder.create_builder_config()
    config.builder_optimization_level = options["optimization_level"]
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    level = getattr(trt.HardwareCompatibilityLevel, options["hardware_compatibility"])
    config.hardware_compatibility_level = level
    if options["workspace_mb"] is not None:
        size = options["workspace_mb"] * 10**6
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    if options["shared_memory_kb"] is not None:
        size = options["shared_memory_kb"] * 1000
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_SHARED_MEMORY, size)
    config.clear_flag(trt.BuilderFlag.TF32)
    for name in options["flags"]:
        config.set_flag(getattr(trt.BuilderFlag, name))
    for shapes in options["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, greatest) in shapes.items():
            profile.set_shape(name, tuple(least), tuple(usual), tuple(greatest))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        stop("the builder gave no engine", "see the log above")
    return plan


def load(trt: Any, logger: Any, plan: Any, options: dict[str, Any]) -> Any:
    """The engine, with its weights where the plan was stripped of them."""
    runtime = trt.Runtime(logger)
    # A version-compatible plan carries a lean runtime, which is code: it was built just now.
    runtime.engine_host_code_allowed = True
    for library in options["plugins"]:
        runtime.get_plugin_registry().load_library(str(HERE / library))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        stop("TensorRT does not load the engine it has built", "see the log above")
    if "STRIP_PLAN" in options["flags"]:
        refitter = trt.Refitter(engine, logger)
        weights = trt.OnnxParserRefitter(refitter, logger)
        if not weights.refit_from_file(str(HERE / "model" / "model.onnx")):
            stop("TensorRT did not take the weights for the stripped plan", "see the log above")
        if not refitter.refit_cuda_engine():
            stop("TensorRT did not refit the stripped plan", "see the log above")
    if options["weight_streaming_mb"] is not None:
        size = options["weight_streaming_mb"] * 10**6
        engine.weight_streaming_budget_v2 = min(size, engine.streamable_weights_size)
    return engine


class Gpu:
    """The few functions of the CUDA runtime that a comparison needs."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self.runtime = runtime
        self.addresses: list[int] = []

    def call(self, name: str, *arguments: Any) -> Any:
        """The function's result."""
        status, *results = getattr(self.runtime, name)(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            stop(f"{name} failed with {status}", "look at the GPU with nvidia-smi")
        return results[0] if results else None

    def room(self, size: int) -> int:
        """The address of new memory."""
        self.addresses.append(int(self.call("cudaMalloc", max(size, 1))))
        return self.addresses[-1]

    def free(self) -> None:
        """Gives all memory back."""
        for address in self.addresses:
            self.call("cudaFree", address)
        self.addresses = []


def run(trt: Any, engine: Any, gpu: Gpu, feeds: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Runs one probe; fills the arrays in `outputs`, whose shapes are the expected ones."""
    kinds = gpu.runtime.cudaMemcpyKind
    context = engine.create_execution_context()
    stream = gpu.call("cudaStreamCreate")
    for index in range(engine.num_optimization_profiles):
        dynamic = [name for name in feeds if -1 in engine.get_tensor_shape(name)]
        bounds = {name: engine.get_tensor_profile_shape(name, index) for name in dynamic}
        fits = all(
            low <= size <= high
            for name, (least, _, greatest) in bounds.items()
            for low, size, high in zip(least, feeds[name].shape, greatest, strict=True)
        )
        if fits:
            context.set_optimization_profile_async(index, int(stream))
            break
    for name, array in feeds.items():
        context.set_input_shape(name, tuple(array.shape))
        if engine.get_tensor_location(name) == trt.TensorLocation.HOST:
            context.set_tensor_address(name, array.ctypes.data)
            continue
        address = gpu.room(array.nbytes)
        gpu.call(
            "cudaMemcpyAsync",
            address,
            array.ctypes.data,
            array.nbytes,
            kinds.cudaMemcpyHostToDevice,
            stream,
        )
        context.set_tensor_address(name, address)
    # Where the data decide an output's size, the engine needs room for the most there can be.
    places = {
        name: gpu.room(max(array.nbytes, context.get_max_output_size(name)))
        for name, array in outputs.items()
        if engine.get_tensor_location(name) == trt.TensorLocation.DEVICE
    }
    for name, array in outputs.items():
        address = places.get(name, array.ctypes.data)
        context.set_tensor_address(name, address)
    if not context.execute_async_v3(int(stream)):
        stop("the engine did not run", "see the log above")
    for name, address in places.items():
        array = outputs[name]
        gpu.call(
            "cudaMemcpyAsync",
            array.ctypes.data,
            address,
            array.nbytes,
            kinds.cudaMemcpyDeviceToHost,
            stream,
        )
    gpu.call("cudaStreamSynchronize", stream)
    gpu.call("cudaStreamDestroy", stream)
    gpu.free()


def sqnr_db(expected: Any, found: Any) -> float:
    """10 log10 of the signal's power over the difference's, where both are finite.

    Minus infinity where what is not finite differs.
    """
    import numpy as np

    wide = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(wide[0])
    if not np.array_equal(wide[0][~finite], wide[1][~finite], equal_nan=True):
        return -float("inf")
    signal, noise = (values[finite] for values in wide)
    if not np.all(np.isfinite(noise)):
        return -float("inf")
    power, error = float(np.sum(signal**2)), float(np.sum((signal - noise) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(max(power, 1e-300) / error))


def main() -> int:
    """Builds, writes and compares."""
    try:
        import numpy as np
        import tensorrt as trt
    except ImportError as missing:
        stop(str(missing), "pip install tensorrt cuda-bindings numpy")
    kit = json.loads((HERE / "kit.json").read_text(encoding="utf-8"))
    options = json.loads((HERE / "tensorrt.json").read_text(encoding="utf-8"))
    logger = trt.Logger(trt.Logger.WARNING)
    plan = build(trt, logger, options)
    (HERE / "model.plan").write_bytes(plan)
    engine = load(trt, logger, plan, options)
    inputs = [name for name, _, _ in kit["signature"]["inputs"]]
    names = [name for name, _, _ in kit["signature"]["outputs"]]
    worst, gpu = float("inf"), Gpu()
    with np.load(HERE / "probes.npz", allow_pickle=False) as probes:
        count = 1 + max((int(key.split(".")[0]) for key in probes.files), default=-1)
        for number in range(count):
            feeds = {
                n: np.ascontiguousarray(probes[f"{number}.in.{i}"]) for i, n in enumerate(inputs)
            }
            expected = {n: probes[f"{number}.out.{i}"] for i, n in enumerate(names)}
            found = {name: np.zeros_like(array) for name, array in expected.items()}
            run(trt, engine, gpu, feeds, found)
            for name, array in expected.items():
                worst = min(worst, sqnr_db(array, found[name]))
    text = f"model.plan is built; over {count} probes the least SQNR is {worst:.1f} dB"
    sys.stdout.write(f"{text}\n")
    least = LEAST_SQNR_DB["quantized" if kit["lossy"] else "float"]
    return 0 if worst >= least else 1


if __name__ == "__main__":
    sys.exit(main())
