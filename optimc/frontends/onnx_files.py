"""Reading an ONNX file: the protobuf message, and where its weights lie. Imports onnx at the top.

External data is checked before anything opens it: the format lets a model name any file of the
machine. Everything raises `InputError` with what is wrong, where, and what to do.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from optimc.core.errors import InputError, did_you_mean
from optimc.core.onnx_protos import all_protos

MAX_PROTOBUF_BYTES = 2**31 - 1
"""What one protobuf message can hold; bigger weights live in external data."""


def parse(path: Path) -> onnx.ModelProto:
    """Reads the file without its external data. Raises InputError where it is no ONNX model."""
    _check_file(path)
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, RecursionError, ValueError) as error:
        raise InputError(
            "this is not an ONNX model, or the file is truncated or damaged",
            where=str(path),
            fix="export the model again, and compare the file's size where it was copied",
        ) from error
    present = {
        "graph": proto.HasField("graph"),
        "outputs": bool(proto.graph.output),
        "opset version": bool(proto.opset_import),
    }
    if not all(present.values()):
        missing = next(part for part, there in present.items() if not there)
        raise InputError(
            f"this is not an ONNX model, or the file is truncated: it has no {missing}",
            where=str(path),
            fix="export the model again",
        )
    return proto


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"cannot read the model: {error.strerror}",
            where=str(path),
            fix=did_you_mean(path.name, _onnx_files(path.parent)) or "check the path",
        ) from error
    if stat.S_ISDIR(status.st_mode):
        found = ", ".join(sorted(_onnx_files(path))[:5])
        fix = f"name the file in it: {found}" if found else "name an .onnx file"
        raise InputError("this is a folder, not an ONNX file", where=str(path), fix=fix)
    if not stat.S_ISREG(status.st_mode):
        raise InputError("this is not a regular file", where=str(path), fix="name an .onnx file")
    if status.st_size == 0:
        raise InputError("the file is empty", where=str(path), fix="export the model again")
    if status.st_size > MAX_PROTOBUF_BYTES:
        raise InputError(
            f"the file has {status.st_size:,} bytes, protobuf ends at {MAX_PROTOBUF_BYTES:,}",
            where=str(path),
            fix="export with external data (weights in a file of their own)",
        )


def _onnx_files(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir() if path.suffix == ".onnx"]
    except OSError:
        return []


def all_tensors(proto: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor that the file holds, with the place to name in a message."""
    for graph in all_protos(proto.graph):
        for tensor in graph.initializer:
            yield f"initializer `{tensor.name}`", tensor
        yield from _attribute_tensors(graph.node)
    for function in proto.functions:
        yield from _attribute_tensors(function.node)


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    for node in nodes:
        for attribute in node.attribute:
            tensors = [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            for tensor in tensors:
                yield f"attribute `{attribute.name}` of {describe(node)}", tensor


def check_tensors(proto: onnx.ModelProto, path: Path) -> int:
    """Checks dims and sizes of all tensors, and where external data lies; returns their bytes."""
    total = 0
    sizes: dict[Path, int] = {}
    for graph in all_protos(proto.graph):
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise InputError(
                f"the sparse initializer `{name}` is not supported",
                where=str(path),
                fix="store it as a dense initializer",
            )
    for place, tensor in all_tensors(proto):
        expected = _tensor_bytes(tensor, place, path)
        if tensor.data_location == TensorProto.EXTERNAL:
            _check_external(tensor, expected, place, path, sizes)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != expected:
            raise InputError(
                f"{place} has {len(tensor.raw_data):,} bytes, "
                f"its dims {list(tensor.dims)} need {expected:,}",
                where=str(path),
                fix="export the model again",
            )
        total += expected
    return total


def describe(node: onnx.NodeProto) -> str:
    """A node as messages name it: by its name, or by its first output where it has none."""
    name = node.name or next((output for output in node.output if output), "")
    return f"node `{name}` ({node.op_type})"


def _tensor_bytes(tensor: TensorProto, place: str, path: Path) -> int:
    if any(dim < 0 for dim in tensor.dims):
        raise InputError(f"{place} has negative dims {list(tensor.dims)}", where=str(path))
    known = onnx.helper.get_all_tensor_dtypes()
    if tensor.data_type not in known:
        raise InputError(f"{place} has an unknown data type {tensor.data_type}", where=str(path))
    if tensor.data_type == TensorProto.STRING:
        return 0
    bits = int(math.prod(tensor.dims)) * tensor_bits(tensor.data_type)
    return -(-bits // 8)


def tensor_bits(data_type: int) -> int:
    """Bits of one element of a tensor data type that is not a string."""
    name = TensorProto.DataType.Name(data_type)
    if name in ("INT2", "UINT2"):
        return 2
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8


def _check_external(
    tensor: TensorProto, expected: int, place: str, path: Path, sizes: dict[Path, int]
) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or expected)
    except ValueError as error:
        raise InputError(
            f"{place} has an unreadable offset or length of its external data", where=str(path)
        ) from error
    file = data_file(location, place, path)
    if file not in sizes:
        sizes[file] = file.stat().st_size
    if tensor.data_type == TensorProto.STRING:
        raise InputError(f"{place} keeps strings in external data", where=str(path))
    if offset < 0 or length != expected or offset + expected > sizes[file]:
        raise InputError(
            f"{place} needs {expected:,} bytes from offset {offset:,} of {location}, "
            f"which has {sizes[file]:,} (the model says {length:,})",
            where=str(path),
            fix="the data file is too short or belongs to another model: copy both files again",
        )


def data_file(location: str, place: str, path: Path) -> Path:
    """The external data file at `location`, which has to lie in the model's folder."""

    def refused(reason: str) -> InputError:
        return InputError(
            f"{place} keeps its data in {location!r}, {reason}",
            where=str(path),
            fix="keep data files in the model's own folder (no links, no `..`, no absolute path)",
        )

    pure = PurePosixPath(location)
    if not location or "\0" in location:
        raise refused("which is not a file name")
    if pure.is_absolute() or PureWindowsPath(location).drive:
        raise refused("an absolute path")
    if ".." in pure.parts:
        raise refused("which leaves the model's folder")
    folder = path.parent.resolve()
    file = path.parent / pure
    if not file.resolve().is_relative_to(folder):
        raise refused("a link that leaves the model's folder")
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise InputError(
            f"{place} keeps its data in {location!r}, which cannot be read: {error.strerror}",
            where=str(path),
            fix="copy the data file beside the model, under this name",
        ) from error
    if not stat.S_ISREG(mode):
        raise refused("which is not a regular file")
    return file
