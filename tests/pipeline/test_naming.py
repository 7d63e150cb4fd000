"""Functions of the user's that passes name are looked up before any work, and nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimc.core.errors import InputError
from optimc.pipeline.plan import make_plan
from optimc.pipeline.recipe import load_recipe

RECIPE = """\
model: {{factory: "naming_code:net"}}
inputs: {{x: {{shape: [batch, 4], dtype: float32}}}}
data: {{training: {{npz: x.npz, inputs: {{x: x}}}}}}
variants: {{trained: [{{train: {options}}}]}}
"""
CODE = """\
from os.path import join as joined
raise SystemExit("this runs nothing")
SQUARED = None
class Loss: ...
def own_loss(step): ...
"""


def planned(folder: Path, options: str) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.format(options=options))
    (folder / "naming_code.py").write_text(CODE)
    (folder / "x.npz").touch()
    make_plan(load_recipe(folder / "recipe.yaml"))


@pytest.mark.parametrize("name", ["own_loss", "Loss", "SQUARED", "joined"])
def test_whatever_a_file_defines_is_found(tmp_path: Path, name: str) -> None:
    planned(tmp_path, f"{{loss: {{call: 'naming_code:{name}'}}}}")


def test_what_only_running_could_tell_is_let_through(tmp_path: Path) -> None:
    planned(tmp_path, "{loss: {call: 'torch.nn.functional:no_such_loss'}}")
    (tmp_path / "naming_stars.py").write_text("from os import *\n")
    planned(tmp_path, "{loss: {call: 'naming_stars:anything'}}")
    (tmp_path / "naming_package").mkdir()
    planned(tmp_path, "{loss: {call: 'naming_package.inner:anything'}}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "{loss: {call: 'naming_code:own_los'}}",
            "has no `own_los`\n  fix: did you mean `own_loss`",
        ),
        (
            "{distill: {losses: [{call: 'naming_cod:own_loss'}]}}",
            "no module is called `naming_cod`",
        ),
        ("{distill: {teacher: {factory: 'naming_code:teacher'}}}", "has no `teacher`"),
    ],
)
def test_what_is_not_there_is_said_with_its_place(
    tmp_path: Path, options: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        planned(tmp_path, options)
    assert message in str(caught.value)
    assert "recipe.yaml:4:" in str(caught.value)
