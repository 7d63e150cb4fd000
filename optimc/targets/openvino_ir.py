"""Makes the names in OpenVINO's IR the same in every build.

OpenVINO numbers the nodes that it makes itself over the whole process (``Constant_1234``), so the
file depends on what was built before. Nothing refers to these names; names from the ONNX graph,
which profiles are read by, stay as they are.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

_LAYER = re.compile(r'(<layer id="\d+" name=")([^"]*)(" type="(\w+)")')


def number_names(xml: Path, known: frozenset[str]) -> None:
    """Rewrites `xml` in place: generated layer names become ``<type>.<n>``, in the file's order.

    `known` holds the names of the ONNX graph; a name that continues one of them behind a slash is
    derived from it and stays too.
    """
    count = 0

    def renamed(match: re.Match[str]) -> str:
        nonlocal count
        name = html.unescape(match[2])
        if name in known or name.split("/")[0] in known or not re.search(r"_\d+(/|$)", name):
            return match[0]
        count += 1
        return f"{match[1]}{match[4]}.{count}{match[3]}"

    text = xml.read_text(encoding="utf-8")
    xml.write_text(_LAYER.sub(renamed, text), encoding="utf-8")


def onnx_names(path: Path) -> frozenset[str]:
    """The names of all nodes and values of the ONNX file, subgraphs and functions included."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    names: set[str] = set()
    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while bodies:
        body = bodies.pop()
        if isinstance(body, onnx.GraphProto):
            names.update(tensor.name for tensor in body.initializer)
            names.update(value.name for value in (*body.input, *body.output))
        for node in body.node:
            names.update((node.name, *node.output))
            for attribute in node.attribute:
                bodies += [graph for graph in (attribute.g, *attribute.graphs) if graph.node]
    return frozenset(names - {""})
