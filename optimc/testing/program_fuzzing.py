"""Bad `.pt2` files by the thousand, for `optimc.testing.input_fuzzing`.

Each seed spoils an archive that torch wrote: its bytes, its members, the JSON in it, or with code
that torch would run while it reads. What such code leaves behind is a find.
"""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.testing.spoiling import spoil_bytes, spoil_tree

if TYPE_CHECKING:
    from optimc.testing.bad_inputs import Workshop

MARK = "code-ran"
"""The file or folder that code in an archive leaves in the folder of the workshop."""

NAMES = ("/etc/x", "../x", "m/../../x", "m//x", "m/\x1b[31m", "M/MODELS/MODEL.JSON", "x" * 999)
Members = dict[str, bytes]

PROGRAM = "m/models/model.json"
WEIGHTS = "m/data/weights/model_weights_config.json"
CONSTANTS = "m/data/constants/model_constants_config.json"

RECIPE = """\
model: {exported: m.pt2}
variants: {fp32: []}
targets: {ort: {runtime: onnxruntime, threads: 1}}
"""
BUILD = "build recipe.yaml -o out --no-measure --no-cache"


@cache
def program() -> bytes:
    """A small program with a dynamic dim, as `torch.export.save` writes it; its root is ``m``."""
    import torch

    class Net(torch.nn.Module):
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)
            self.register_buffer("scale", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.linear(x)) * self.scale

    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(Net(), (torch.ones(2, 4),), dynamic_shapes=({0: batch},))
    torch.onnx.export(exported, dynamo=True, verbose=False)  # imports what would count as time
    file = io.BytesIO()
    torch.export.save(exported, file)
    members = read_members(file.getvalue())
    root = next(iter(members)).partition("/")[0]
    return written({"m" + name.removeprefix(root): content for name, content in members.items()})


def read_members(archive: bytes) -> Members:
    """The members of a zip archive by their names."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def written(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of `members`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file.getvalue()


def spoilt_program(shop: Workshop, rng: random.Random) -> str:
    """Writes ``m.pt2`` and a recipe for it into the workshop; the command to run."""
    path = shop.folder / "m.pt2"
    path.write_bytes(program())
    shop.recipe.write_text(RECIPE, encoding="utf-8")
    change = rng.randrange(10)
    if change == 0:
        path.write_bytes(program()[: rng.randrange(len(program()))])
    elif change <= 2:
        spoil_bytes(path, rng)
    else:
        members = read_members(program())
        compression = zipfile.ZIP_STORED
        if change <= 4:
            compression = _other_members(members, rng)
        elif change <= 7:
            _other_json(members, rng)
        else:
            ATTACKS[rng.choice(sorted(ATTACKS))](members, shop.folder)
        path.write_bytes(written(members, compression))
    return rng.choice(["inspect m.pt2"] * 4 + ["check recipe.yaml", BUILD])


def _other_members(members: Members, rng: random.Random) -> int:
    """Another set of members, other names or contents, or a bomb; how they are compressed."""
    name = rng.choice(sorted(members))
    change = rng.randrange(6)
    if change == 0:
        del members[name]
    elif change == 1:
        new = (
            "/etc/x",
            "../x",
            "m/../../x",
            "m//x",
            "m/\x1b[31m",
            "M/MODELS/MODEL.JSON",
            "x" * 999,
        )
        members[rng.choice(new)] = members.pop(name)
    elif change == 2:
        other = rng.choice(sorted(members))
        members[name], members[other] = members[other], members[name]
    elif change == 3:
        members[name] = rng.choice([b"", b"[" * 100_000, b"\x80\x04.", b"0", b"\x00" * 10])
    elif change == 4:
        members[rng.choice(["m/x", name])] = b"\x00" * 30_000_000
        return zipfile.ZIP_DEFLATED
    else:
        members["m/models/other"] = members[PROGRAM]
    return zipfile.ZIP_STORED


def _other_json(members: Members, rng: random.Random) -> None:
    name = rng.choice([PROGRAM, PROGRAM, PROGRAM, WEIGHTS, CONSTANTS])
    tree = json.loads(members[name])
    for _ in range(rng.randint(1, 3)):
        spoil_tree(tree, rng)
    members[name] = json.dumps(tree).encode()


_PICKLE = b"cposix\nmkdir\n(V%s\ntR."
"""`os.mkdir(MARK)`, as pickle's first protocol writes it."""


class _Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _saved(content: Any) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _code(folder: Path) -> str:
    return f"__import__('pathlib').Path('{folder / MARK}').touch()"


def _in_program(members: Members, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(members[PROGRAM])
    change(tree)
    members[PROGRAM] = json.dumps(tree).encode()


def _in_samples(members: Members, folder: Path) -> None:
    members["m/data/sample_inputs/model.pt"] = _saved(_Payload(folder / MARK))


def _in_weight(members: Members, folder: Path) -> None:
    config = json.loads(members[WEIGHTS])
    config["config"]["scale"]["use_pickle"] = True
    members[WEIGHTS] = json.dumps(config).encode()
    name = config["config"]["scale"]["path_name"]
    members[f"m/data/weights/{name}"] = _saved(_Payload(folder / MARK))


def _in_old_weights(members: Members, folder: Path) -> None:
    members["m/data/weights/model.pt"] = _saved({"scale": _Payload(folder / MARK)})


def _in_constant(members: Members, folder: Path) -> None:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    members[CONSTANTS] = json.dumps({"config": {"k": {**entry, "tensor_meta": None}}}).encode()
    members["m/data/constants/opaque_obj_0"] = _PICKLE % str(folder / MARK).encode()


def _in_size(members: Members, folder: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        sizes = tree["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = _code(folder)

    _in_program(members, change)


def _in_guard(members: Members, folder: Path) -> None:
    _in_program(members, lambda tree: tree.update(guards_code=[f"{_code(folder)} is None"]))


def _in_argument(members: Members, folder: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        signature = tree["graph_module"]["module_call_graph"][0]["signature"]
        signature["forward_arg_names"] = [f"x, y={_code(folder)}"]

    _in_program(members, change)


def _in_operator(members: Members, folder: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        node = tree["graph_module"]["graph"]["nodes"][1]
        node["target"] = "torch.os.mkdir"
        node["inputs"] = [{"name": "", "arg": {"as_string": str(folder / MARK)}, "kind": 1}]

    _in_program(members, change)


def _in_library(members: Members, folder: Path) -> None:
    members["m/data/aotinductor/model/x.so"] = b"\x7fELF"


ATTACKS: dict[str, Callable[[Members, Path], None]] = {
    "samples": _in_samples,
    "weight": _in_weight,
    "old weights": _in_old_weights,
    "constant": _in_constant,
    "size": _in_size,
    "guard": _in_guard,
    "argument": _in_argument,
    "operator": _in_operator,
    "library": _in_library,
}
"""By name: puts code into the members of `program` that leaves `MARK` in the folder if it runs."""
