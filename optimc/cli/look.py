"""`optimc init` and `optimc inspect`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optimc.cli.run import printable
from optimc.core.targets import Engine


def run_init(model: Path, out: Path, *, force: bool) -> int:
    """Writes a recipe for `model` and says what to do next."""
    from optimc.pipeline.initialize import write_initial_recipe

    write_initial_recipe(model, out, force=force)
    print(f"wrote {out}\nnext: look through it, then  optimc build {out}", file=sys.stderr)
    return 0


def run_inspect(path: Path, *, json_output: bool) -> int:
    """Prints what a model is made of."""
    from optimc.pipeline.inspection import inspect_onnx
    from optimc.pipeline.torch_looks import exported_onnx, is_torch

    folder = path if (path / Engine.MANIFEST).is_file() else None
    manifest: dict[str, Any] | None = None
    if folder is not None:
        manifest = dict(Engine.read(folder).manifest)
        path = folder / str(manifest["main"])
    if folder is None and is_torch(path):
        with exported_onnx(path) as exported:
            found = asdict(inspect_onnx(exported))
    else:
        found = asdict(inspect_onnx(path)) if path.suffix != ".xml" else {}
    if json_output:
        print(json.dumps({"manifest": manifest, **found}, indent=2, default=str))
        return 0
    lines = [*_manifest_lines(manifest or {}), *_model_lines(path, found)]
    print(printable("\n".join(lines)))
    return 0


def _manifest_lines(manifest: dict[str, Any]) -> Iterator[str]:
    if not manifest:
        return
    yield f"engine      {manifest['runtime']}, {manifest['main']}"
    yield f"identity    {manifest['identity']['sha256']} ({manifest['identity']['of']})"
    for name, file in manifest["files"].items():
        yield f"  {name:<20} {file['bytes'] / 1e6:10.3f} MB"


def _model_lines(path: Path, found: dict[str, Any]) -> Iterator[str]:
    if not found:
        return
    opsets = ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items())
    yield f"model       {path}"
    yield f"opsets      {opsets}; IR version {found['ir_version']}"
    for side in ("inputs", "outputs"):
        for spec in found["signature"][side]:
            dims = "?" if spec["shape"] is None else ", ".join(map(str, spec["shape"]))
            yield f"{side[:-1]:<12}{spec['name']}: {spec['dtype']}[{dims}]"
    stats = found["stats"]
    yield f"nodes       {stats['nodes']}"
    yield f"parameters  {stats['parameters']:,} ({stats['bytes'] / 1e6:,.2f} MB)"
    for dtype, size in found["weights"].items():
        yield f"  {dtype:<10}{size / 1e6:10.3f} MB"
    yield (
        f"MACs        {found['macs']:,} ({2 * found['macs'] / 1e6:,.1f} MFLOPs), symbolic dims at 1"
    )
    if found["unknown_macs"]:
        yield f"  not counted, shapes unknown: {', '.join(found['unknown_macs'][:5])}"
    yield "operators   " + ", ".join(f"{n} {name}" for name, n in found["operators"].items())
    quantized = ", ".join(f"{n} {name}" for name, n in found["quantization"].items())
    yield f"quantized   {quantized or 'no'}"
