"""The folder that a reduction leaves: a model, its inputs, and a script that shows the fault."""

from __future__ import annotations

import json
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from optimc.core.files import atomic_folder

if TYPE_CHECKING:
    from optimc.pipeline.reduce.candidates import Candidate

MODEL, INPUTS, SCRIPT, RECORD = "model.onnx", "inputs.npz", "reproduce.py", "reduced.json"
_MOST_SCRIPT_BYTES = 1_000_000

_HEAD = '''\
"""$title

model.onnx has $nodes node(s): $operators. inputs.npz holds an array for each input.
Run it anywhere: python reproduce.py. Exit code 1: the fault shows; 0: it does not.
$origin
"""

import pathlib
import sys

import numpy as np
import onnx
$imports
HERE = pathlib.Path(__file__).resolve().parent
MODEL = str(HERE / "model.onnx")
INPUTS = str(HERE / "inputs.npz")

model = onnx.load(MODEL)
onnx.checker.check_model(model)
feeds = dict(np.load(INPUTS, allow_pickle=False))
print(onnx.printer.to_text(model.graph)[:4000])
print("inputs:", {name: (str(array.dtype), array.shape) for name, array in feeds.items()})
'''

_COMMAND = """
# Words that are files of this folder stand as pathlib.Path.
COMMAND = $words
places = {"{}": MODEL, "{inputs}": INPUTS}
words = []
for word in map(str, COMMAND):
    for place, file in places.items():
        word = word.replace(place, file)
    words.append(word)
environment = {**os.environ, "OPTIMC_MODEL": MODEL, "OPTIMC_INPUTS": INPUTS}
code = subprocess.run(words, env=environment, check=False).returncode
shown = code not in (0, 125, 126, 127)
print("exit code", code, "(the fault shows)" if shown else "(the fault does not show)")
sys.exit(int(shown))
"""

_REFERENCE = """
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
expected = dict(zip(names, session.run(names, feeds)))
"""

_ONNXRUNTIME = """
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
actual = dict(zip(names, session.run(names, feeds)))
"""

_OPENVINO = """
config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
compiled = openvino.Core().compile_model(MODEL, "CPU", config)
request = compiled.create_infer_request()
request.start_async(feeds)
request.wait()
actual = {name: request.get_tensor(name).data for name in names}
"""

_PASS = """
place = tempfile.TemporaryDirectory()
after = pathlib.Path(place.name) / "after.onnx"
spec = target_class($runtime)(runtime=$runtime).spec()
run_on_file(pass_class($pass_name)(), pathlib.Path(MODEL), after, after.parent, spec)
session = onnxruntime.InferenceSession(str(after), options, providers=["CPUExecutionProvider"])
actual = dict(zip(names, session.run(names, feeds)))
"""

_COMPARE = """
worst = 0.0
for name in names:
    a, b = np.asarray(expected[name], np.float64), np.asarray(actual[name], np.float64)
    error = float("inf") if a.shape != b.shape else float(np.abs(a - b).max(initial=0.0))
    scale = float(np.abs(a).max(initial=0.0))
    relative = error / scale if scale else (float("inf") if error else 0.0)
    print(f"{name}: differs by {error:.6g}, {relative:.3g} of its scale")
    worst = max(worst, relative) if relative == relative else float("inf")
sys.exit(int(worst > $bound))
"""


@dataclass(frozen=True)
class How:
    """How a script shows the fault: what it imports, and its lines behind the head."""

    imports: str
    body: str
    needs: str
    files: tuple[Path, ...] = ()
    """What is copied into the folder."""


def by_command(words: tuple[str, ...]) -> How:
    """The user's own command; scripts that it names are copied into the folder."""
    files = {word: Path(word) for word in words[1:] if _is_script(Path(word))}
    shown = [f"HERE / {files[w].name!r}" if w in files else repr(w) for w in words]
    body = Template(_COMMAND).substitute(words=f"[{', '.join(shown)}]")
    needs = f"onnx, numpy and: {shlex.join(words)}"
    return How("import os\nimport subprocess\n", body, needs, tuple(files.values()))


def _is_script(path: Path) -> bool:
    """Whether a word of a command is a small file, such as check.py."""
    try:
        return path.is_file() and path.stat().st_size <= _MOST_SCRIPT_BYTES
    except (OSError, ValueError):
        return False


def by_runtime(runtime: str, bound: float) -> How:
    """A runtime against ONNX Runtime without its graph optimizations."""
    compare = Template(_COMPARE).substitute(bound=repr(bound))
    if runtime == "openvino":
        imports = "import onnxruntime\nimport openvino\n"
        return How(imports, _REFERENCE + _OPENVINO + compare, "onnx, onnxruntime, openvino")
    body = _REFERENCE + _ONNXRUNTIME + compare
    return How("import onnxruntime\n", body, "onnx, onnxruntime")


def by_pass(name: str, runtime: str, bound: float) -> How:
    """A pass of optimc, or of a plugin."""
    imports = (
        "import onnxruntime\nimport tempfile\n\n"
        "from optimc.core.registry import pass_class, target_class\n"
        "from optimc.pipeline.reduce.onnx_pass_runs import run_on_file\n"
    )
    run = Template(_PASS).substitute(runtime=repr(runtime), pass_name=repr(name))
    body = _REFERENCE + run
    body += Template(_COMPARE).substitute(bound=repr(bound))
    return How(imports, body, "onnx, onnxruntime and optimc")


def write_reproduction(
    folder: Path, candidate: Candidate, how: How, title: str, record: Mapping[str, Any]
) -> None:
    """Writes the folder, all of it or nothing."""
    import onnx

    graph = onnx.load(str(candidate.model)).graph
    counts = Counter(node.op_type for node in graph.node)
    operators = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    head = Template(_HEAD).substitute(
        title=_safe(title),
        nodes=len(graph.node),
        operators=_safe(operators),
        origin=_safe(f"Reduced from {record['model']} ({record['nodes'][0]} nodes)."),
        imports=how.imports,
    )
    with atomic_folder(folder) as temporary:
        shutil.copyfile(candidate.model, temporary / MODEL)
        shutil.copyfile(candidate.inputs, temporary / INPUTS)
        for file in how.files:
            shutil.copyfile(file, temporary / file.name)
        (temporary / SCRIPT).write_text(head + how.body, encoding="utf-8")
        text = json.dumps(dict(record), indent=2)
        (temporary / RECORD).write_text(text + "\n", encoding="utf-8")


def _safe(text: str) -> str:
    """Text for a doc string in single quotes of ours: no quote or escape can end it."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown.replace("\\", "/").replace('"""', "'''")
