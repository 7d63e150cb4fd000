"""What is done with an ONNX file before anything trusts it, in a worker process.

A hostile or broken file can crash onnx.checker or ONNX Runtime, hang them or exhaust memory; here
that ends one worker and becomes one message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core import custom_ops
from optimc.core.errors import InputError
from optimc.core.onnx_session import (
    max_relative_error,
    reference_session,
    run_or_none,
    seeded_feeds,
)

if TYPE_CHECKING:
    import onnx

Answer = tuple[dict[str, Any], dict[str, Any]]
Dims = Sequence[int | str]

MIN_OPSET = 13
"""Per-channel QuantizeLinear, and axes as inputs, begin here: older models are converted up."""

_OLDEST_OPSET = 7
_SMALL_TENSOR_BYTES = 1024
_COMPARE_TOLERANCE = 1e-5
_DYNAMIC_SIZES = (1, 2, 32, 224)


class OnnxService:
    """Examines, converts and loads ONNX files. Methods raise InputError."""

    def examine(self, arrays: Mapping[str, Any], path: str, declared: Mapping[str, Dims]) -> Answer:
        """Checks the file at `path` with every check there is, and loads it by ONNX Runtime.

        `declared` gives shapes for inputs whose rank the file does not say. Returns the notes, the
        opset, and what shape inference says of outputs without a declared shape.
        """
        from optimc.frontends.onnx_checks import (
            check_functions,
            check_interface,
            check_names,
            check_operators,
            check_types,
        )
        from optimc.frontends.onnx_files import check_tensors, parse

        file = Path(path)
        proto = parse(file)
        check_interface(proto, file)
        check_types(proto, file)
        size = check_tensors(proto, file)
        check_names(proto, file)
        check_functions(proto, file)
        contrib = _runtime_operators()
        check_operators(proto, file, contrib, libraries=bool(custom_ops.provided()))
        notes: list[str] = []
        light = _without_weights(proto, declared)
        output_dims = _fill_output_shapes(light, file, notes)
        _run_checker(light, file)
        stale = _contradiction(light)
        opset = max((e.version for e in proto.opset_import if _is_onnx(e.domain)), default=0)
        _load_by_runtime(file, opset)
        answer = {
            "custom_types": _custom_types(proto, file) if custom_ops.provided() else {},
            "notes": notes,
            "opset": opset,
            "bytes": size,
            "output_dims": output_dims,
            "stale_shapes": stale,
        }
        return answer, {}

    def load_library(self, arrays: Mapping[str, Any], path: str) -> Answer:
        """Loads a library of custom operators, as every session does later."""
        import onnxruntime

        try:
            onnxruntime.SessionOptions().register_custom_ops_library(path)
        except Exception as error:
            raise InputError(
                f"ONNX Runtime cannot load this library of custom operators: {_first_line(error)}",
                where=path,
                fix="name a shared library for this system that has the function "
                "RegisterCustomOps, built for the installed release of ONNX Runtime or an older "
                "one",
            ) from error
        return {}, {}

    def convert(self, arrays: Mapping[str, Any], path: str, target: str, opset: int) -> Answer:
        """Writes the model at `path` with the given opset to `target`, where that proves right.

        Both are run on the same seeded inputs. Returns the reason where it cannot be done, or None.
        """
        import onnx
        from onnx.version_converter import convert_version

        from optimc.frontends.onnx_files import check_tensors, parse

        file = Path(path)
        if check_tensors(parse(file), file) > 2**30:
            return {"reason": "it has more than 1 GiB of weights"}, {}
        proto = onnx.load(path)
        try:
            converted = convert_version(proto, opset)
        except (RuntimeError, ValueError) as error:
            return {"reason": _first_line(error)}, {}
        onnx.save(converted, target)
        return {"reason": _difference(file, Path(target))}, {}


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


@cache
def _runtime_operators() -> frozenset[tuple[str, str]]:
    """The operators with their domains that ONNX Runtime has beyond those of ONNX."""
    from onnxruntime.capi import _pybind_state

    schemas = _pybind_state.get_all_operator_schema()
    return frozenset((s.domain, s.name) for s in schemas if s.domain)


def _without_weights(proto: onnx.ModelProto, declared: Mapping[str, Dims]) -> onnx.ModelProto:
    """The model with bigger initializers as mere inputs, so that C++ checks copy no weights."""
    import onnx

    light = onnx.ModelProto()
    light.CopyFrom(proto) if proto.ByteSize() < 2**24 else _copy_frame(proto, light)
    graph = light.graph
    listed = {value.name for value in graph.input}
    kept = []
    for tensor in proto.graph.initializer:
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if not external and len(tensor.raw_data) <= _SMALL_TENSOR_BYTES:
            kept.append(tensor)
        elif tensor.name not in listed:
            dims = list(tensor.dims)
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, dims)
            )
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for value in graph.input:
        if value.name in declared and not value.type.tensor_type.HasField("shape"):
            for dim in declared[value.name]:
                entry = value.type.tensor_type.shape.dim.add()
                setattr(entry, "dim_param" if isinstance(dim, str) else "dim_value", dim)
    return light


def _copy_frame(proto: onnx.ModelProto, light: onnx.ModelProto) -> None:
    """Copies everything but the main graph's initializers."""
    for field, value in proto.ListFields():
        if field.name == "graph":
            for inner, content in value.ListFields():
                if inner.name != "initializer":
                    _set(light.graph, inner, content)
        else:
            _set(light, field, value)


def _set(message: Any, field: Any, value: Any) -> None:
    if field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _is_onnx(domain: str) -> bool:
    return domain in ("", "ai.onnx")


def _fill_output_shapes(
    light: onnx.ModelProto, path: Path, notes: list[str]
) -> dict[str, list[int | str | None]]:
    """Infers shapes for outputs that declare none (the checker wants one, runtimes do not)."""
    from onnx import shape_inference

    without = [o for o in light.graph.output if not o.type.tensor_type.HasField("shape")]
    if not without:
        return {}
    found: dict[str, list[int | str | None]] = {}
    inferred = shape_inference.infer_shapes(light)
    types = {value.name: value.type for value in inferred.graph.output}
    for output in without:
        if not types[output.name].tensor_type.HasField("shape"):
            raise InputError(
                f"the output `{output.name}` has no shape, and it cannot be inferred",
                where=str(path),
                fix="export the model with the shape of its outputs (names for dynamic dims)",
            )
        output.type.CopyFrom(types[output.name])
        found[output.name] = [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in output.type.tensor_type.shape.dim
        ]
    names = ", ".join(f"`{name}`" for name in found)
    notes.append(f"the file gives no shape for the output {names}: it was inferred")
    return found


def _run_checker(light: onnx.ModelProto, path: Path) -> None:
    from onnx import checker

    try:
        checker.check_model(light)
    except checker.ValidationError as error:
        raise InputError(
            f"not a valid ONNX model: {_first_line(error)}",
            where=str(path),
            fix="export the model again, with a newer exporter where there is one",
        ) from error


def _contradiction(light: onnx.ModelProto) -> str | None:
    """What shape inference says against the shapes and types in the file, or None."""
    from onnx import shape_inference

    try:
        shape_inference.infer_shapes(light, check_type=True, strict_mode=True)
    except shape_inference.InferenceError as error:
        return _first_line(error)
    return None


def _custom_types(
    proto: onnx.ModelProto, path: Path
) -> dict[str, tuple[str, list[int | str | None] | None]]:
    """Dtype names and dims of what operators outside ONNX compute, as ONNX Runtime infers them.

    Dims are None where the operator does not say them.
    """
    import onnx

    wanted = [
        name
        for node in proto.graph.node
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml")
        for name in node.output
        if name
    ]
    if not wanted:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    found: dict[str, tuple[str, list[int | str | None] | None]] = {}
    for info in reference_session(probe.SerializeToString(), path.parent).get_outputs():
        kind = info.type.removeprefix("tensor(").removesuffix(")").upper()
        # An empty list stands for a scalar and for an unknown rank alike.
        found[info.name] = (kind, list(info.shape) or None)
    return found


def _load_by_runtime(path: Path, opset: int) -> None:
    try:
        reference_session(path)
    except Exception as error:
        if "bad_alloc" in str(error) or isinstance(error, MemoryError):
            raise MemoryError(str(error)) from error
        fix = "optimc verifies everything by ONNX Runtime: the model has to run there"
        if 0 < opset < _OLDEST_OPSET:
            fix = f"export with opset {MIN_OPSET} or later: ONNX Runtime begins at {_OLDEST_OPSET}"
        what = f"ONNX Runtime refuses the model: {_first_line(error)}"
        raise InputError(what, where=str(path), fix=fix) from error


def _difference(before: Path, after: Path) -> str | None:
    """Why the converted model is not the same function, or None; compared on seeded inputs."""
    try:
        old, new = reference_session(before), reference_session(after)
        compared = 0
        dynamic = any(isinstance(dim, str | None) for i in old.get_inputs() for dim in i.shape)
        for size in _DYNAMIC_SIZES if dynamic else _DYNAMIC_SIZES[:1]:
            feeds = seeded_feeds(old, size)
            expected = run_or_none(old, None, feeds)
            if expected is None:
                continue
            compared += 1
            for info, a, b in zip(old.get_outputs(), expected, new.run(None, feeds), strict=True):
                if max_relative_error(a, b) > _COMPARE_TOLERANCE:
                    return f"the output `{info.name}` would change"
    except Exception as error:  # noqa: BLE001 (whatever the runtime raises is the reason)
        return _first_line(error)
    return None if compared else "the result could not be compared on seeded inputs"
