"""Pruned widths: what is left computes what the whole module does without what was removed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from optimc.core.errors import CellError, InputError, PreconditionError, UnavailableError
from optimc.core.passes import Input, PassResult, RewriteLog
from optimc.core.torch_model import TorchModel
from optimc.core.workbench import Workbench
from optimc.passes._prune_allocate import Units, levels, nearest
from optimc.passes._prune_width_work import cut, survey
from optimc.passes.prune_width import PruneWidth
from optimc.testing.commands import run_optimc
from optimc.testing.pruning import (
    CountedTuning,
    CountingDevice,
    pruning_context,
    source_model,
)
from optimc.testing.workbenches import workbench

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

IMAGE = (2, 3, 16, 16)
EVERYTHING = ["channels", "heads", "hidden"]


@pytest.fixture(scope="module")
def nets() -> Any:
    path = Path(__file__).parent / "user_code" / "prunable_nets.py"
    spec = importlib.util.spec_from_file_location("prunable_nets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prunable_nets"] = module
    spec.loader.exec_module(module)
    return module


def bench_of(nets: Any, make: Callable[[], Any], feed: str = "image", x: Any = None) -> Workbench:
    def made() -> Any:
        torch.manual_seed(1)
        return nets.spread(make())

    torch.manual_seed(2)
    return workbench(made, {feed: torch.randn(IMAGE) if x is None else x})


def surveyed(bench: Workbench, **options: Any) -> dict[str, Any]:
    asked = {"importance": "l2", "heads": {}, "keep": [], "kinds": EVERYTHING, "seed": 0}
    return survey(bench, {}, **{**asked, **options})


def small_bert(nets: Any) -> Workbench:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
    )
    ids = torch.arange(18).view(2, 9)
    make = lambda: nets.HiddenStates(transformers.BertModel(config, add_pooling_layer=False))  # noqa: E731
    return bench_of(nets, make, "x", ids)


def small_vit(nets: Any) -> Workbench:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=16,
        patch_size=8,
    )
    make = lambda: nets.HiddenStates(transformers.ViTModel(config, add_pooling_layer=False))  # noqa: E731
    return bench_of(nets, make, "x")


def small_mobilenet(nets: Any) -> Workbench:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(
        image_size=32, depth_multiplier=0.1, finegrained_output=True, output_stride=32
    )

    class Logits(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = transformers.MobileNetV2ForImageClassification(config)

        def forward(self, image: Any) -> Any:
            return {"logits": self.inner(image).logits}

    return bench_of(nets, Logits, x=torch.randn(2, 3, 32, 32))


def zeroed_outputs(bench: Workbench, readers: dict[str, list[int]]) -> dict[str, Any]:
    """The whole module's outputs where layers read zeros for some of their inputs.

    It knows nothing of the dependency graph: the test names the layers and their inputs.
    """
    handles = []
    for name, channels in readers.items():
        layer = bench.module.get_submodule(name)

        def silence(module: Any, arguments: Any, channels: list[int] = channels) -> Any:
            x = arguments[0].clone()
            axis = 1 if isinstance(module, torch.nn.Conv2d) else -1
            x.index_fill_(axis, torch.tensor(channels), 0.0)
            return (x, *arguments[1:])

        handles.append(layer.register_forward_pre_hook(silence))
    with torch.no_grad():
        outputs = {name: t.clone() for name, t in bench.forward(bench.example).items()}
    for handle in handles:
        handle.remove()
    return outputs


def assert_same(bench: Workbench, wanted: dict[str, Any]) -> None:
    with torch.no_grad():
        got = bench.forward(bench.example)
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_cut_convolution_computes_what_zeros_in_its_reader_do(nets: Any) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    surveyed(bench)
    removed = [0, 5, 6, 23]
    wanted = zeroed_outputs(bench, {"blocks.1.conv2": removed})
    cut(bench, {}, removed={"blocks.1.conv1": removed})
    assert bench.module.get_submodule("blocks.1.conv1").out_channels == 20
    assert bench.module.get_submodule("blocks.1.bn1").num_features == 20
    assert bench.module.get_submodule("blocks.1.conv2").in_channels == 20
    assert_same(bench, wanted)


def test_a_cut_residual_stream_goes_from_all_of_its_layers(nets: Any) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    told = surveyed(bench)
    names = [group["name"] for group in told["groups"]]
    assert names == ["stem", "blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"]
    removed = [1, 2, 9]
    readers = [f"blocks.{n}.conv1" for n in range(3)] + ["head"]
    wanted = zeroed_outputs(bench, dict.fromkeys(readers, removed))
    cut(bench, {}, removed={"stem": removed})
    assert bench.module.get_submodule("blocks.2.conv2").out_channels == 13
    assert_same(bench, wanted)


def test_concatenated_channels_are_found_where_they_are_read(nets: Any) -> None:
    bench = bench_of(nets, nets.DenseNet)
    told = surveyed(bench)
    assert [g["name"] for g in told["groups"]] == ["stem", *(f"blocks.{n}.2" for n in range(3))]
    first, second = [0, 3, 15], [7, 8]
    # The batch norms before the readers shift: what is zero is what the convolutions read.
    in_map = [c * 4 + k for c in [*first, *(32 + c for c in second)] for k in range(4)]
    wanted = zeroed_outputs(
        bench,
        {
            "blocks.0.2": first,
            "blocks.1.2": first,
            "blocks.2.2": [*first, *(32 + c for c in second)],
            "head": in_map,
        },
    )
    cut(bench, {}, removed={"stem": first, "blocks.1.2": second})
    assert_same(bench, wanted)


def test_grouped_and_depthwise_convolutions_keep_their_groups_even(nets: Any) -> None:
    bench = bench_of(nets, nets.GroupedNet)
    told = surveyed(bench)
    sizes = {group["name"]: (group["unit"], len(group["scores"])) for group in told["groups"]}
    assert sizes["stem"] == (4, 8)
    assert sizes["grouped"] == (4, 16)
    assert sizes["squeeze"] == (1, 16)
    removed = [0, 3, 11]
    channels = [unit + 16 * group for unit in removed for group in range(4)]
    wanted = zeroed_outputs(bench, {"squeeze": channels, "project": channels})
    cut(bench, {}, removed={"grouped": removed})
    depthwise = bench.module.get_submodule("depthwise")
    assert (depthwise.groups, depthwise.out_channels) == (52, 52)
    assert_same(bench, wanted)


def test_heads_go_whole_and_the_attributes_follow(nets: Any) -> None:
    bench = small_bert(nets)
    told = surveyed(bench)
    kinds = [(group["kind"], group["unit"], len(group["scores"])) for group in told["groups"]]
    assert kinds == [("heads", 12, 4), ("hidden", 1, 96)] * 2
    heads, hidden = (group["name"] for group in told["groups"][:2])
    layer = "inner.encoder.layer.0"
    wanted = zeroed_outputs(
        bench,
        {
            f"{layer}.attention.output.dense": [*range(12), *range(24, 36)],
            f"{layer}.output.dense": [5, 90],
        },
    )
    cut(bench, {}, removed={heads: [0, 2], hidden: [5, 90]})
    assert_same(bench, wanted)
    attention = bench.module.get_submodule(f"{layer}.attention.self")
    assert (attention.num_attention_heads, attention.all_head_size) == (2, 24)
    changed = bench.structure().attributes[f"{layer}.attention.self"]
    assert changed == {"num_attention_heads": 2, "all_head_size": 24}
    assert bench.module.get_submodule(f"{layer}.attention.self.query").out_features == 24


@pytest.mark.parametrize("net", [small_vit, small_mobilenet])
def test_models_of_transformers_are_cut_everywhere_but_at_their_interface(
    nets: Any, net: Callable[[Any], Workbench]
) -> None:
    bench = net(nets)
    told = surveyed(bench)
    before = told["figures"]["macs"]
    removed = {g["name"]: list(range(0, len(g["scores"]) - 1, 2)) for g in told["groups"]}
    # The call itself proves it against the zeroed module, and raises where they differ.
    after = cut(bench, {}, removed=removed)
    assert after["macs"] < 0.75 * before
    kinds = {group["kind"] for group in told["groups"]}
    assert kinds == ({"heads", "hidden"} if net is small_vit else {"channels"})


def test_shortcuts_that_pad_channels_are_left_alone_and_inner_widths_are_not(nets: Any) -> None:
    told = surveyed(bench_of(nets, nets.PaddedNet))
    assert [group["name"] for group in told["groups"]] == ["first.conv1", "conv1"]
    reasons = {where: reason for _, where, reason in told["refused"]}
    assert "pads these channels with zeros (option A)" in reasons["stem"]
    assert "the model gives these out" in reasons["head"]


def test_what_cannot_be_cut_is_refused_with_its_reason(nets: Any) -> None:
    told = surveyed(bench_of(nets, nets.NormalisedNet))
    assert [group["name"] for group in told["groups"]] == ["plain"]
    reasons = {where: reason for _, where, reason in told["refused"]}
    assert "GroupNorm normalises over these channels" in reasons["under_norm"]
    assert "does not run without some of them" in reasons["shuffled"]
    assert "are apart by" in reasons["gating"]


def test_dependencies_without_an_end_are_refused(nets: Any) -> None:
    told = surveyed(bench_of(nets, nets.RotatedNet, "tokens", torch.randn(2, 5, 16)))
    assert [group["name"] for group in told["groups"]] == ["hidden"]
    reasons = {where: reason for _, where, reason in told["refused"]}
    assert "no end to what depends on these channels" in reasons["rotated"]


def test_heads_under_another_name_are_found_by_the_option(nets: Any) -> None:
    tokens = torch.randn(2, 5, 32)
    bench = bench_of(nets, nets.AttentionNet, "tokens", tokens)
    told = surveyed(bench)
    assert told["groups"] == []
    bench = bench_of(nets, nets.AttentionNet, "tokens", tokens)
    told = surveyed(bench, heads={"atten*": 4})
    assert [(g["kind"], g["unit"], len(g["scores"])) for g in told["groups"]] == [("heads", 8, 4)]


def test_patterns_that_name_nothing_are_errors(nets: Any) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    with pytest.raises(InputError, match=r"keep: `blocks\.x` names no module") as caught:
        surveyed(bench, keep=["blocks.*", "blocks.x"])
    assert "did you mean `blocks." in str(caught.value.fix)
    with pytest.raises(InputError, match="heads: `attn` names no module"):
        surveyed(bench, heads={"attn": 4})


def test_keep_and_cut_leave_groups_alone(nets: Any) -> None:
    told = surveyed(bench_of(nets, nets.ResidualNet), keep=["blocks.1"])
    assert [g["name"] for g in told["groups"]] == ["blocks.0.conv1", "blocks.2.conv1"]
    reasons = {where: reason for _, where, reason in told["refused"]}
    assert reasons["stem"] == "`blocks.1` in keep names blocks.1.bn2, which has the same channels"
    told = surveyed(small_bert(nets), kinds=["hidden"])
    assert {g["kind"] for g in told["groups"]} == {"hidden"}
    assert ("prune heads", "`cut` does not name heads") in {(r, w) for r, _, w in told["refused"]}


def test_a_tied_parameter_is_left_alone(nets: Any) -> None:
    def tied() -> Any:
        net = nets.ResidualNet()
        net.blocks[1].conv1.weight = net.blocks[0].conv1.weight
        return net

    told = surveyed(bench_of(nets, tied))
    assert [g["name"] for g in told["groups"]] == ["blocks.2.conv1"]


def test_a_second_cut_begins_with_the_whole_module(nets: Any) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    told = surveyed(bench)
    whole = {name: t.clone() for name, t in bench.forward(bench.example).items()}
    before = dict(bench.module.named_parameters())
    assert cut(bench, {}, removed={"stem": [0], "blocks.0.conv1": [1, 2]}) != told["figures"]
    assert cut(bench, {}, removed={}) == told["figures"]
    assert_same(bench, whole)
    assert all(before[name] is p for name, p in bench.module.named_parameters())


def test_a_dependency_that_nobody_saw_stops_the_cut(nets: Any) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    surveyed(bench)
    from optimc.passes import _prune_width_work as work

    # The graph's answer, with one index of a reader moved.
    surgeon = work._surgeons[bench]
    right = surgeon._graph.cut

    def wrong(group: Any, channels: Any) -> Any:
        slices = right(group, channels)
        moved = [
            type(s)(s.module, s.leaf, s.reads, s.handler, s.dim, (7,), s.roots) for s in slices
        ]
        return [m if s.reads else s for s, m in zip(slices, moved, strict=True)]

    surgeon._graph.cut = wrong  # type: ignore[method-assign]
    with pytest.raises(CellError, match="change the outputs by"):
        cut(bench, {}, removed={"blocks.0.conv1": [3]})


@pytest.mark.parametrize("importance", ["l1", "l2", "group_norm", "bn_scale"])
def test_dead_channels_are_the_least_important(nets: Any, importance: str) -> None:
    def dying() -> Any:
        net = nets.ResidualNet()
        with torch.no_grad():
            for block in net.blocks:
                for weight in (block.conv1.weight, block.bn1.weight, block.bn1.bias):
                    weight[4] *= 1e-3
                block.conv2.weight[:, 4] *= 1e-3
        return net

    bench = bench_of(nets, dying)
    with torch.no_grad():
        for n in range(3):
            bench.module.get_submodule(f"blocks.{n}.bn1").weight[4] = 1e-3
    told = surveyed(bench, importance=importance)
    scores = {group["name"]: group["scores"] for group in told["groups"]}
    for n in range(3):
        assert int(np.argmin(scores[f"blocks.{n}.conv1"])) == 4


def test_bn_scale_wants_batch_normalisation(nets: Any) -> None:
    told = surveyed(bench_of(nets, nets.GroupedNet), importance="bn_scale")
    assert told["groups"] == []
    assert "no batch normalisation scales these" in told["refused"][0][2]


def test_taylor_ranks_by_gradients_on_training_samples(nets: Any, tmp_path: Path) -> None:
    from optimc.calibration.dataset import Batch
    from optimc.calibration.sample_store import store_samples

    class Images:
        """Enough of a data set for the store."""

        where = "here"
        samples_per_label = 1
        has_labels = True

        def __len__(self) -> int:
            return 24

        def batches(self, size: int) -> Any:
            rng = np.random.default_rng(0)
            feeds = {"image": rng.standard_normal((24, 3, 16, 16)).astype(np.float32)}
            yield Batch(feeds, np.arange(24) % 10, 0)

    def unread() -> Any:
        net = nets.ResidualNet()
        with torch.no_grad():
            net.blocks[0].conv2.weight[:, 4] = 0.0
        return net

    folder = tmp_path / "samples"
    store_samples(Images(), folder)  # type: ignore[arg-type]
    runs = [
        surveyed(bench_of(nets, unread), importance="taylor", samples=str(folder)) for _ in range(2)
    ]
    assert runs[0] == runs[1]
    scores = {group["name"]: group["scores"] for group in runs[0]["groups"]}
    # Nothing reads the channel: the loss does not depend on the filter that makes it.
    assert scores["blocks.0.conv1"][4] == 0.0
    assert sum(scores["blocks.0.conv1"]) > 0.0
    assert sum(scores["blocks.1.conv1"]) > 0.0


def test_levels_are_aligned_and_end_at_the_floor() -> None:
    groups = [
        Units("a", "channels", 1, tuple(float(n) for n in range(32))),
        Units("b", "channels", 1, tuple(float(n) for n in range(20))),
        Units("c", "heads", 12, (1.0, 2.0, 3.0, 4.0)),
    ]
    for whole in (False, True):
        found = levels(groups, 8, 0.25, whole=whole)
        assert all(a in (8, 16, 24, 32) and b in (8, 16, 20) for a, b, _ in found)
        assert all(c in (2, 4) for _, _, c in found)  # 12 channels a head: two make 24
        assert found[-1] == (8, 8, 2)
        assert all(
            all(x >= y for x, y in zip(one, two, strict=True))
            for one, two in itertools.pairwise(found)
        )
    assert groups[0].removed(29) == [0, 1, 2]
    assert nearest(groups, levels(groups, 1, 0.0, whole=False), 0.5) == (16, 10, 2)


def test_whole_takes_more_from_groups_that_matter_less() -> None:
    flat = Units("flat", "channels", 1, (1.0,) * 16)
    steep = Units("steep", "channels", 1, (4.0, *(0.1,) * 15))
    level = nearest([flat, steep], levels([flat, steep], 1, 0.0, whole=True), 0.6)
    assert level[0] > 2 * level[1]


def run(bench: Workbench, folder: Path, pass_: PruneWidth, **given: Any) -> PassResult:
    model = source_model(bench)
    return pass_.run(model, pruning_context(pass_, bench, folder, **given))


@pytest.mark.parametrize("target", ["macs", "parameters"])
def test_a_target_is_met_by_the_least_level_and_stored(
    nets: Any, tmp_path: Path, target: str
) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    whole = bench.stats()
    result = run(bench, tmp_path, PruneWidth(**{target: 0.6}, align=4))  # type: ignore[arg-type]
    assert isinstance(result.model, TorchModel)
    left = getattr(result.model.stats, target) / getattr(whole, target)
    assert 0.4 < left <= 0.6
    assert result.stats[f"{target} before"] == getattr(whole, target)
    assert result.stats[f"{target} after"] == getattr(result.model.stats, target)
    assert result.choice is None
    assert [r.where for r in result.rewrites] == ["stem", *(f"blocks.{n}.conv1" for n in range(3))]
    assert result.modified
    assert "blocks.0.conv1: 24 to " in str(result.stats["widths"])
    # What is stored brings a fresh module to the same state.
    again = bench_of(nets, nets.ResidualNet)
    assert result.model.folder is not None
    again.restore(result.model.folder, result.model.structure)
    again.module.eval()
    with torch.no_grad():
        assert_same(again, {n: t.clone() for n, t in bench.forward(bench.example).items()})
    assert again.stats() == bench.stats()


def test_the_same_run_gives_the_same_digest(nets: Any, tmp_path: Path) -> None:
    digests = set()
    for number in range(2):
        bench = bench_of(nets, nets.ResidualNet)
        result = run(bench, tmp_path / str(number), PruneWidth(macs=0.5, global_ranking=True))
        digests.add(result.model.digest)
    assert len(digests) == 1


def test_a_limit_leaves_later_groups_whole(nets: Any, tmp_path: Path) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    result = run(bench, tmp_path, PruneWidth(ratio=0.5), log=RewriteLog(1))
    assert [r.where for r in result.rewrites] == ["stem"]
    assert bench.module.get_submodule("blocks.0.conv1").out_channels == 24
    bench = bench_of(nets, nets.ResidualNet)
    nothing = run(bench, tmp_path / "0", PruneWidth(ratio=0.5), log=RewriteLog(0))
    assert not nothing.modified
    assert nothing.model.digest == source_model(bench).digest


def test_a_speedup_is_measured_and_replayed_from_the_lock(nets: Any, tmp_path: Path) -> None:
    pass_ = PruneWidth(speedup=1.4, align=4)
    assert Input.DEVICE in pass_.needs
    device = CountingDevice(lambda model: 1e6 + model.stats.macs)
    bench = bench_of(nets, nets.ResidualNet)
    result = run(bench, tmp_path / "a", pass_, timed_device=device)
    again = bench_of(nets, nets.ResidualNet)
    assert isinstance(result.model, TorchModel)
    times = [1e6 + stats.macs for stats in (source_model(again).stats, result.model.stats)]
    assert times[0] / times[1] >= 1.4
    assert result.stats["speedup"] == pytest.approx(times[0] / times[1], abs=1e-3)
    assert 2 <= len(device.timed) <= 8
    silent = CountingDevice(lambda model: 1.0)
    locked = run(again, tmp_path / "b", pass_, timed_device=silent, choice=result.choice)
    assert locked.model.digest == result.model.digest
    assert silent.timed == []
    with pytest.raises(PreconditionError, match="the lock prunes `gone`"):
        run(again, tmp_path / "c", pass_, timed_device=silent, choice={"gone": 3})


def test_targets_out_of_reach_are_errors(nets: Any, tmp_path: Path) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    with pytest.raises(PreconditionError, match=r"of the MACs are left at least, 0\.01 were"):
        run(bench, tmp_path / "a", PruneWidth(macs=0.01))
    with pytest.raises(PreconditionError, match="no width can be cut to a multiple of 64"):
        run(bench_of(nets, nets.ResidualNet), tmp_path / "b", PruneWidth(macs=0.5, align=64))
    slow = CountingDevice(lambda model: 1.0)
    bench = bench_of(nets, nets.ResidualNet)
    with pytest.raises(PreconditionError, match="gets 1 times as fast at most, 2 was asked"):
        run(bench, tmp_path / "c", PruneWidth(speedup=2.0), timed_device=slow)
    broken = CountingDevice(lambda model: 1.0, "no engine was built")
    bench = bench_of(nets, nets.ResidualNet)
    with pytest.raises(PreconditionError, match="cannot be measured: no engine was built"):
        run(bench, tmp_path / "d", PruneWidth(speedup=2.0), timed_device=broken)


def test_a_budget_takes_the_most_that_keeps_it(nets: Any, tmp_path: Path) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    whole = bench.macs()
    tuning = CountedTuning(lambda run: 1.0 - bench.macs() / whole)
    pass_ = PruneWidth(max_drop=0.5, align=4)
    result = run(bench, tmp_path / "a", pass_, tuning_data=tuning)
    assert result.budget is not None
    assert result.budget.met
    assert 0.3 < result.budget.drop.point <= 0.5
    assert result.budget.name == "max_drop.top1"
    assert result.choice
    bench = bench_of(nets, nets.ResidualNet)
    always = CountedTuning(lambda run: 0.0 if bench.macs() == whole else 1.0)
    nothing = run(bench, tmp_path / "b", pass_, tuning_data=always)
    assert not nothing.modified
    assert nothing.budget is not None
    assert nothing.budget.met


def test_a_model_without_widths_to_cut_is_an_error(nets: Any, tmp_path: Path) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    with pytest.raises(PreconditionError, match=r"no width of this model can be cut; stem: `\*`"):
        run(bench, tmp_path, PruneWidth(macs=0.5, keep=["*"]))


def test_the_extra_is_named_where_it_is_missing(
    nets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UnavailableError, match=r"pip install 'optimc\[torch\]'"):
        run(bench_of(nets, nets.ResidualNet), tmp_path, PruneWidth(macs=0.5))


def test_masks_of_earlier_passes_are_an_error(nets: Any, tmp_path: Path) -> None:
    bench = bench_of(nets, nets.ResidualNet)
    weight = bench.module.get_parameter("stem.weight")
    bench.masks["stem.weight"] = torch.ones(weight.shape, dtype=torch.bool)
    with pytest.raises(PreconditionError, match="made sparse before"):
        run(bench, tmp_path, PruneWidth(macs=0.5))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "there is none"),
        ({"macs": 0.5, "ratio": 0.5}, "both macs and ratio are there"),
        ({"macs": 1.0}, "less than 1"),
        ({"speedup": 1.0}, "greater than 1"),
        ({"macs": 0.5, "align": 0}, "greater than or equal to 1"),
        ({"macs": 0.5, "cut": []}, "at least 1 item"),
        ({"macs": 0.5, "importance": "random"}, "'l1', 'l2'"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises((ValidationError, InputError), match=told):
        PruneWidth(**options)


def test_inputs_are_asked_for_where_options_need_them() -> None:
    assert PruneWidth(macs=0.5).needs == frozenset()
    assert PruneWidth(macs=0.5, importance="taylor").needs == {Input.TRAINING}
    assert PruneWidth(max_drop=0.1).needs == {Input.TUNING}


RECIPE = """
model: {factory: "prunable_nets:ResidualNet"}
inputs: {image: {shape: [batch, 3, 16, 16], dtype: float32, range: [-3, 3]}}
dims: {batch: {min: 1, typical: 1, max: 4}}
data:
  tuning: {npz: tuning.npz, inputs: {image: images}, labels: labels}
  evaluation: {npz: evaluation.npz, inputs: {image: images}, labels: labels}
metrics: {top1: {}}
variants:
  whole: []
  small: [PASS]
targets: {ort: {runtime: onnxruntime, threads: 1}}
benchmark: {cases: [{batch: 1}], at_most: 2 s}
gate: {drop: {top1: 1.0}}
"""


@pytest.mark.long
def test_a_build_ships_the_smaller_model_and_its_lock_replays_it(
    tmp_path: Path, repository: Path
) -> None:
    shutil.copy(repository / "tests" / "passes" / "user_code" / "prunable_nets.py", tmp_path)
    rng = np.random.default_rng(0)
    for name in ("tuning", "evaluation"):
        images = rng.standard_normal((40, 3, 16, 16)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(40) % 10)
    recipe = RECIPE.replace("PASS", "{prune_width: {max_drop: 0.9, floor: 0.3}}")
    (tmp_path / "recipe.yaml").write_text(recipe)
    built = run_optimc("build", "recipe.yaml", "-o", "out", "--no-cache", cwd=tmp_path)
    assert built.code == 0, built.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    whole, small = report["results"]
    (done,) = [found for found in small["passes"] if found["pass"] == "prune_width"]
    assert done["modified"]
    assert done["verdict"] == "lossy"
    assert done["rewrites"]
    assert small["engine"]["bytes"] < 0.8 * whole["engine"]["bytes"]
    again = run_optimc("build", "recipe.yaml", "--locked", "-o", "two", "--no-cache", cwd=tmp_path)
    assert again.code == 0, again.err
    replayed = json.loads((tmp_path / "two" / "report.json").read_text())
    assert [r["engine"]["sha256"] for r in replayed["results"]] == [
        r["engine"]["sha256"] for r in report["results"]
    ]
