"""Names of nested inputs and outputs, and checkpoints that fit or do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from optimc.core.errors import InputError

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from optimc.frontends._torch_modules import flat_module, named_tensors, unique_output_names
from optimc.frontends._torch_weights import load_weights


class Boxes(NamedTuple):
    corners: Any
    scores: Any


class Nested(torch.nn.Module):
    def forward(self, image: Any, extra: Any, *, pair: Any = None) -> Any:
        return {"sum": image + extra["mask"], "parts": [extra["deep"]["x"], pair[0] - pair[1]]}


class Two(torch.nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return left - right


def test_nested_inputs_are_named_by_their_paths() -> None:
    names = ["pair.0", "pair.1", "image", "extra.mask", "extra.deep.x"]
    values = [torch.full((2,), float(n)) for n in range(5)]
    flat = flat_module(Nested(), names)
    found = named_tensors(flat.call(values))
    assert [(name, tensor[0].item()) for name, tensor in found] == [
        ("sum", 5.0),
        ("parts.0", 4.0),
        ("parts.1", -1.0),
    ]
    assert [t[0].item() for t in flat(*values)] == [5.0, 4.0, -1.0]


@pytest.mark.parametrize(
    ("names", "expected"), [(["left", "right"], -1.0), (["right", "left"], 1.0), (["a", "b"], -1.0)]
)
def test_inputs_go_by_name_and_else_by_order(names: list[str], expected: float) -> None:
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert flat_module(Two(), names)(one, two)[0].item() == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["left"], "`inputs` lacks `right`"),
        (["left", "wrong"], "has no argument `wrong`"),
        (["a", "b", "c"], "has no argument `a`, `b`, `c`"),
        (["left", "left.x", "right"], "stands below `left`"),
        (["left.x", "left", "right"], "others stand below it"),
    ],
)
def test_inputs_that_do_not_fit_forward(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        flat_module(Two(), names)


def test_outputs_are_named_by_keys_fields_and_places() -> None:
    x = torch.zeros(1)
    assert [n for n, _ in named_tensors(x)] == ["output"]
    assert [n for n, _ in named_tensors((x, None, [x, 3]))] == ["output_0", "output_2.0"]
    assert [n for n, _ in named_tensors(Boxes(x, {"a": x}))] == ["corners", "scores.a"]
    assert [n for n, _ in named_tensors({"boxes": Boxes(x, x)})] == [
        "boxes.corners",
        "boxes.scores",
    ]
    assert named_tensors(3) == []
    assert unique_output_names(["x", "y", "y"], ["x"]) == ["x_out", "y", "y_out"]
    named = named_tensors({"": x, "loss": None, 3: [None, x]})
    assert [name for name, _ in named] == ["", "3.1"]
    assert unique_output_names([name for name, _ in named], []) == ["output", "3.1"]


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """Saves a checkpoint and loads it into a net of zeros; the net, or the refusal."""

    def load(content: Any, key: str | None = None, prefix: str | None = None) -> torch.nn.Module:
        file = tmp_path / "w.pth"
        torch.save(content, file)
        module = net()
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
        load_weights(module, file, key=key, prefix=prefix)
        return module

    return load


def test_checkpoints_are_loaded_by_key_and_prefix(saved: Any) -> None:
    state = net().state_dict()
    wrapped = {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}
    for made in (saved(state), saved(wrapped, "state_dict", "module.")):
        assert torch.equal(made.state_dict()["0.weight"], state["0.weight"])
    halves = {name: tensor.half() for name, tensor in state.items() if "batches" not in name}
    assert saved(halves).state_dict()["0.weight"].dtype == torch.float32


def test_with_a_prefix_others_are_left_out_and_never_mixed_in(tmp_path: Path) -> None:
    """A checkpoint with weights and their moving average: the one that is named counts."""
    state = net().state_dict()
    average = {f"ema.{name}": tensor * 0 for name, tensor in state.items()}
    file = tmp_path / "w.pth"
    for content in ({**state, **average}, {**average, **state}):
        torch.save(content, file)
        module = net()
        notes = load_weights(module, file, key=None, prefix="ema.")
        assert not module.state_dict()["0.weight"].any()
        assert "of w.pth, 7 tensors without the prefix `ema.` were left out: 0.weight," in notes[0]
        with pytest.raises(InputError, match=r"unexpected \(ema.0.weight"):
            load_weights(net(), file, key=None, prefix=None)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, file)
    with pytest.raises(InputError, match=r"no name in the file begins with `model\.") as caught:
        load_weights(net(), file, key=None, prefix="model.")
    assert caught.value.fix == "write `weights: {prefix: module.}`"
    torch.save(state, file)
    with pytest.raises(InputError, match="no name in the file begins with") as caught:
        load_weights(net(), file, key=None, prefix="module.")
    assert caught.value.fix == "leave `prefix` out"


def test_an_entry_of_an_entry_is_named_with_a_dot(saved: Any) -> None:
    state = net().state_dict()
    content = {"run": {"state_dict": state, "epoch": 3}}
    assert torch.equal(saved(content, "run.state_dict").state_dict()["0.weight"], state["0.weight"])
    with pytest.raises(InputError, match="holds more than tensors") as caught:
        saved(content, "run")
    assert caught.value.fix == "name the entry with the tensors: weights: {key: run.state_dict}"
    with pytest.raises(InputError, match=r"no entry `run\.states`") as caught:
        saved(content, "run.states")
    assert caught.value.fix == "`states` is not among: state_dict, epoch"


@pytest.mark.parametrize("kind", ["int8", "complex64", "float8_e4m3fn"])
def test_weights_of_another_kind_are_not_converted(saved: Any, kind: str) -> None:
    state = dict(net().state_dict())
    state["0.weight"] = state["0.weight"].to(getattr(torch, kind))
    match = rf"1 of another kind \(0.weight is {kind}, the module has float32\)"
    with pytest.raises(InputError, match=match):
        saved(state)


def test_safetensors_are_known_by_what_they_hold(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = net().state_dict()
    save_file(state, tmp_path / "w.bin")
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    load_weights(module, tmp_path / "w.bin", key=None, prefix=None)
    assert torch.equal(module.state_dict()["0.weight"], state["0.weight"])


def test_shared_parameters_stay_shared(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    state = {n: t.clone() for n, t in module.state_dict().items() if n != "b.weight"}
    state["a.weight"] += 1
    save_file(state, tmp_path / "w.safetensors")
    load_weights(module, tmp_path / "w.safetensors", key=None, prefix=None)
    assert torch.equal(module["b"].weight, state["a.weight"])
    assert module["b"].weight is module["a"].weight


def test_keys_that_do_not_fit_are_listed(saved: Any) -> None:
    state = dict(net().state_dict())
    with pytest.raises(InputError) as caught:
        saved({f"module.{name}": tensor for name, tensor in state.items()})
    assert (
        "6 missing (0.weight, 0.bias, 1.weight, 1.bias, 1.running_mean, and 1" in caught.value.what
    )
    assert "6 unexpected (module.0.weight," in caught.value.what
    assert caught.value.fix == "write `weights: {prefix: module.}`"
    with pytest.raises(InputError, match=r"1 of another shape \(0.weight is \[9, 4\], the module"):
        saved({**state, "0.weight": torch.zeros(9, 4)})
    with pytest.raises(InputError, match=r"1 missing .*; 1 unexpected") as caught:
        saved({"other": state["0.bias"], **{n: t for n, t in state.items() if n != "0.bias"}})
    assert "`arguments`" in str(caught.value.fix)


def test_files_that_hold_more_than_tensors(saved: Any, tmp_path: Path) -> None:
    state = net().state_dict()
    with pytest.raises(InputError, match=r"holds more than tensors: epoch") as caught:
        saved({"epoch": 1, "model_state": state})
    assert "weights: {key: model_state}" in str(caught.value.fix)
    with pytest.raises(InputError, match="no entry `wrong`") as caught:
        saved({"model_state": state}, "wrong")
    assert "model_state" in str(caught.value.fix)
    with pytest.raises(InputError, match="a list where tensors by name"):
        saved([1])
    with pytest.raises(InputError, match="only tensors are read") as caught:
        saved(net())
    assert "state_dict alone" in str(caught.value.fix)
    broken = tmp_path / "w.safetensors"
    broken.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="the weights cannot be read"):
        load_weights(net(), broken, key=None, prefix=None)
