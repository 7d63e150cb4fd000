"""`optimc inspect --quantization`: a table of a quantized model's layers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optimc.cli.run import printable
from optimc.core.errors import InputError
from optimc.core.targets import Engine

_SHOWN = 3
_HEAD = ("layer", "operator", "tensor", "type", "granularity", "range", "zero point", "SQNR dB")


def run_quantization(
    path: Path, targets: Sequence[str], feeds: Path | None, *, json_output: bool
) -> int:
    """Prints layers, their tensors, and what the lint of each target finds."""
    from optimc.pipeline.quantized.report import quantization_report

    if (path / Engine.MANIFEST).is_file():
        path = path / str(Engine.read(path).manifest["main"])
    if path.suffix == ".xml":
        raise InputError(
            "this is OpenVINO's form, which holds FakeQuantize and no types",
            where=str(path),
            fix="name the ONNX file; for NNCF quantize the ONNX model",
        )
    found = quantization_report(path, targets, feeds)
    if json_output:
        print(json.dumps({"model": str(path), **found}, indent=2))
    else:
        print(printable("\n".join(_lines(found))))
    return 0


def _lines(found: dict[str, Any]) -> Iterator[str]:
    rows = [_HEAD, *_rows(found["layers"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    counts = [
        f"{counts['quantized']} {kind}"
        + (f" ({counts['float']} more in float)" if counts["float"] else "")
        for kind, counts in found["types"].items()
    ]
    yield f"quantized    {', '.join(counts)}"
    yield "SQNR         of weights: of the floats where the file holds them, else marked ~, as"
    yield f"             rounding alone would give; activations {found['activations']}"
    for target, findings in found["findings"].items():
        told = f"{len(findings)} findings" if len(findings) != 1 else "1 finding"
        yield f"lint         {target}: {told if findings else 'obeys the rules of this target'}"
        yield from _findings(findings)


def _findings(findings: list[dict[str, str]]) -> Iterator[str]:
    """The first findings of each rule, and how many more there are."""
    counts = Counter(finding["rule"] for finding in findings)
    for rule, count in counts.items():
        shown = [finding for finding in findings if finding["rule"] == rule][:_SHOWN]
        for finding in shown:
            yield f"  {rule:<20} {finding['layer']}: {finding['message']}"
        if count > _SHOWN:
            yield f"  {rule:<20} and {count - _SHOWN} more; --json lists them all"


def _rows(layers: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for layer in layers:
        first = (layer["name"], layer["operator"])
        for tensor in layer["tensors"]:
            yield (*first, *_cells(tensor))
            first = ("", "")


def _cells(tensor: dict[str, Any]) -> tuple[str, ...]:
    span, zero = tensor["range"], tensor["zero_point"]
    granularity = tensor["granularity"]
    if granularity == "channel":
        granularity = f"{tensor['channels']} channels, axis {tensor['axis']}"
    return (
        f"{tensor['role']} {tensor['name']}",
        tensor["dtype"],
        granularity,
        "-" if span is None else f"{span[0]:.4g} to {span[1]:.4g}",
        "-" if zero is None else str(zero[0]) if zero[0] == zero[1] else f"{zero[0]} to {zero[1]}",
        _sqnr(tensor),
    )


def _sqnr(tensor: dict[str, Any]) -> str:
    value = tensor.get("sqnr_db")
    if value is None:
        return "-"
    text = f"{value:.1f}" if tensor.get("sqnr_is") == "measured" else f"~{value:.1f}"
    clipped = tensor.get("clipped")
    return f"{text}, {clipped:.2%} clipped" if clipped else text
