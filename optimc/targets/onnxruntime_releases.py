"""What older releases of ONNX Runtime can read: the opset and IR version of the ONNX in each.

Source: ONNX Runtime's compatibility table (docs/Versioning.md) names the ONNX release that each
release was built with, and ONNX's own table (`onnx.helper.VERSION_TABLE`) what that one knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.core.errors import CellError

if TYPE_CHECKING:
    from pathlib import Path

ONNX_OF_RELEASE = {
    "1.10": "1.10.1",
    "1.11": "1.11.0",
    "1.12": "1.12.0",
    "1.13": "1.12.0",
    "1.14": "1.13.0",
    "1.15": "1.14.0",
    "1.16": "1.14.1",
    "1.17": "1.15.0",
    "1.18": "1.16.0",
    "1.19": "1.16.1",
    "1.20": "1.16.1",
    "1.21": "1.17.0",
    "1.22": "1.17.0",
}
"""By release of ONNX Runtime."""


def make_readable(path: Path, release: str) -> str | None:
    """Lowers the IR version of the ONNX file at `path` to what `release` reads.

    Returns a note where it changed something. Raises CellError where the model's opset is newer
    than the release: converting operators down is not attempted.
    """
    import onnx

    proto = onnx.load(str(path), load_external_data=False)
    table = {row[0]: row for row in onnx.helper.VERSION_TABLE}
    _, ir_version, opset, *_ = table[ONNX_OF_RELEASE[release]]
    has = max((entry.version for entry in proto.opset_import if not entry.domain), default=1)
    if has > opset:
        raise CellError(
            f"the model has opset {has}, and ONNX Runtime {release} reads up to {opset}",
            fix=f"export it with opset {opset}, or raise portable.oldest_runtime",
        )
    if proto.ir_version <= ir_version:
        return None
    was, proto.ir_version = proto.ir_version, ir_version
    onnx.save(proto, str(path))
    return f"IR version {was} was written as {ir_version}, for ONNX Runtime {release} and newer"
