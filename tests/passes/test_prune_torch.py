"""`prune_magnitude` and `prune_n_m` on modules: masks, what training keeps, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from optimc.core.errors import InputError, PreconditionError
from optimc.core.model import Signature
from optimc.core.passes import Pass, PassContext, PassResult, RewriteLog
from optimc.core.patterns import holds_pattern
from optimc.core.torch_model import Structure, TorchModel, TorchStats, write_header
from optimc.passes.prune_magnitude import PruneMagnitude
from optimc.passes.prune_n_m import PruneNM
from optimc.testing.workbenches import workbench

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

if TYPE_CHECKING:
    from optimc.core.workbench import Workbench


@dataclass
class Reply:
    data: Any


class HereWorkshop:
    """A workshop in this process."""

    def __init__(self, bench: Workbench, folder: Path) -> None:
        self._bench, self._folder = bench, folder

    def __enter__(self) -> HereWorkshop:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def call(self, function: Any, arrays: Any = None, *, timeout: Any = None, **data: Any) -> Reply:
        return Reply(function(self._bench, arrays or {}, **data))

    def model(self) -> TorchModel:
        folder = self._folder / "module"
        folder.mkdir(exist_ok=True)
        self._bench.write_tensors(folder)
        stats = TorchStats(1, 1, 1, 1)
        write_header(folder, "here", Signature((), ()), stats, Structure())
        return TorchModel("here", Signature((), ()), stats, folder)


class Small(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    """A convolution, a depthwise one, tied layers, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.body = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.one = torch.nn.Linear(8, 8)
        self.two = torch.nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.table = torch.nn.Embedding(4, 8)
        self.head = torch.nn.Linear(8, 4, bias=False)
        self.head.weight = self.table.weight

    def forward(self, image: Any) -> Any:
        h = self.body(torch.relu(self.depthwise(torch.relu(self.stem(image)))))
        h = self.two(torch.relu(self.one(h.mean((2, 3)))))
        return self.head(h + self.table.weight[0])


def small() -> Workbench:
    return workbench(Small, {"image": torch.zeros(2, 3, 8, 8)})


def run(
    pass_: Pass, bench: Workbench, folder: Path, limit: int | None = None
) -> tuple[PassResult, RewriteLog]:
    log = RewriteLog(limit)
    context = PassContext(
        reads=pass_.needs,
        log=log,
        seed=0,
        workspace=folder,
        open_workshop=lambda model: HereWorkshop(bench, folder),  # type: ignore[arg-type,return-value]
    )
    source = TorchModel("here", Signature((), ()), TorchStats(1, 1, 1, 1))
    return pass_.run(source, context), log


def zeros(bench: Workbench) -> Mapping[str, float]:
    return {
        name: float((p == 0).float().mean())
        for name, p in bench.module.named_parameters()
        if p.dim() > 1
    }


def test_each_layer_gets_its_mask(tmp_path: Path) -> None:
    bench = small()
    result, log = run(PruneMagnitude(share=0.5), bench, tmp_path)
    assert set(bench.masks) == {"stem.weight", "depthwise.weight", "body.weight", "one.weight"}
    for name, mask in bench.masks.items():
        parameter = bench.module.get_parameter(name)
        assert torch.equal(parameter != 0, mask)
        assert zeros(bench)[name] == 0.5
    assert [r.where for r in result.rewrites] == ["stem", "depthwise", "body", "one"]
    assert result.modified
    assert result.stats["zeros"] == sum(int((~mask).sum()) for mask in bench.masks.values())
    (refusal,) = log.refusals
    assert refusal.where == "table"
    assert "a layer of another kind" in refusal.reason


def test_masks_hold_while_an_optimizer_steps(tmp_path: Path) -> None:
    bench = small()
    run(PruneNM(), bench, tmp_path)
    optimizer = torch.optim.SGD(bench.module.parameters(), lr=0.01, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    before = bench.module.get_parameter("body.weight").detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        feeds = {"image": torch.randn(4, 3, 8, 8, generator=generator)}
        torch.stack([o.square().mean() for o in bench.forward(feeds).values()]).sum().backward()
        optimizer.step()
        bench.apply_masks()
    for name in ("body.weight", "one.weight"):
        array = bench.module.get_parameter(name).detach().numpy()
        assert holds_pattern(array != 0, 1, 2, 4)
    assert not torch.equal(bench.module.get_parameter("body.weight"), before)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    bench = small()
    for pass_ in (PruneMagnitude(share=0.6), PruneNM()):
        run(pass_, bench, tmp_path)
        again, log = run(pass_, bench, tmp_path)
        assert not again.modified
        assert not log.rewrites


def test_what_was_cut_stays_cut(tmp_path: Path) -> None:
    bench = small()
    for step in (1, 2):
        run(PruneMagnitude(share=0.75, step=step, steps=2), bench, tmp_path)
        with torch.no_grad():
            bench.module.get_parameter("one.weight").mul_(-2)
    assert zeros(bench)["one.weight"] == 0.75
    run(PruneNM(), bench, tmp_path)
    assert zeros(bench)["one.weight"] >= 0.75
    assert holds_pattern(bench.masks["one.weight"].numpy(), 1, 2, 4)


def test_the_limit_stops_after_the_first_layers(tmp_path: Path) -> None:
    bench = small()
    run(PruneMagnitude(share=0.5, scope="global"), bench, tmp_path, limit=1)
    assert set(bench.masks) == {"stem.weight"}
    whole = small()
    run(PruneMagnitude(share=0.5, scope="global"), whole, tmp_path)
    assert torch.equal(whole.masks["stem.weight"], bench.masks["stem.weight"])


def test_layers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, log = run(PruneNM(keep=["bo*"]), small(), tmp_path)
    reasons = {refusal.where: refusal.reason for refusal in log.refusals}
    assert reasons["stem"] == "its 3 input channels are fewer than a group of 4"
    assert "there are no neighbours" in reasons["depthwise"]
    assert reasons["body"] == "kept as it is by `bo*`"


def test_bad_patterns_and_nothing_to_do_are_errors(tmp_path: Path) -> None:
    for pass_ in (PruneNM(keep=["bodi"]), PruneMagnitude(share=0.5, keep=["bo*", "bodi"])):
        with pytest.raises(InputError) as caught:
            run(pass_, small(), tmp_path)
        assert "keep: `bodi` names no layer" in caught.value.what
        assert "did you mean `body`?" in str(caught.value.fix)
        assert caught.value.exit_code == 2
    with pytest.raises(PreconditionError, match="no layer of this model can be pruned"):
        run(PruneNM(keep=["*"]), small(), tmp_path)


def test_both_levels_cut_the_same_weights(tmp_path: Path) -> None:
    from optimc.passes._prune_masks import largest_in_each

    bench = small()
    before = bench.module.get_parameter("stem.weight").detach().numpy().copy()
    run(PruneMagnitude(share=0.3), bench, tmp_path)
    wanted = largest_in_each({"w": before}, 0.3)["w"]
    assert np.array_equal(bench.masks["stem.weight"].numpy(), wanted)
