"""What of a `.pt2` file is refused before torch reads it, by archives that need no torch."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from optimc.core.errors import InputError
from optimc.frontends._torch_archives import check_archive
from optimc.testing.program_fuzzing import CONSTANTS, PROGRAM, WEIGHTS, Members, written

SPEC = (
    '[1, {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": '
    '"builtins.dict", "context": "%s", "children_spec": []}]}]'
)


def members(**changes: Any) -> Members:
    """A program as torch writes it, as far as the check looks."""
    tree = {
        "graph": {
            "inputs": [{"as_tensor": {"name": "p_linear_weight"}}, {"as_tensor": {"name": "x"}}],
            "nodes": [{"target": "torch.ops.aten.linear.default", "name": "linear"}],
        },
        "input_specs": [{"parameter": {"parameter_name": "layers.0.linear.weight"}}],
        "sizes": [{"expr_str": "Add(Mul(Integer(2), Symbol('s77', positive=True)), Integer(-1))"}],
        "forward_arg_names": ["x"],
        "in_spec": SPEC % '[\\"mask\\"]',
        "guards_code": ["L['x'].size()[0] <= 8"],
        **changes,
    }
    weights = {"config": {"linear.weight": {"path_name": "weight_0", "use_pickle": False}}}
    return {
        PROGRAM: json.dumps(tree).encode(),
        WEIGHTS: json.dumps(weights).encode(),
        CONSTANTS: b'{"config": {}}',
        "m/data/weights/weight_0": bytes(48),
        "m/extra/notes.json": b"the user's own",
    }


def refusal(path: Path, content: Members, compression: int = zipfile.ZIP_STORED) -> str:
    """The message for an archive of `content`."""
    path.write_bytes(written(content, compression))
    with pytest.raises(InputError) as caught:
        check_archive(path)
    assert str(path) in str(caught.value)
    assert caught.value.fix
    return str(caught.value)


def test_what_torch_writes_passes(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(written(members()))
    check_archive(path)


@pytest.mark.parametrize(
    "target",
    [
        *("torch.ops.aten.add.Tensor", "torch.ops.aten.__and__.Tensor", "_operator.mul"),
        *("torch.ops.higher_order.cond", "torch.sym_max", "math.trunc"),
    ],
)
def test_operators_pass(tmp_path: Path, target: str) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(written(members(nodes=[{"target": target}])))
    check_archive(path)


@pytest.mark.parametrize(
    "target",
    [
        *("torch.os.system", "torch.ops.load_library", "torch.ops.load_library.__call__"),
        *("torch.ops.aten.__class__", "torch.ops.aten.add.__call__", "_operator.methodcaller"),
        *(
            "torch.hub.load",
            "math.os",
            "torch.ops.higher_order.aoti_call_delegate",
            "builtins.eval",
        ),
        *("torch.ops.aten.from_file.default", "torch.ops.mine.anything.default", "#x:y"),
    ],
)
def test_other_names_of_operators_are_refused(tmp_path: Path, target: str) -> None:
    text = refusal(tmp_path / "m.pt2", members(nodes=[{"target": target}]))
    assert f"could run code: the operator `{target}`" in text


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("__import__('os').system('x')", "it calls something"),
        ("eval('1')", "it calls `eval`"),
        ("s0.__class__", "it takes parts of things"),
        ("(lambda: 1)()", "it calls something"),
        ("[x for x in s0]", "it holds a ListComp"),
        ("Symbol('a\"b')", "a text that is no name"),
        ("Pow(Integer(9), Integer(99999999))", "a power too great"),
        ("((2**16)**16)**16", "a power too great"),
        ("2**s0", "its exponent is no number"),
        ("1 +", "no expression"),
        ("(" * 500, "no expression"),
        ("1+" * 20_000 + "1", "letters"),
    ],
)
def test_sizes_that_sympy_would_run_are_refused(
    tmp_path: Path, expression: str, reason: str
) -> None:
    text = refusal(tmp_path / "m.pt2", members(sizes=[{"expr_str": expression}]))
    assert "could run code: the size" in text
    assert reason in text


@pytest.mark.parametrize(
    "guard",
    [
        "(2*L['x'].size()[1]) != max(1, 2*(L['x'].size()[1] // 2))",
        "math.floor(torch.sym_float(L['x'].size()[0]) / 2.0) >= 1 and not (L['y']['k'].dim() == 2)",
        "(L['args'][0].stride()[1] if L['x'].shape[0] > 1 else 3) == 3 or L['x'].size()[0]**2 < 9",
    ],
)
def test_conditions_as_torch_prints_them_pass(tmp_path: Path, guard: str) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(written(members(guards_code=[guard])))
    check_archive(path)


@pytest.mark.parametrize(
    "guard",
    [
        "__import__('os').system('x') == 0",
        "torch.os.system('x') == 0",
        "L['x'].__class__",
        "L['x'].size().__class__",
        "max.__self__",
        "torch.load('x')",
        "torch.sym_float.__globals__",
        "L['x'].size()[0] ** L['x'].size()[1]",
        "open('x')",
        "L['a\\'b'].size()[0] == 1",
        "math.os",
    ],
)
def test_conditions_that_torch_would_run_are_refused(tmp_path: Path, guard: str) -> None:
    assert "could run code: the condition" in refusal(
        tmp_path / "m.pt2", members(guards_code=[guard])
    )


def test_names_that_end_in_source_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    for bad in (
        {"forward_arg_names": ["x, y=open('z')"]},
        {"forward_arg_names": ["lambda"]},
        {"inputs": [{"name": "x, y=open('z')"}]},
        {"input_specs": [{"parameter_name": 'a", open("z"), "'}]},
        {"in_spec": SPEC % '[\\"a=open(1)\\"]'},
    ):
        assert "is no name of Python" in refusal(path, members(**bad))
    enum = json.dumps({"__enum__": True, "fqn": "os:x", "name": "y"}).replace('"', '\\"')
    assert "an enum, which imports" in refusal(path, members(out_spec=SPEC % enum))
    imports = '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
    assert "which imports a module" in refusal(path, members(out_spec=imports))


def test_pickled_objects_and_compiled_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    content = members()
    content[CONSTANTS] = b'{"config": {"k": {"path_name": "opaque_obj_0"}}}'
    assert "the constant `opaque_obj_0` is a pickled object" in refusal(path, content)
    library = {**members(), "m/data/aotinductor/model/x.so": b""}
    assert "is compiled code" in refusal(path, library)


def test_programs_of_any_suffix_are_looked_at(tmp_path: Path) -> None:
    content = members(guards_code=["exit()"])
    content["m/models/model.other"] = content.pop(PROGRAM)
    assert "the condition `exit()`" in refusal(tmp_path / "m.pt2", content)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "m/../../x", "m\\x", "M/Models/Model.JSON"])
def test_odd_names_of_members_are_refused(tmp_path: Path, name: str) -> None:
    text = refusal(tmp_path / "m.pt2", {**members(), name: b"{}"})
    assert "no name within the archive" in text or "have one name" in text


def test_bombs_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    bomb = {**members(), "m/data/weights/weight_1": bytes(50_000_000)}
    assert "is compressed" in refusal(path, bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    deep = {**members(), PROGRAM: b"[" * 200_000}
    assert "is no JSON" in refusal(path, deep)


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_a_cut_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(written(members())[:size])
    with pytest.raises(InputError, match="torch cannot read this file"):
        check_archive(path)
