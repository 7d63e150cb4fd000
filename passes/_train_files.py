"""The files that decide what a training run gives, beside its options and its data."""

from __future__ import annotations

from pathlib import Path


def onnx_files(path: Path) -> list[Path]:
    """An ONNX file and those that hold its weights; the file alone where it cannot be read."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (OSError, DecodeError, RecursionError, ValueError):
        return [path]  # opening the teacher says it better
    locations = {
        entry.value
        for tensor in _get_all_tensors(model)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = (path.parent / location for location in sorted(locations))
    return [path, *(file for file in files if file.is_file())]
