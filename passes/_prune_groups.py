"""Channels that can only go together, by torch-pruning's dependency graph.

Channels of one layer are bound to those of others: what a convolution gives, a batch normalisation
scales and the next convolution reads (DepGraph, Fang et al. 2023, arXiv 2301.12900). A `Group`
holds all slices of parameters along one such bound dimension, and the units in which it may be
cut: a channel, the same channel of each group of a grouped convolution, or an attention head.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from optimc.core.errors import PreconditionError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from optimc.core.workbench import Workbench

HEAD_COUNTS = (
    "num_attention_heads",
    "num_heads",
    "num_key_value_heads",
    "n_heads",
    "n_head",
    "nhead",
    "heads",
)
"""Attributes in which modules keep how many attention heads they have."""
HEAD_WIDTHS = ("all_head_size", "inner_dim", "embed_dim")
"""Attributes in which they keep the width of all heads together."""

FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError)
"""What modules raise whose sizes do not fit."""


@dataclass(frozen=True)
class Slice:
    """Indices of one dimension of a module's parameters that go together with others."""

    module: nn.Module
    """For a parameter of its own, the module that owns it."""
    leaf: str
    """The name of that parameter; empty for a module that torch-pruning knows."""
    reads: bool
    """Whether these are inputs of a convolution or a linear layer."""
    handler: Any
    """Cuts them: ``handler(module or parameter, indices)``."""
    dim: int
    indices: tuple[int, ...]
    roots: tuple[int | None, ...]
    """For each index: the channel of the group's root that it goes with."""


@dataclass
class Group:
    """Channels that are bound together, named by the first of the layers that make them."""

    name: str
    kind: str
    """`channels` of convolutions, `hidden` units of linear layers, or attention `heads`."""
    root: nn.Module
    """The layer whose channels are counted: any of those that make them."""
    slices: list[Slice]
    operators: list[Any]
    """Nodes of the dependency graph without parameters: what else these channels pass through."""
    units: list[tuple[int, ...]]
    """Channels of the root, by unit."""
    attention: str = ""
    """For heads: the module that holds their count."""
    updates: tuple[str, ...] = ()
    """Attributes of that module that say how many heads there are, or how wide they are."""
    problem: str = ""
    """Why torch-pruning cannot tell what belongs to the group."""


class _EndlessError(Exception):
    """torch-pruning follows some operators (halves that are swapped, as rotary embeddings do) round
    and round, to channels that are not there."""


_MOST_PLACES = 4_000
"""Where a dimension may be bound to; real groups have some hundred places."""


def _bounded(kind: Any) -> Any:
    """The class of torch-pruning's groups, with an end to how many places one may hold."""

    class Bounded(kind):  # type: ignore[misc]
        def add_dep(self, dep: Any, idxs: Any) -> None:
            if len(self) >= _MOST_PLACES:
                raise _EndlessError("torch-pruning finds no end to what depends on these channels")
            super().add_dep(dep, idxs)

    return Bounded


class Graph:
    """The dependency graph of the module on a bench."""

    def __init__(self, bench: Workbench, heads: Mapping[str, int]) -> None:
        """`heads` says how many attention heads modules have, by globs of their names.

        Raises PreconditionError where the module cannot be traced.
        """
        self._bench, self._heads = bench, heads
        self.names = {module: name for name, module in bench.module.named_modules()}
        self._parameters = {id(p): name for name, p in bench.module.named_parameters()}
        uses = Counter(id(p) for _, p in bench.module.named_parameters(remove_duplicate=False))
        self.tied = {key for key, count in uses.items() if count > 1}
        self._graph = self._traced()

    def _traced(self) -> Any:
        import torch
        import torch_pruning

        bench = self._bench

        def outputs(module: nn.Module, feeds: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
            return [t for t in bench.forward(feeds).values() if t.grad_fn is not None]

        graph = torch_pruning.DependencyGraph()
        try:
            with all_trained(bench.module), torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return graph.build_dependency(
                    bench.module, bench.example, forward_fn=outputs, verbose=False
                )
        except (*FAILURES, KeyError, RecursionError) as error:
            raise PreconditionError(
                f"torch-pruning cannot trace this module: {type(error).__name__}: {error}",
                fix="take prune_width out of this variant; prune_depth does not trace",
            ) from error

    def groups(self) -> Iterator[Group]:
        """All groups that a convolution or a linear layer begins."""
        from torch import nn

        seen: set[int] = set()
        kinds = (nn.modules.conv._ConvNd, nn.Linear)
        order = {module: place for place, module in enumerate(self.names)}
        for root in list(self._graph.module2node):
            if not isinstance(root, kinds) or root not in self.names or id(root) in seen:
                continue
            pruner = self._graph.get_pruner_of_module(root)
            count = int(pruner.get_out_channels(root))
            try:
                found = self._bound(root, pruner.prune_out_channels, range(count))
            except _EndlessError as error:
                yield Group(self.names[root], _kind(root), root, [], [], [], problem=str(error))
                continue
            slices = self._slices(found)
            seen |= {id(part.module) for part in slices if not part.reads}
            operators = [dep.target for dep, _ in found if dep.target.module not in self.names]
            makers = [p.module for p in slices if isinstance(p.module, kinds) and not p.reads]
            name = self.names[min([root, *makers], key=lambda module: order[module])]
            group = Group(name, _kind(root), root, slices, operators, [])
            self._set_units(group, count)
            yield group

    def cut(self, group: Group, channels: Sequence[int]) -> list[Slice]:
        """The slices that go where `channels` of the group's root do."""
        return self._slices(self._bound(group.root, group.slices[0].handler, channels))

    def _bound(self, root: nn.Module, handler: Any, channels: Sequence[int]) -> Any:
        """What torch-pruning binds to these channels. Raises _EndlessError, see there."""
        module = import_module("torch_pruning.dependency.graph")
        with patch.object(module, "Group", _bounded(module.Group)):
            return self._graph.get_pruning_group(root, handler, list(channels))

    def _slices(self, found: Any) -> list[Slice]:
        from torch import nn

        slices = []
        for item in found:
            node, handler = item.dep.target, item.dep.handler
            target, leaf = node.module, ""
            if isinstance(target, nn.Parameter):
                owner, _, leaf = self._parameters[id(target)].rpartition(".")
                target = self._bench.module.get_submodule(owner)
            elif target not in self.names:
                continue
            pruner = handler.__self__
            roots = getattr(item, "root_idxs", None) or item.idxs
            slices.append(
                Slice(
                    target,
                    leaf,
                    isinstance(target, (nn.modules.conv._ConvNd, nn.Linear))
                    and handler == pruner.prune_in_channels != pruner.prune_out_channels,
                    handler,
                    node.pruning_dim,
                    tuple(item.idxs),
                    tuple(roots),
                )
            )
        return slices

    def _set_units(self, group: Group, count: int) -> None:
        if group.kind == "hidden" and (found := self._attention(group, count)) is not None:
            group.kind = "heads"
            group.attention, heads, group.updates = found
            size = count // heads
            group.units = [tuple(range(h * size, (h + 1) * size)) for h in range(heads)]
            return
        groups = max([1, *(_groups(part.module) for part in group.slices)])
        width = count // groups
        group.units = [tuple(k + g * width for g in range(groups)) for k in range(width)]

    def _attention(self, group: Group, width: int) -> tuple[str, int, tuple[str, ...]] | None:
        """The module with the heads, their count, and the attributes that depend on it."""
        from torch import nn

        makers = [part.module for part in group.slices if not part.reads]
        linear = [module for module in makers if isinstance(module, nn.Linear)]
        for name in _above(self.names[group.root]):
            module = self._bench.module.get_submodule(name)
            if sum(self.names[maker].startswith(f"{name}.") for maker in linear) < 2:
                continue
            told = next((n for p, n in self._heads.items() if fnmatchcase(name, p)), None)
            counts = [getattr(module, key, None) for key in HEAD_COUNTS]
            heads = told or next((n for n in counts if type(n) is int and n > 1), None)
            if heads is None or width % heads:
                continue
            updates = [key for key in HEAD_COUNTS if getattr(module, key, None) == heads]
            updates += [key for key in HEAD_WIDTHS if getattr(module, key, None) == width]
            return name, heads, tuple(updates)
        return None


def _above(name: str) -> list[str]:
    """The names of the two modules around `name`, the nearest first."""
    first = name.rpartition(".")[0]
    return [part for part in (first, first.rpartition(".")[0]) if part]


def _kind(root: nn.Module) -> str:
    from torch import nn

    return "hidden" if isinstance(root, nn.Linear) else "channels"


def _groups(module: nn.Module) -> int:
    """In how many groups the module treats its channels; a depthwise one treats each alone."""
    groups = getattr(module, "groups", 1)
    return 1 if groups == getattr(module, "out_channels", 1) else int(groups)


@contextmanager
def all_trained(module: nn.Module) -> Iterator[None]:
    """Every float parameter gets gradients within: only these are traced."""
    frozen = [p for p in module.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
