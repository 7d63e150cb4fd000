"""The worker's side of `prune_width`: finds what can be cut, proves it, and cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from optimc.core import progress
from optimc.core.errors import CellError, PreconditionError
from optimc.core.workbench import Workbench
from optimc.passes._patterns import check_modules
from optimc.passes._prune_cut import (
    TOLERANCE,
    Cut,
    difference,
    failure,
    head_attributes,
    outputs,
    unread,
)
from optimc.passes._prune_groups import FAILURES, Graph, Group, Slice
from optimc.passes._prune_importance import has_scale, unit_scores

if TYPE_CHECKING:
    import numpy as np
    import torch

_surgeons: WeakKeyDictionary[Workbench, _Surgeon] = WeakKeyDictionary()


def survey(
    bench: Workbench,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    *,
    importance: str,
    heads: Mapping[str, int],
    keep: Sequence[str],
    kinds: Sequence[str],
    seed: int,
    samples: str | None = None,
) -> dict[str, Any]:
    """What can be cut: ``groups`` with their units' importance, and ``refused`` with reasons.

    `samples` is the folder of the stored training samples, for `taylor`. Raises InputError for
    patterns that name no module.
    """
    if bench.masks:
        raise PreconditionError(
            f"`{next(iter(bench.masks))}` was made sparse before: its mask has the old width",
            fix="put prune_width before the passes that make weights sparse",
        )
    check_modules(bench, "keep", keep, where="prune_width")
    check_modules(bench, "heads", list(heads), where="prune_width")
    surgeon = _surgeons[bench] = _Surgeon(bench, heads, seed)
    for number, group in enumerate(surgeon.found):
        progress.tell(number / len(surgeon.found), f"proving the cut of {group.name}")
        surgeon.judge(group, keep, kinds, importance)
    taylor: Mapping[int, torch.Tensor] = {}
    if importance == "taylor":
        from optimc.passes._prune_taylor import taylor_scores

        assert samples is not None
        taylor = taylor_scores(bench, samples, seed)
    return {
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "unit": len(group.units[0]),
                "scores": unit_scores(group, importance, taylor),
            }
            for group in surgeon.groups.values()
        ],
        "refused": surgeon.refused,
        "figures": figures(bench),
    }


def cut(
    bench: Workbench,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    *,
    removed: Mapping[str, Sequence[int]],
) -> dict[str, int]:
    """Takes units out of groups, by the group's name, from the module as it came in.

    Gives the module's figures then. Raises CellError where all cuts together are not what each of
    them was proven to be.
    """
    _surgeons[bench].cut(removed)
    return figures(bench)


def figures(bench: Workbench) -> dict[str, int]:
    """What targets are given in: MACs of one sample, parameters and their bytes."""
    stats = bench.stats()
    return {"macs": stats.macs, "parameters": stats.parameters, "bytes": stats.bytes}


class _Surgeon:
    """The groups of one module, and the cut that it has now."""

    def __init__(self, bench: Workbench, heads: Mapping[str, int], seed: int) -> None:
        import torch

        self._bench = bench
        self._graph = Graph(bench, heads)
        self._random = torch.Generator().manual_seed(seed)
        self._cut: Cut | None = None
        order = {name: place for place, name in enumerate(self._graph.names.values())}
        self.found = sorted(self._graph.groups(), key=lambda group: order[group.name])
        self.groups: dict[str, Group] = {}
        """Those that can be cut."""
        self.refused: list[tuple[str, str, str]] = []

    def judge(self, group: Group, keep: Sequence[str], kinds: Sequence[str], how: str) -> None:
        """Takes `group` in where a cut of it is proven; else notes why not."""
        reason = self._left_alone(group, keep, kinds, how) or self._disproven(group)
        if reason is None:
            self.groups[group.name] = group
        else:
            self.refused.append((f"prune {group.kind}", group.name, reason))

    def _left_alone(
        self, group: Group, keep: Sequence[str], kinds: Sequence[str], how: str
    ) -> str | None:
        if group.problem:
            return group.problem
        names = [self._graph.names[part.module] for part in group.slices if not part.reads]
        for pattern in keep:
            kept = next((name for name in names if _named(name, pattern)), None)
            if kept is not None:
                return f"`{pattern}` in keep names {kept}, which has the same channels"
        if group.kind not in kinds:
            return f"`cut` does not name {group.kind}"
        if how == "bn_scale" and not has_scale(group):
            return "no batch normalisation scales these channels: bn_scale cannot rank them"
        if any(root is None for part in group.slices for root in part.roots):
            return "the channels are shared in a way that torch-pruning does not follow"
        if any(self._is_tied(part) for part in group.slices):
            return "a parameter is shared with another layer"
        if not any(part.reads for part in group.slices):
            return "the model gives these out, its interface stays as it is"
        return "there is only one of them" if len(group.units) < 2 else None

    def _is_tied(self, part: Slice) -> bool:
        return any(id(p) in self._graph.tied for p in part.module.parameters(recurse=False))

    def _disproven(self, group: Group) -> str | None:
        """Why a cut of about half of the units, drawn by chance, is not what it should be."""
        import torch

        count = len(group.units)
        drawn = torch.randperm(count, generator=self._random)[: count // 2].tolist()
        removed = self._graph.cut(group, _channels(group, drawn))
        with unread(removed):
            wanted = outputs(self._bench)
        # A module may or may not mean the width of its heads by `embed_dim`: both are tried.
        found = group.updates
        for updates in (found, tuple(key for key in found if key != "embed_dim")):
            group.updates = updates
            apart, error = self._trial(group, removed, count - len(drawn), wanted)
            if error is None and apart <= TOLERANCE:
                return None
        return _explained(group, apart, error)

    def _trial(
        self,
        group: Group,
        removed: Sequence[Slice],
        kept: int,
        wanted: Mapping[str, torch.Tensor],
    ) -> tuple[float, str | None]:
        try:
            trial = Cut(removed)
        except FAILURES as error:
            return float("inf"), failure(error)
        try:
            self._set_heads(trial, group, kept)
            return difference(wanted, outputs(self._bench)), None
        except FAILURES as error:
            return float("inf"), failure(error)
        finally:
            trial.undo()

    def _set_heads(self, trial: Cut, group: Group, kept: int) -> None:
        if group.kind == "heads":
            module = self._bench.module.get_submodule(group.attention)
            trial.set_attributes(module, head_attributes(group, kept))

    def cut(self, removed: Mapping[str, Sequence[int]]) -> None:
        """See the module's function."""
        if self._cut is not None:
            self._cut.undo()
        slices = [
            part
            for name, units in removed.items()
            if units
            for part in self._graph.cut(self.groups[name], _channels(self.groups[name], units))
        ]
        with unread(slices):
            wanted = outputs(self._bench)
        with self._bench.restructuring():
            self._cut = Cut(slices)
            for name, units in removed.items():
                group = self.groups[name]
                self._set_heads(self._cut, group, len(group.units) - len(units))
        apart = difference(wanted, outputs(self._bench))
        if apart > TOLERANCE:
            raise CellError(
                f"cut together, these {len(removed)} groups change the outputs by {apart:.2g} of"
                " their scale, though each alone is proven",
                fix="name some of them in `keep`",
            )


def _channels(group: Group, units: Sequence[int]) -> list[int]:
    return sorted(channel for unit in units for channel in group.units[unit])


def _named(name: str, pattern: str) -> bool:
    """Whether the glob names the module or one that it is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _explained(group: Group, apart: float, error: str | None) -> str:
    """Why a group cannot be cut, as far as its operators tell."""
    from torch import nn

    for part in group.slices:
        if isinstance(part.module, (nn.LayerNorm, nn.GroupNorm)):
            kind = type(part.module).__name__
            return f"{kind} normalises over these channels: the others change without some of them"
    if any(_pads_channels(node, group) for node in group.operators):
        return (
            "a shortcut pads these channels with zeros (option A), so that those of one stage have"
            " other places in the next; widths inside of blocks are cut instead"
        )
    if any("_OutputOp" in str(node) for node in group.operators):
        return "the model gives these out, its interface stays as it is"
    if error is not None:
        return f"the module does not run without some of them: {error}"
    return (
        "without some of them the outputs are not what they are where nothing reads those: they"
        f" are apart by {apart:.2g} of their scale"
    )


def _pads_channels(node: Any, group: Group) -> bool:
    gradient = node.grad_fn
    if gradient is None or "ConstantPad" not in gradient.name():
        return False
    pads = [int(n) for n in getattr(gradient, "_saved_pad", ())]
    spatial = max(group.root.get_parameter("weight").dim() - 2, 0)
    return any(pads[2 * spatial : 2 * spatial + 2])
