"""`.pt2` files with code inside, and broken ones, through the command line. Needs torch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from optimc.cli import main
from optimc.core.errors import InputError
from optimc.frontends._torch_archives import check_archive
from optimc.testing.commands import run_optimc
from optimc.testing.input_fuzzing import PROGRAMS, fuzz_input
from optimc.testing.program_fuzzing import ATTACKS, MARK, program, read_members, written

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN_BY_TORCH = ("constant", "guard", "old weights", "samples", "size", "weight")
"""Those that torch 2.13 runs while it reads."""


@pytest.fixture
def hostile(tmp_path: Path) -> dict[str, Path]:
    """A file for each attack, in a folder of its own."""
    files = {}
    for name, attack in ATTACKS.items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        members = read_members(program())
        attack(members, folder)
        files[name] = folder / "m.pt2"
        files[name].write_bytes(written(members))
    return files


def test_code_in_a_program_never_runs(hostile: dict[str, Path]) -> None:
    from optimc.frontends._torch_sources import ProgramModel

    for name, path in hostile.items():
        with pytest.raises(InputError, match=r"could run code|unpickling runs code") as caught:
            ProgramModel(path)
        assert not (path.parent / MARK).exists(), name
        assert "factory" in str(caught.value) or "torch.export.save" in str(caught.value)


def test_the_attacks_are_real(hostile: dict[str, Path]) -> None:
    # Where torch stops running one of these, its check here has nothing to hold any more.
    for name in RUN_BY_TORCH:
        path = hostile[name]
        with suppress(Exception):  # most files are no programs any more
            torch.export.load(path).module()(torch.ones(2, 4))
        assert (path.parent / MARK).exists(), name


def test_the_program_itself_is_read(tmp_path: Path) -> None:
    from optimc.frontends._torch_sources import ProgramModel

    path = tmp_path / "m.pt2"
    path.write_bytes(program())
    assert ProgramModel(path).described.inputs == [("x", "float32", ["batch", 4])]


def test_the_message_of_a_hostile_program(hostile: dict[str, Path]) -> None:
    folder = hostile["samples"].parent
    looked = run_optimc("inspect", "m.pt2", cwd=folder)
    assert looked.code == 2
    assert not looked.traceback
    assert looked.err.count("error: ") == 1
    assert "unpickling runs code" in looked.err
    assert not (folder / MARK).exists()


class Cond(torch.nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


class Names(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ModuleDict(
            {"a-b": torch.nn.Linear(4, 4), "c d": torch.nn.Linear(4, 4)}
        )

    def forward(self, x, *, extra):
        return {"y": self.parts["a-b"](x) + extra["m"], "z": (self.parts["c d"](x), [x])}


class Sizes(torch.nn.Module):
    def forward(self, x):
        batch, length, width = x.shape
        return x.reshape(batch, length * width).repeat(1, 2)[:, : length // 2 * 2], x.shape[1]


@pytest.mark.parametrize(
    ("module", "keywords", "axes"),
    [
        (Cond(), {}, (0,)),
        (Names(), {"extra": {"m": torch.ones(2, 3, 4)}}, ()),
        (Sizes(), {}, (0, 1, 2)),
        (torch.nn.MultiheadAttention(4, 2, batch_first=True), {}, ()),
    ],
    ids=["cond", "names", "sizes", "attention"],
)
def test_what_torch_writes_is_read(
    module: torch.nn.Module, keywords: dict[str, object], axes: tuple[int, ...], tmp_path: Path
) -> None:
    x = torch.ones(2, 3, 4)
    feeds = (x, x, x) if isinstance(module, torch.nn.MultiheadAttention) else (x,)
    dynamic = (dict.fromkeys(axes, torch.export.Dim.AUTO),) if axes else None
    exported = torch.export.export(module.eval(), feeds, keywords, dynamic_shapes=dynamic)
    torch.export.save(exported, tmp_path / "m.pt2")
    check_archive(tmp_path / "m.pt2")


@pytest.mark.parametrize("seed", range(20))
def test_a_spoilt_program_is_one_message(seed: int, repository: Path) -> None:
    assert fuzz_input(seed, repository / "recipes", main, PROGRAMS).finds == []
