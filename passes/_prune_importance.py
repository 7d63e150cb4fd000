"""How much each channel of a group matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimc.passes._prune_groups import Group, Slice

if TYPE_CHECKING:
    import torch


def unit_scores(group: Group, how: str, taylor: Mapping[int, torch.Tensor]) -> list[float]:
    """The importance of each unit of `group`: the mean over its channels.

    `l1`, `l2`: norms of the filters that make the channels (Li et al. 2017, arXiv 1608.08710).
    `group_norm`: the L2 norm of all weights that are bound together, those that read the channels
    too (Fang et al. 2023, arXiv 2301.12900, section 3.3). `bn_scale`: the magnitude of the scales
    of batch normalisation (Liu et al. 2017, arXiv 1708.06519). `taylor`: the squared sum of weight
    times gradient over each filter (Molchanov et al. 2019, arXiv 1906.10771); what
    `_prune_taylor.taylor_scores` gave.
    """
    import torch

    count = 1 + max(channel for unit in group.units for channel in unit)
    total = torch.zeros(count, dtype=torch.float64)
    for part in group.slices:
        values = _values(part, how, taylor)
        if values is None:
            continue
        roots = torch.tensor([-1 if root is None else root for root in part.roots])
        known = (roots >= 0) & (roots < count)
        chosen = values[torch.tensor(part.indices)][known]
        total.index_add_(0, roots[known], chosen)
    if how in ("l2", "group_norm"):
        total = total.sqrt()
    return [float(total[list(unit)].mean()) for unit in group.units]


def has_scale(group: Group) -> bool:
    """Whether batch normalisation scales the group's channels."""
    from torch import nn

    return any(
        isinstance(p.module, nn.modules.batchnorm._BatchNorm) and p.module.affine
        for p in group.slices
    )


def _values(part: Slice, how: str, taylor: Mapping[int, torch.Tensor]) -> torch.Tensor | None:
    """What each index of the slice's whole dimension adds to its channel's sum."""
    from torch import nn

    module: Any = part.module
    scaled = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    if how == "bn_scale" or (scaled and how == "group_norm"):
        if not scaled:
            return None
        scale: torch.Tensor = module.weight.detach().double()
        return scale.abs() if how == "bn_scale" else scale.square()
    if part.leaf or not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
        return None
    if part.reads and how != "group_norm":
        return None
    if how == "taylor":
        return taylor[id(module.weight)]
    weight = by_channel(module, module.weight.detach(), reads=part.reads)
    if how == "l1":
        return weight.abs().sum(1)
    return weight.square().sum(1)


def by_channel(module: Any, weight: torch.Tensor, *, reads: bool) -> torch.Tensor:
    """The weights as one row for each channel that the layer makes or reads; float64."""
    weight = weight.double()
    groups = int(getattr(module, "groups", 1))
    if bool(getattr(module, "transposed", False)) == reads:
        return weight.flatten(1)
    # [groups, of the first axis, of the second, ...]: a group's channels follow one another.
    parts = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return parts.flatten(0, 1).flatten(1)
