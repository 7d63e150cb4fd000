"""A model repository for NVIDIA's Triton Inference Server.

It is for the server's ONNX Runtime and OpenVINO backends. ``config.pbtxt`` is a ``ModelConfig`` in
protobuf's text format, as Triton's model_config.proto defines it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.errors import InputError
from optimc.pipeline.bundle.plain import c_string, copy_engine, write_proof

if TYPE_CHECKING:
    from optimc.core.model import TensorSpec
    from optimc.pipeline.bundle.delivery import Delivery
    from optimc.pipeline.bundle.golden import Golden

_BACKENDS = ("onnxruntime", "openvino")
"""Triton calls its backends as we call the runtimes."""

_TYPES = {
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "bool": "TYPE_BOOL",
    **{
        f"{sign}int{n}": f"TYPE_{sign.upper()}INT{n}" for sign in ("", "u") for n in (8, 16, 32, 64)
    },
}


_LEVELS = {"extended": 1, "basic": -1, "disabled": 2}
"""``level`` of the ONNX Runtime backend, as its README lists it; it takes "all" where none is."""


def write_triton(delivery: Delivery, golden: list[Golden], folder: Path) -> None:
    """Fills the empty `folder`: ``models/NAME/``, golden data and a script beside it."""
    write_repository(delivery, golden, folder / "models")
    model = f"models/{delivery.name}/{delivery.version}"
    write_proof(delivery, golden, folder, model)


def write_repository(delivery: Delivery, golden: list[Golden], folder: Path) -> None:
    """The model repository. Raises InputError for a runtime that Triton has no backend for."""
    place = folder / delivery.name
    copy_engine(delivery, place / str(delivery.version))
    warm_up = _warm_up_files(delivery, golden)
    if warm_up:
        (place / "warmup").mkdir()
        for name, data in warm_up.items():
            (place / "warmup" / name).write_bytes(data)
    (place / "config.pbtxt").write_text(config(delivery, golden), encoding="utf-8")


def config(delivery: Delivery, golden: Sequence[Golden]) -> str:
    """The text of ``config.pbtxt``."""
    return "\n".join(_lines(delivery, golden)) + "\n"


def _lines(delivery: Delivery, golden: Sequence[Golden]) -> Iterator[str]:
    engine = delivery.engine
    if engine.runtime not in _BACKENDS:
        raise InputError(
            f"Triton's backends are {' and '.join(_BACKENDS)} here; the cell is for "
            f"{engine.runtime}",
            where="--cell",
            fix="choose a cell of one of these, or `--format plain`",
        )
    yield f'name: "{c_string(delivery.name)}"'
    yield f'backend: "{engine.runtime}"'
    yield f'default_model_filename: "{c_string(engine.main.name)}"'
    yield f"max_batch_size: {delivery.max_batch}"
    for side in ("input", "output"):
        specs = getattr(engine.signature, f"{side}s")
        yield f"{side} [\n" + ",\n".join(_tensor(spec, delivery) for spec in specs) + "\n]"
    if delivery.max_batch > 1:
        yield "dynamic_batching { max_queue_delay_microseconds: 1000 }"
    yield "instance_group [ { kind: KIND_CPU count: 1 } ]"
    yield from _threads(delivery)
    level = _LEVELS.get(str(engine.manifest["session"].get("graph_optimization", "all")))
    if level is not None:
        yield f"optimization {{ graph {{ level: {level} }} }}"
    for library in engine.manifest["session"].get("custom_ops", ()):
        # The server looks for a path from where it was started: models/ is its usual mount.
        place = f"/models/{delivery.name}/{delivery.version}/{library}"
        yield f'model_operations {{ op_library_filename: "{c_string(place)}" }}'
    yield from _warm_up(delivery, golden)


def _tensor(spec: TensorSpec, delivery: Delivery) -> str:
    shape = list(spec.shape or ())
    dims = shape[1:] if delivery.max_batch else shape
    sizes = [-1 if isinstance(dim, str) else dim for dim in dims]
    # Triton takes no tensor without axes: it is sent as one element and reshaped.
    reshape = "" if sizes else " reshape { shape: [ ] }"
    return (
        f'  {{ name: "{c_string(spec.name)}" data_type: {_TYPES[spec.dtype]} '
        f"dims: [ {', '.join(map(str, sizes or [1]))} ]{reshape} }}"
    )


def _threads(delivery: Delivery) -> Iterator[str]:
    session = delivery.engine.manifest["session"]
    threads = session.get("threads")
    names = {
        "onnxruntime": {"intra_op_thread_count": threads},
        "openvino": {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": session.get("precision"),
        },
    }
    for name, value in names[delivery.engine.runtime].items():
        if value:
            yield f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'


def _warm_up_files(delivery: Delivery, golden: Sequence[Golden]) -> dict[str, bytes]:
    return {
        f"{index}_{number}": one.inputs[spec.name].tobytes()
        for index, one in enumerate(golden)
        for number, spec in enumerate(delivery.engine.signature.inputs)
    }


def _warm_up(delivery: Delivery, golden: Sequence[Golden]) -> Iterator[str]:
    for index, one in enumerate(golden):
        inputs = []
        batch = 0
        for number, spec in enumerate(delivery.engine.signature.inputs):
            array = one.inputs[spec.name]
            shape = list(array.shape)
            if delivery.max_batch:
                batch, shape = shape[0], shape[1:]
            dims = ", ".join(map(str, shape or [1]))
            inputs.append(
                f'  inputs {{ key: "{c_string(spec.name)}" value {{ '
                f"data_type: {_TYPES[spec.dtype]} dims: [ {dims} ] "
                f'input_data_file: "{index}_{number}" }} }}'
            )
        yield (
            f'model_warmup {{\n  name: "{c_string(one.label)}"\n  batch_size: {max(batch, 1)}\n'
            + "\n".join(inputs)
            + "\n}"
        )
