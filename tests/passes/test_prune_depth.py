"""Blocks that are taken out: which ones, in which order, and what is left of the module."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from optimc.core.errors import InputError, PreconditionError
from optimc.core.passes import Input, PassResult, RewriteLog, Runner
from optimc.core.torch_model import TorchModel
from optimc.core.workbench import Workbench
from optimc.passes._prune_blocks import survey
from optimc.passes.prune_depth import PruneDepth
from optimc.testing.commands import run_optimc
from optimc.testing.pruning import (
    CountedTuning,
    CountingDevice,
    pruning_context,
    source_model,
)
from optimc.testing.workbenches import workbench

torch = pytest.importorskip("torch")


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


def images() -> Any:
    torch.manual_seed(2)
    return torch.randn(2, 3, 16, 16)


def graded(nets: Any, strengths: tuple[float, ...] = (1.0, 0.01, 0.5, 0.1)) -> Workbench:
    """Blocks that add much or little to what they are given."""

    def make() -> Any:
        torch.manual_seed(1)
        net = nets.spread(nets.ResidualNet(len(strengths)))
        with torch.no_grad():
            for block, strength in zip(net.blocks, strengths, strict=True):
                block.bn2.weight.mul_(strength)
                block.bn2.bias.mul_(strength)
        return net

    return workbench(make, {"image": images()})


def bert(nets: Any) -> Workbench:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
    )

    def make() -> Any:
        torch.manual_seed(1)
        inner = transformers.BertModel(config, add_pooling_layer=False)
        return nets.HiddenStates(inner).eval()

    return workbench(make, {"x": torch.arange(18).view(2, 9)})


def away_from(bench: Workbench) -> Callable[[Runner], float]:
    """A metric's drop: how far the outputs are from those of the whole module."""
    feeds = {name: tensor.numpy() for name, tensor in bench.example.items()}
    with torch.no_grad():
        whole = {name: t.clone().numpy() for name, t in bench.forward(bench.example).items()}

    def measure(run: Runner) -> float:
        return float(max(np.abs(run(feeds)[name] - array).max() for name, array in whole.items()))

    return measure


def run(bench: Workbench, folder: Path, pass_: PruneDepth, **given: Any) -> PassResult:
    given.setdefault("tuning_data", CountedTuning(away_from(bench)))
    context = pruning_context(pass_, bench, folder, **given)
    return pass_.run(source_model(bench), context)


def gone(result: PassResult) -> list[str]:
    return [rewrite.where for rewrite in result.rewrites]


def test_blocks_that_add_least_go_first(nets: Any, tmp_path: Path) -> None:
    bench = graded(nets)
    whole = bench.stats()
    result = run(bench, tmp_path, PruneDepth(blocks=2))
    assert gone(result) == ["blocks.1", "blocks.3"]
    assert isinstance(result.model, TorchModel)
    assert result.model.structure.skipped == ("blocks.1", "blocks.3")
    assert result.model.stats.macs < 0.6 * whole.macs
    assert result.stats["macs after"] == result.model.stats.macs
    assert result.choice == ["blocks.1", "blocks.3"]
    assert float(result.stats["blocks.1 alone"]) < float(result.stats["blocks.3 alone"])
    # What is stored brings a fresh module to the same state, and computes the same.
    again = graded(nets)
    assert result.model.folder is not None
    again.restore(result.model.folder, result.model.structure)
    with torch.no_grad():
        wanted, got = (b.forward(b.example)["logits"] for b in (bench, again))
        x = again.module.get_submodule("stem")(again.example["image"])
        for number in (0, 2):
            x = graded(nets).module.get_submodule(f"blocks.{number}")(x)
        by_hand = again.module.get_submodule("head")(x.mean((2, 3)))
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(got, by_hand)


def test_what_is_left_is_ranked_anew(nets: Any, tmp_path: Path) -> None:
    def undoing() -> Any:
        torch.manual_seed(1)
        net = nets.spread(nets.ResidualNet(3))
        with torch.no_grad():
            for block in net.blocks:
                block.bn2.weight.zero_()
                block.bn2.bias.zero_()
            # The first two undo each other: neither can go alone, the second is nothing without.
            net.stem.weight.zero_()
            net.stem.bias.fill_(5.0)
            net.blocks[0].bn2.bias.fill_(2.0)
            net.blocks[1].bn2.bias.fill_(-2.0)
            net.blocks[2].bn2.bias.fill_(1.0)
        return net

    bench = workbench(undoing, {"image": images()})
    assert set(gone(run(bench, tmp_path / "a", PruneDepth(blocks=2)))) == {"blocks.2", "blocks.1"}
    # Ranked once, too, but with fewer questions.
    counts = []
    for rerank in (True, False):
        bench = graded(nets)
        tuning = CountedTuning(away_from(bench))
        pass_ = PruneDepth(blocks=2, rerank=rerank)
        result = run(bench, tmp_path / str(rerank), pass_, tuning_data=tuning)
        assert gone(result) == ["blocks.1", "blocks.3"]
        counts.append(tuning.asked)
    assert counts == [4 + 3, 4]


def test_transformer_layers_are_found_and_go(nets: Any, tmp_path: Path) -> None:
    bench = bert(nets)
    result = run(bench, tmp_path, PruneDepth(blocks=1))
    assert len(gone(result)) == 1
    assert gone(result)[0].startswith("inner.encoder.layer.")
    with torch.no_grad():
        assert bench.forward(bench.example)["states"].shape == (2, 9, 48)


def test_only_blocks_that_pass_on_their_shape_are_found(nets: Any) -> None:
    def make() -> Any:
        torch.manual_seed(1)
        net = nets.ResidualNet(2)
        down = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, 2, 1), torch.nn.ReLU())
        holder = torch.nn.Module()
        holder.inner = down
        holder.forward = lambda x: down(x)  # type: ignore[method-assign]
        net.blocks.append(holder)
        return net.eval()

    told = survey(workbench(make, {"image": images()}), {}, among=[], keep=["blocks.0"])
    assert told["blocks"] == ["blocks.1"]
    assert {where: reason for _, where, reason in told["refused"]} == {
        "blocks.0": "`blocks.0` in keep names it",
        "blocks.2": "what it gives has not the shape and type of its first input",
    }


def test_among_names_other_modules(nets: Any, tmp_path: Path) -> None:
    told = survey(graded(nets), {}, among=["blocks.2.conv*", "head"], keep=[])
    assert told["blocks"] == []
    reasons = {where: reason for _, where, reason in told["refused"]}
    assert "shape and type" in reasons["blocks.2.conv1"]


def test_patterns_that_name_nothing_are_errors(nets: Any, tmp_path: Path) -> None:
    def said(**options: Any) -> str:
        with pytest.raises(InputError) as caught:
            run(graded(nets), tmp_path, PruneDepth(blocks=1, **options))
        return str(caught.value)

    assert "among: `layers.*` names no module" in said(among=["blocks.*", "layers.*"])
    assert "`block.1` names no block" in said(keep=["block.1"])
    assert "did you mean `blocks.1`" in said(keep=["block.1"])
    # A part of a block is no block: it would not keep it.
    assert "names no block" in said(keep=["blocks.0.conv1"])


def test_patterns_may_name_what_a_pass_before_took_out(nets: Any) -> None:
    from optimc.passes._prune_modules import find_layers

    bench = graded(nets)
    bench.skip("blocks.1")
    told = survey(bench, {}, among=[], keep=["blocks.1"])
    assert told["blocks"] == ["blocks.0", "blocks.2", "blocks.3"]
    layers = find_layers(bench, {}, keep=["blocks.1.conv1"], where="prune_n_m")
    assert "blocks.1.conv1" not in [layer["name"] for layer in layers]
    with pytest.raises(InputError, match=r"`blocks\.1\.conv7` names no layer"):
        find_layers(bench, {}, keep=["blocks.1.conv7"], where="prune_n_m")


@pytest.mark.parametrize("target", ["macs", "parameters"])
def test_blocks_go_until_a_share_is_left(nets: Any, tmp_path: Path, target: str) -> None:
    bench = graded(nets)
    whole = getattr(bench.stats(), target)
    result = run(bench, tmp_path, PruneDepth(**{target: 0.6}))  # type: ignore[arg-type]
    assert gone(result) == ["blocks.1", "blocks.3"]
    assert isinstance(result.model, TorchModel)
    assert getattr(result.model.stats, target) <= 0.6 * whole


def test_a_speedup_is_timed_after_each_block(nets: Any, tmp_path: Path) -> None:
    device = CountingDevice(lambda model: model.stats.macs)
    pass_ = PruneDepth(speedup=1.5)
    assert Input.DEVICE in pass_.needs
    result = run(graded(nets), tmp_path, pass_, timed_device=device)
    assert gone(result) == ["blocks.1", "blocks.3"]
    assert [model.structure.skipped for model in device.timed] == [
        ("blocks.1",),
        ("blocks.1", "blocks.3"),
    ]
    assert float(result.stats["speedup"]) >= 1.5


def test_a_budget_stops_before_it_is_broken(nets: Any, tmp_path: Path) -> None:
    bench = graded(nets)
    alone = float(run(graded(nets), tmp_path / "a", PruneDepth(blocks=1)).stats["blocks.1 alone"])
    result = run(bench, tmp_path / "b", PruneDepth(max_drop=alone * 1.5))
    assert gone(result) == ["blocks.1"]
    assert result.budget is not None
    assert result.budget.met
    nothing = run(graded(nets), tmp_path / "c", PruneDepth(max_drop=alone / 2))
    assert not nothing.modified
    assert nothing.budget is not None
    assert nothing.budget.drop.point == 0.0


def test_the_lock_is_replayed(nets: Any, tmp_path: Path) -> None:
    first = run(graded(nets), tmp_path / "a", PruneDepth(blocks=2))
    bench = graded(nets)
    tuning = CountedTuning(lambda run: 0.0)
    locked = run(
        bench, tmp_path / "b", PruneDepth(blocks=2), choice=first.choice, tuning_data=tuning
    )
    assert locked.model.digest == first.model.digest
    assert tuning.asked == 0
    assert locked.choice == first.choice
    with pytest.raises(PreconditionError, match="the lock prunes `gone`, which is no block"):
        run(graded(nets), tmp_path / "c", PruneDepth(blocks=1), choice=["gone"])


def test_without_a_tuning_split_outputs_on_training_samples_rank(nets: Any, tmp_path: Path) -> None:
    from optimc.calibration.dataset import Batch
    from optimc.calibration.sample_store import store_samples

    class Images:
        """Enough of a data set for the store."""

        where = "here"
        samples_per_label = 1
        has_labels = False

        def __len__(self) -> int:
            return 24

        def batches(self, size: int) -> Any:
            rng = np.random.default_rng(0)
            yield Batch({"image": rng.standard_normal((24, 3, 16, 16)).astype("f4")}, None, 0)

    class Stored:
        """A training split."""

        digest = "test"

        def stored(self) -> Path:
            return tmp_path / "samples"

    store_samples(Images(), tmp_path / "samples")  # type: ignore[arg-type]
    given = {"tuning_data": None, "training_data": Stored()}
    result = run(graded(nets), tmp_path / "a", PruneDepth(blocks=2), **given)
    assert gone(result) == ["blocks.1", "blocks.3"]
    with pytest.raises(PreconditionError, match="nothing is there to rank blocks by"):
        run(graded(nets), tmp_path / "b", PruneDepth(blocks=1), tuning_data=None)


def test_a_limit_leaves_later_blocks_in(nets: Any, tmp_path: Path) -> None:
    result = run(graded(nets), tmp_path / "a", PruneDepth(blocks=2), log=RewriteLog(1))
    assert gone(result) == ["blocks.1"]
    nothing = run(graded(nets), tmp_path / "b", PruneDepth(blocks=2), log=RewriteLog(0))
    assert not nothing.modified


def test_masks_of_blocks_that_stay_survive_the_trials(nets: Any, tmp_path: Path) -> None:
    bench = graded(nets)
    for number in range(4):
        weight = bench.module.get_parameter(f"blocks.{number}.conv1.weight")
        bench.masks[f"blocks.{number}.conv1.weight"] = torch.ones_like(weight, dtype=torch.bool)
    run(bench, tmp_path, PruneDepth(blocks=2))
    assert set(bench.masks) == {"blocks.0.conv1.weight", "blocks.2.conv1.weight"}


def test_targets_out_of_reach_are_errors(nets: Any, tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="only 4 blocks can be left out, 5 were asked for"):
        run(graded(nets), tmp_path / "a", PruneDepth(blocks=5))
    with pytest.raises(PreconditionError, match=r"of the MACs are left at least, 0\.01 were"):
        run(graded(nets), tmp_path / "b", PruneDepth(macs=0.01))
    with pytest.raises(PreconditionError, match="no block of this model can be left out"):
        run(graded(nets), tmp_path / "c", PruneDepth(blocks=1, keep=["blocks.*"]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "there is none"),
        ({"macs": 0.5, "blocks": 2}, "both macs and blocks are there"),
        ({"blocks": 0}, "greater than or equal to 1"),
        ({"max_drop": -0.1}, "greater than or equal to 0"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        PruneDepth(**options)


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
    recipe = RECIPE.replace("PASS", "{prune_depth: {blocks: 1}}")
    (tmp_path / "recipe.yaml").write_text(recipe)
    built = run_optimc("build", "recipe.yaml", "-o", "out", "--no-cache", cwd=tmp_path)
    assert built.code == 0, built.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    whole, small = report["results"]
    (done,) = [found for found in small["passes"] if found["pass"] == "prune_depth"]
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
