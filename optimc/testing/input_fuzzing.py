"""Bad inputs by the thousand: recipes, ONNX files, archives, tokenizers, plug-ins' metadata.

Each seed spoils something that builds, by its structure (a key, a field, a header, an entry point)
or by its bytes, and runs the command line in this process. Allowed is one message with exit code 2
or 3, or success; not allowed are tracebacks, bugs admitted, more than a limit of time or memory.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.testing.bad_inputs import RECIPE, Workshop, run_here
from optimc.testing.fuzzing import Outcome
from optimc.testing.inline_workers import inline_workers
from optimc.testing.program_fuzzing import MARK, spoilt_program
from optimc.testing.spoiling import spoil_bytes, spoil_tree

if TYPE_CHECKING:
    import onnx

SECONDS = 10.0
"""An input that computes for longer is a find, however busy the machine is. What waits for ever is
found by the limit of who runs this."""

WEIRD = (
    *("-1", "0", "1e999", ".nan", "null", "~", "[]", "{}", "''", "true", "0x7fffffffffffffff"),
    *('"\\e[31m"', '"::error::x"', '"<script>"', "!!python/object:os.system x", "&a [*a]", "*b"),
    *("99999999999999999999", "${HOME}", "${", "{a: {b: {c: 1}}}", "a: b", "'", '"', "[[[[", "%"),
    *('"../../etc/passwd"', '"/dev/zero"', '"/dev/stdin"', "\\", "\u202e", "!!binary x", "<<: 1"),
    *('"' + "x" * 5000 + '"', "[" * 300, "{a: " * 200, "2026-01-01", "1_000", "0o17", "1:30"),
)


Main = Callable[[list[str]], int]
Kind = Callable[[Workshop, random.Random], str | None]


def _one_message(text: str) -> bool:
    """Whether stderr holds one error, ours or typer's."""
    return len(re.findall(r"^error: ", text, re.MULTILINE)) == 1 or "Error" in text


def fuzz_input(
    seed: int, recipes: Path, main: Main, kinds: Mapping[str, Kind] | None = None
) -> Outcome:
    """Spoils one input and runs `optimc check`, `inspect` or `build` on it.

    `recipes` holds the quickstart, `main` is `optimc.cli.main`, `kinds` are `KINDS` where nobody
    says others.
    """
    kinds = kinds or KINDS
    rng = random.Random(seed)
    kind = rng.choice(sorted(kinds))
    outcome = Outcome(seed, 0, [kind])
    with tempfile.TemporaryDirectory(prefix="optimc-fuzz-") as name:
        shop = Workshop.make(Path(name) / "shop", recipes)
        command = kinds[kind](shop, rng) or "check recipe.yaml"
        started = time.process_time()
        done = _run(shop, command, main)
        seconds = time.process_time() - started
        if (shop.folder / MARK).exists():
            outcome.finds.append(f"{kind} `{command}`: code in the file ran")
    if done is None or done.traceback or done.code not in (0, 2, 3, 4, 5):
        text = "killed by an exception" if done is None else done.err[-600:]
        outcome.finds.append(f"{kind} `{command}`: {text}")
    elif done.code == 2 and not _one_message(done.err):
        outcome.finds.append(f"{kind} `{command}`: not one message: {done.err[-600:]}")
    if done is not None and any(c in done.err for c in ("\x1b[31m", "\x07")):
        outcome.finds.append(f"{kind}: control characters reach the terminal")
    if seconds > SECONDS:
        outcome.finds.append(f"{kind} `{command}` took {seconds:.1f} s")
    outcome.verdicts[f"{kind} exit {done.code if done else None}"] = 1
    return outcome


def _run(shop: Workshop, command: str, main: Main) -> Any:
    with inline_workers(), plugged(shop.folder / "plugins"):
        try:
            return run_here(main, command, shop.folder)
        except SystemExit:
            return None


@contextmanager
def plugged(folder: Path) -> Iterator[None]:
    """While the block runs, the distributions in `folder` are installed, so to say."""
    from optimc.core import registry

    if not folder.exists():
        yield
        return
    caches = (registry._plugins, registry._load)
    sys.path.insert(0, str(folder))
    try:
        for known in caches:
            known.cache_clear()
        yield
    finally:
        sys.path.remove(str(folder))
        for known in caches:
            known.cache_clear()


def _recipe(shop: Workshop, rng: random.Random) -> None:
    """One to three changes of the text, by lines, scalars, keys or characters."""
    text = RECIPE
    for _ in range(rng.randint(1, 3)):
        text = rng.choice(_TEXT_CHANGES)(text, rng)
    shop.recipe.write_text(text, encoding="utf-8", errors="surrogatepass")


def _lines(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    index = rng.randrange(len(lines))
    change = rng.choice(["drop", "twice", "indent", "swap"])
    if change == "drop":
        del lines[index]
    elif change == "twice":
        lines.insert(index, lines[index])
    elif change == "indent":
        lines[index] = " " * rng.randint(1, 4) + lines[index]
    else:
        other = rng.randrange(len(lines))
        lines[index], lines[other] = lines[other], lines[index]
    return "".join(lines)


def _scalars(text: str, rng: random.Random) -> str:
    """Something else in the place of a word."""
    words = [word for word in dict.fromkeys(text.replace(",", " ").split()) if len(word) > 1]
    return text.replace(rng.choice(words or [text]), rng.choice(WEIRD), 1) if text else "x"


def _characters(text: str, rng: random.Random) -> str:
    place = rng.randrange(len(text) + 1)
    cut = rng.randint(0, 3)
    added = "".join(rng.choice("{}[]:,#&*!|>'\"%@`\t\n \x00\x85\ufeffé-?") for _ in range(cut))
    return text[:place] + added + text[place + rng.randint(0, 3) :]


def _truncated(text: str, rng: random.Random) -> str:
    return text[: rng.randrange(len(text) + 1)]


_TEXT_CHANGES = (_lines, _scalars, _scalars, _characters, _truncated)


BUILD = "build recipe.yaml -o out --no-measure --no-cache --variant fp32"


def _model_bytes(shop: Workshop, rng: random.Random) -> str:
    spoil_bytes(shop.model, rng)
    return rng.choice([BUILD, "check recipe.yaml", "inspect digits.onnx"])


def _model_fields(shop: Workshop, rng: random.Random) -> str:
    """One to three changes of the message, each valid protobuf."""
    import onnx

    proto = onnx.load(shop.model)
    for _ in range(rng.randint(1, 3)):
        rng.choice(_FIELD_CHANGES)(proto, rng)
    shop.model.write_bytes(proto.SerializeToString())
    return rng.choice([BUILD, BUILD, "check recipe.yaml", "inspect digits.onnx"])


NUMBERS = (-1, 0, 1, 3, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))
NAMES = ("", "input", "logits", "\x1b[31mred", "a/../b", "<b>", "::error::x", "x" * 5000, "\x00")


def _field_node(proto: onnx.ModelProto, rng: random.Random) -> None:
    nodes = proto.graph.node
    if not nodes:
        return
    node = rng.choice(nodes)
    change = rng.randint(0, 6)
    if change == 0:
        nodes.remove(node)
    elif change == 1:
        nodes.add().CopyFrom(node)
    elif change == 2:
        names = node.input if rng.random() < 0.5 and node.input else node.output
        names[rng.randrange(len(names))] = rng.choice([*NAMES, *rng.choice(nodes).output])
    elif change == 3:
        node.op_type = rng.choice(["Relu", "Conv", "If", "Loop", "NoSuch", "", "Constant", "Gemm"])
    elif change == 4:
        node.domain = rng.choice(["com.microsoft", "ai.onnx.ml", "x", "\x1b[31m"])
    elif change == 5:
        node.name = rng.choice(NAMES)
    elif node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.type = rng.randrange(0, 15)
        attribute.i = rng.choice(NUMBERS)
        attribute.ints.extend([rng.choice(NUMBERS)])


def _field_tensor(proto: onnx.ModelProto, rng: random.Random) -> None:
    if not proto.graph.initializer:
        return
    tensor = rng.choice(proto.graph.initializer)
    change = rng.randint(0, 5)
    if change == 0:
        tensor.data_type = rng.randrange(0, 40)
    elif change == 1:
        tensor.dims.append(rng.choice(NUMBERS))
    elif change == 2 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif change == 3:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif change == 4:
        tensor.name = rng.choice([*NAMES, rng.choice(proto.graph.initializer).name])
    else:
        tensor.data_location = 1
        place = rng.choice(["/dev/zero", "/etc/passwd", "../x", "recipe.yaml", "", ".", "a\x00b"])
        tensor.external_data.add(key="location", value=place)
        for key in ("offset", "length"):
            tensor.external_data.add(key=key, value=str(rng.choice([*NUMBERS, "x"])))


def _field_interface(proto: onnx.ModelProto, rng: random.Random) -> None:
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    if not values:
        return
    value = rng.choice(values)
    change = rng.randint(0, 4)
    shape = value.type.tensor_type.shape
    if change == 0:
        value.name = rng.choice(NAMES)
    elif change == 1:
        value.type.tensor_type.elem_type = rng.randrange(0, 40)
    elif change == 2 and shape.dim:
        rng.choice(shape.dim).dim_value = rng.choice(NUMBERS)
    elif change == 3 and shape.dim:
        rng.choice(shape.dim).dim_param = rng.choice([*NAMES, "batch", "2*batch+1"])
    else:
        value.ClearField("type")


def _field_model(proto: onnx.ModelProto, rng: random.Random) -> None:
    change = rng.randint(0, 4)
    if change == 0:
        proto.ir_version = rng.choice(NUMBERS)
    elif change == 1 and proto.opset_import:
        proto.opset_import[0].version = rng.choice([*NUMBERS, 6, 7, 13, 99])
    elif change == 2:
        del proto.opset_import[:]
    elif change == 3:
        proto.opset_import.add(domain=rng.choice(["", "x", "\x1b[31m"]), version=1)
    else:
        function = proto.functions.add(name="f", domain="x")
        function.node.add(op_type="f", domain="x")
        proto.graph.node.add(op_type="f", domain="x")


_FIELD_CHANGES = (_field_node, _field_node, _field_tensor, _field_interface, _field_model)


def _archive_bytes(shop: Workshop, rng: random.Random) -> None:
    spoil_bytes(shop.data(rng.choice(["calibration", "evaluation"])), rng)


def _archive_members(shop: Workshop, rng: random.Random) -> None:
    """Another header, dtype, name or number of members, in a whole zip file."""
    path = shop.data("calibration")
    with zipfile.ZipFile(path) as archive:
        members = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    change = rng.randint(0, 3)
    if change == 0:
        header = members[name].find(b"}")
        place = rng.randrange(max(header, 1))
        members[name][place : place + 1] = bytes([rng.randrange(32, 127)])
    elif change == 1:
        new = rng.choice(["../x.npy", "/x.npy", "images", "images.npy/", "\x1b[31m.npy", "a.exe"])
        members[new] = members.pop(name)
    elif change == 2:
        kinds = (b"|u1", b"<f4", b"|O8", b"<U9", b"|V8", b"<c8", b"<M8", b"|S1", b"<i8", b">f8")
        members[name] = members[name].replace(b"|u1", rng.choice(kinds), 1)
    else:
        sizes = (b"(-1, ", b"(0, ", b"(99999999999, ", b"(True, ", b"(1, 1, 1, ", b"(2.5, ")
        members[name] = members[name].replace(b"(200, ", rng.choice(sizes), 1)
    with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as out:
        for member, content in members.items():
            out.writestr(member, bytes(content))


TEXT_RECIPE = """\
model: {onnx: sentences.onnx}
dims: {batch: {min: 1, typical: 1, max: 4}, length: {min: 2, typical: 4, max: 16}}
data:
  calibration: {tsv: lines.tsv, tokenizer: words, text: 0}
variants: {fp32: []}
targets: {ort: {runtime: onnxruntime}}
"""


def _tokenizer(shop: Workshop, rng: random.Random) -> None:
    """A tokenizer's file: other values in its tree, or other bytes; or other rows."""
    from optimc.testing.data_files import write_lines, write_tokenizer
    from optimc.testing.data_models import write_sentence_model

    write_sentence_model(shop.folder / "sentences.onnx")
    path = write_tokenizer(shop.folder / "words") / "tokenizer.json"
    lines = write_lines(shop.folder / "lines.tsv", *["the black cat runs\t1"] * 8)
    shop.recipe.write_text(TEXT_RECIPE, encoding="utf-8")
    change = rng.randint(0, 4)
    if change == 0:
        spoil_bytes(path, rng)
    elif change == 1:
        spoil_bytes(lines, rng)
    else:
        tree = json.loads(path.read_text(encoding="utf-8"))
        for _ in range(rng.randint(1, 3)):
            spoil_tree(tree, rng)
        path.write_text(json.dumps(tree), encoding="utf-8")


def _plugin(shop: Workshop, rng: random.Random) -> str:
    """Entry points that name nothing, the wrong thing, or are no entry points."""
    from optimc.testing.plugins import WRONG_PASS, make_plugin

    values = ("x", "x:", ":y", "os:system", "json:loads", "no_such:Thing", "x:ScaleOutputs", "é é")
    names = ("scale_outputs", "simplify", "\x1b[31m", "a b", "", "x" * 300, "quantize_int8", "a=b")
    groups = ("optimc.passes", "optimc.targets", "optimc.pass", "")
    entries = {rng.choice(names): rng.choice(values) for _ in range(rng.randint(1, 3))}
    module = rng.choice([WRONG_PASS, "1/0\n", "x = (", "import no_such_module\n", ""])
    folder = make_plugin(shop.folder / "plugins", "x", module, {rng.choice(groups): entries})
    if rng.random() < 0.4:
        spoil_bytes(rng.choice(sorted((folder / "x-1.0.dist-info").iterdir())), rng)
    if rng.random() < 0.5:
        shop.replace("int8: [simplify,", "int8: [scale_outputs, simplify,")
    return rng.choice(["check recipe.yaml", "passes", "targets", "passes scale_outputs"])


KINDS: dict[str, Kind] = {
    "recipe": _recipe,
    "onnx bytes": _model_bytes,
    "onnx fields": _model_fields,
    "npz bytes": _archive_bytes,
    "npz members": _archive_members,
    "tokenizer": _tokenizer,
    "plugin": _plugin,
}
"""By name: what spoils a workshop; what it returns is the command, where it is not `check`."""

PROGRAMS: dict[str, Kind] = {"pt2": spoilt_program}
"""These need torch."""
