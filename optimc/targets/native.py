"""What runtimes throw, turned into one message: no source paths, no signatures, the node's name."""

from __future__ import annotations

import re

from optimc.core.errors import CellError

_LENGTH = 400
_NOISE = (
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ",
    r"Exception from [^\s:]+:\d+:",
    r"Caught exception:",
    # ONNX Runtime: file, line and the C++ function that threw.
    r"/\S+\.(?:cc|h):\d+ (?:\S[^()]*\([^()]*\)(?: const)? )?",
    r"Check '[^\n]*?' failed at [^\s:]+:\d+:",
    r"Non-zero status code returned while running \w+ node\. Name:'[^']*' Status Message: ",
)
_NODE = (
    r"Name:'([^']+)'",
    r"[Nn]ode with name '([^']+)'",
    r"with friendly_name '([^']+)'",
    r'In Node, \("([^"]+)"',
    r"Node(?:\:| )?\(([^)]+)\)",
    r"ONNX node '<Node\([^)]*\): ([^>]+)>'",
)
_OUT_OF_MEMORY = (
    r"bad_alloc",
    r"[Ff]ailed to allocate",
    r"[Cc]annot allocate memory",
    r"[Cc]ould not allocate",
)


def refusal(error: Exception, runtime: str, doing: str) -> CellError:
    """The error for the exception `error` that `runtime` threw while `doing` something.

    Raises MemoryError instead where the runtime could not get memory: a worker then ends and says
    that it met its memory limit.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or any(re.search(p, text) for p in _OUT_OF_MEMORY):
        raise MemoryError(text) from error
    node = next((match[1] for p in _NODE if (match := re.search(p, text))), None)
    return CellError(
        f"{runtime} fails while {doing}: {_trimmed(text)}",
        where=f"node `{node}`" if node else None,
        fix="take another target for this model, or replace the node that it names",
    )


def _trimmed(text: str) -> str:
    for pattern in _NOISE:
        text = re.sub(pattern, " ", text)
    text = " ".join(text.split())
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."
