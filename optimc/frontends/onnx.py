"""The ONNX front end: from a file that nobody vouches for to a model that passes may work on.

`load_onnx` examines the file in a worker (a crash, a hang or a bomb is one message), then brings it
into the form that the compiler works on: functions inlined, initializers no inputs, every value and
node with a name of its own, every dynamic dim with a name, no doc strings or metadata, opset 13 at
least. Big weights in external data stay in their file, mapped into memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.custom_ops import DIGESTS_KEY
from optimc.core.errors import InputError, WorkerError
from optimc.core.files import file_sha256
from optimc.core.model import EXTERNAL_DATA_THRESHOLD, OnnxModel, Signature, TensorSpec
from optimc.core.worker import Limits, Worker

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_PLACEHOLDER_DIMS = frozenset({"", "?", "-1", "None", "none", "unknown", "unk", "dynamic"})
"""What exporters write for a dim that they know nothing of: equal names would claim equal sizes."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that was taken in, and what the report has to say of it."""

    model: OnnxModel
    notes: tuple[str, ...]


def load_onnx(
    path: Path,
    *,
    workspace: Path,
    limits: Limits | None = None,
    declared_inputs: Mapping[str, Sequence[int | str]] | None = None,
) -> Loaded:
    """Takes in the ONNX file at `path`.

    `declared_inputs` gives shapes by input name (the recipe's): names there replace the file's
    names for dynamic dims, numbers fix them. `workspace` is an existing folder that has to live as
    long as the model; `limits` are those of the worker, with the libraries of custom operators that
    the model needs. Raises `InputError` with what is wrong with the file, where, and what to do.
    """
    path = Path(path)
    declared = {name: list(dims) for name, dims in (declared_inputs or {}).items()}
    notes: list[str] = []
    source = _examine(path, workspace, limits or Limits(), declared, notes)
    normalized = _normalized(source, declared, notes, path)
    if limits is not None and limits.libraries:
        digests = [file_sha256(Path(library)) for library in limits.libraries]
        normalized.metadata_props[DIGESTS_KEY] = " ".join(digests)
    return Loaded(OnnxModel(normalized), tuple(notes))


def read_signature(path: Path) -> Signature:
    """Inputs and outputs of the ONNX file at `path`, checked as far as that takes no runtime.

    Equal to the signature of the loaded model, but for shapes that the file leaves out. Imports
    onnx alone. Raises `InputError` where the file is no ONNX model, or names or tensors are wrong.
    """
    from optimc.frontends.onnx_checks import check_functions, check_interface, check_names
    from optimc.frontends.onnx_files import check_tensors, parse

    proto = parse(Path(path))
    check_interface(proto, Path(path))
    check_names(proto, Path(path))
    check_functions(proto, Path(path))
    check_tensors(proto, Path(path))
    initializers = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in initializers]
    return Signature(
        inputs=tuple(_tensor_spec(value) for value in inputs),
        outputs=tuple(_tensor_spec(value) for value in proto.graph.output),
    )


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    dims: tuple[int | str, ...] | None = None
    if tensor.HasField("shape"):
        dims = tuple(
            name_dim(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param, value.name, axis
            )
            for axis, dim in enumerate(tensor.shape.dim)
        )
    return TensorSpec(value.name, str(tensor_dtype_to_np_dtype(tensor.elem_type)), dims)


def name_dim(dim: int | str | None, value: str, axis: int) -> int | str:
    """A dim as signatures show it; what the exporter did not know is called by its place."""
    unknown = dim is None or dim == -1 or (isinstance(dim, str) and dim in _PLACEHOLDER_DIMS)
    return f"{value}_dim{axis}" if unknown else dim  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class _Source:
    """The file to read, which is a converted one where the opset had to be raised."""

    path: Path
    output_dims: Mapping[str, Sequence[int | str | None]]
    custom_types: Mapping[str, tuple[str, Sequence[int | str | None] | None]]
    """Dtypes and dims of what custom operators compute, which only the runtime knows."""
    stale_shapes: bool
    in_memory: bool
    """Whether the weights are small: such are read, so that the file may change or go."""


def _examine(
    path: Path,
    workspace: Path,
    limits: Limits,
    declared: Mapping[str, Sequence[int | str]],
    notes: list[str],
) -> _Source:
    from optimc.frontends.onnx_service import MIN_OPSET

    service = "optimc.frontends.onnx_service:OnnxService"
    try:
        with Worker(service, name=f"examining {path.name}", limits=limits) as worker:
            _try_libraries(worker, limits)
            answer = worker.call("examine", path=str(path), declared=dict(declared)).data
            notes += answer["notes"]
            if answer["stale_shapes"]:
                notes.append(
                    "shapes of inner values in the file are not used, because shape inference "
                    f"contradicts them: {answer['stale_shapes']}"
                )
            read = path
            if answer["opset"] and answer["opset"] < MIN_OPSET:
                read = _raise_opset(worker, path, workspace, answer["opset"], notes)
    except WorkerError as error:
        raise InputError(
            f"the model could not be examined: {error.what}",
            where=str(path),
            fix=f"{error.fix}; or the file is damaged or hostile",
        ) from error
    in_memory = answer["bytes"] <= EXTERNAL_DATA_THRESHOLD
    return _Source(
        read,
        answer["output_dims"],
        answer["custom_types"],
        bool(answer["stale_shapes"]),
        in_memory,
    )


def _try_libraries(worker: Worker, limits: Limits) -> None:
    """Loads each library of custom operators alone, so that a bad one is named."""
    for library in limits.libraries:
        try:
            worker.call("load_library", path=library)
        except WorkerError as error:
            raise InputError(
                f"ONNX Runtime cannot load this library of custom operators: {error.what}",
                where=library,
                fix="build it against the headers of the installed release of ONNX Runtime, or an "
                "older one",
            ) from error


def _raise_opset(worker: Worker, path: Path, workspace: Path, opset: int, notes: list[str]) -> Path:
    """The file with the least opset that passes work on; `path` itself where that fails."""
    from optimc.frontends.onnx_service import MIN_OPSET

    target = workspace / f"{path.stem}-opset{MIN_OPSET}.onnx"
    reply = worker.call("convert", path=str(path), target=str(target), opset=MIN_OPSET)
    reason = reply.data["reason"]
    if reason is None:
        notes.append(f"opset {opset} was raised to {MIN_OPSET}")
        return target
    target.unlink(missing_ok=True)
    notes.append(f"opset {opset} could not be raised to {MIN_OPSET} and stays: {reason}")
    return path


def _normalized(
    source: _Source, declared: Mapping[str, Sequence[int | str]], notes: list[str], path: Path
) -> ir.Model:
    import onnx_ir

    from optimc.frontends import onnx_normal

    model = onnx_normal.read(source.path)
    if source.in_memory:
        onnx_ir.external_data.load_to_model(model)
    onnx_normal.strip_metadata(model)
    if onnx_normal.inline_functions(model):
        notes.append("functions were inlined")
    listed = onnx_normal.initializers_off_inputs(model)
    if listed:
        notes.append(f"{listed} initializers that the file also lists as inputs are constants here")
    if source.stale_shapes:
        onnx_normal.forget_inner_shapes(model)
    onnx_normal.set_types(model, source.custom_types)
    onnx_normal.name_dims(model, source.output_dims, name_dim)
    onnx_normal.declare_shapes(model, declared, path)
    onnx_normal.finish(model)
    return model
