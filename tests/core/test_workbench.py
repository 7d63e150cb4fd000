from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from optimc.core.errors import CellError
from optimc.testing.workbenches import workbench

if TYPE_CHECKING:
    from optimc.core.workbench import Workbench

torch = pytest.importorskip("torch")


def residual_net() -> torch.nn.Module:
    torch.manual_seed(0)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(8, 8, 3, padding=1)
            self.second = torch.nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.second(self.first(x).relu())

    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        Block(),
        Block(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )


def bench() -> Workbench:
    torch.manual_seed(1)
    return workbench(residual_net, {"x": torch.randn(2, 3, 8, 8)})


def halve_first_block(on: Workbench) -> None:
    block = on.module[1]
    block.first.weight = torch.nn.Parameter(block.first.weight[:4].detach())
    block.first.bias = torch.nn.Parameter(block.first.bias[:4].detach())
    block.second.weight = torch.nn.Parameter(block.second.weight[:, :4].detach())
    with on.restructuring():
        block.first.out_channels = block.second.in_channels = 4


def stored(on: Workbench, folder: Path) -> Workbench:
    on.write_tensors(folder)
    again = bench()
    again.restore(folder, on.structure())
    return again


def outputs(on: Workbench) -> torch.Tensor:
    with torch.no_grad():
        return on.forward(on.example)["output"]


def test_what_was_changed_comes_back_from_data(tmp_path: Path) -> None:
    changed = bench()
    before = changed.stats()
    changed.skip("2")
    halve_first_block(changed)
    again = stored(changed, tmp_path)
    assert torch.equal(outputs(again), outputs(changed))
    assert again.stats() == changed.stats() != before
    assert again.structure() == changed.structure()
    assert changed.structure().skipped == ("2",)
    assert changed.structure().attributes == {
        "1.first": {"out_channels": 4},
        "1.second": {"in_channels": 4},
    }


def test_multiply_accumulates_are_those_of_one_sample() -> None:
    convolutions = 3 * 8 * 9 * 64 + 4 * (8 * 8 * 9 * 64)
    assert bench().stats().macs == convolutions + 8 * 4


def test_a_skipped_module_passes_on_what_it_got() -> None:
    one = bench()
    one.skip("1")
    two = bench()
    two.module[1].second.weight.data.zero_()
    two.module[1].second.bias.data.zero_()
    assert torch.equal(outputs(one), outputs(two))


def test_masks_are_kept_and_applied(tmp_path: Path) -> None:
    masked = bench()
    name = "5.weight"
    masked.masks[name] = torch.arange(32).reshape(4, 8) % 2 == 0
    masked.apply_masks()
    again = stored(masked, tmp_path)
    torch.nn.init.ones_(again.module[5].weight)
    again.apply_masks()
    assert torch.equal(again.module[5].weight != 0, masked.masks[name])


def test_masks_of_a_skipped_module_go_with_it() -> None:
    masked = bench()
    masked.masks["1.first.weight"] = torch.ones(8, 8, 3, 3, dtype=torch.bool)
    masked.skip("1")
    assert not masked.masks


def test_parameters_that_are_one_stay_one(tmp_path: Path) -> None:
    def tied() -> torch.nn.Module:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        module[1].weight = module[0].weight
        return module

    example = {"x": torch.randn(2, 4)}
    first = workbench(tied, example)
    first.write_tensors(tmp_path)
    again = workbench(tied, example)
    again.restore(tmp_path, first.structure())
    assert again.module[0].weight is again.module[1].weight


@pytest.mark.parametrize("turn", range(6))
def test_modules_under_two_names_get_their_own_tensors(tmp_path: Path, turn: int) -> None:
    class Listed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(8))
            self.first, self.last = self.parts[0], self.parts[7]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.parts:
                x = part(x).tanh()
            return x + self.first(x) - self.last(x)

    def listed() -> torch.nn.Module:
        torch.manual_seed(turn)
        return Listed()

    example = {"x": torch.randn(2, 4)}
    first = workbench(listed, example)
    for parameter in first.module.parameters():
        parameter.data.add_(1.0)
    first.write_tensors(tmp_path)
    again = workbench(listed, example)
    again.restore(tmp_path, first.structure())
    assert torch.equal(outputs(again), outputs(first))
    assert again.module.first is again.module.parts[0]


def test_what_a_module_keeps_while_it_runs_is_no_structure(tmp_path: Path) -> None:
    class Positions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known = 0
            self.linear = torch.nn.Linear(4, 4)
            self.table = torch.zeros(0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.known != x.shape[1]:
                self.known = x.shape[1]
                self.table = torch.arange(self.known, dtype=torch.float32)
            return self.linear(x) + self.table

    def positions() -> torch.nn.Module:
        torch.manual_seed(0)
        return Positions()

    first = workbench(positions, {"x": torch.randn(2, 4)})
    expected = outputs(first)
    first.write_tensors(tmp_path)
    assert not first.structure().attributes
    again = workbench(positions, first.example)
    again.restore(tmp_path, first.structure())
    assert torch.equal(outputs(again), expected)


def test_masks_of_shared_parameters_stay_with_who_shares_them() -> None:
    def shared() -> torch.nn.Module:
        torch.manual_seed(0)
        net = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(2)))
        net[1][0].weight = net[0][0].weight
        return net

    masked = workbench(shared, {"x": torch.randn(2, 4)})
    mask = torch.eye(4, dtype=torch.bool)
    masked.masks["0.0.weight"] = mask
    masked.skip("0")
    assert list(masked.masks) == ["1.0.weight"]
    masked.apply_masks()
    assert torch.equal(masked.module[1][0].weight != 0, mask)


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Stateful(torch.nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    held = workbench(lambda: Stateful(4, 4), {"x": torch.randn(2, 4)})
    with pytest.raises(CellError, match="_extra_state` is state that is no tensor"):
        held.write_tensors(tmp_path)


def test_the_source_can_be_opened_again() -> None:
    changed = bench()
    expected = outputs(changed)
    changed.skip("1")
    teacher = changed.opened()
    with torch.no_grad():
        assert torch.equal(teacher.outputs(changed.example)["output"], expected)
    assert not torch.equal(outputs(changed), expected)
