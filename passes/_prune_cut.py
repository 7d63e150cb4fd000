"""Cutting slices out of a module, and putting them back; the proof that a cut is one.

The proof: a module without some channels must compute what the whole one does when nothing reads
those channels, that is when the weights of all layers that read them are zero there. Where a
dependency was not seen (channels that a shortcut pads, a reshape with a fixed width, a
normalisation over all of them), the two differ, or the smaller one does not run at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optimc.passes._prune_groups import HEAD_COUNTS, Group, Slice

if TYPE_CHECKING:
    import torch
    from torch import nn

    from optimc.core.workbench import Workbench

TOLERANCE = 1e-4
"""How far a proof's outputs may be apart, relative to the outputs' scale: float32 sums in another
order. Two paths that differ in a channel are apart by more than a hundred times that."""


class Cut:
    """Takes `slices` out of their modules, until `undo`."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        self._saved: dict[nn.Module, tuple[dict[str, Any], ...]] = {}
        try:
            self._apply(slices)
        except BaseException:
            self.undo()
            raise

    def _apply(self, slices: Sequence[Slice]) -> None:
        # Several groups may cut one dimension (concatenations): all indices go at once.
        import torch

        merged: dict[tuple[int, str, bool], tuple[Slice, set[int]]] = {}
        for part in slices:
            key = (id(part.module), part.leaf, part.reads)
            merged.setdefault(key, (part, set()))[1].update(part.indices)
        with torch.no_grad():
            for part, indices in merged.values():
                self._save(part.module)
                frozen = {n for n, p in part.module.named_parameters() if not p.requires_grad}
                if part.leaf:
                    part.handler.__self__.pruning_dim = part.dim
                    new = part.handler(part.module.get_parameter(part.leaf), sorted(indices))
                    setattr(part.module, part.leaf, new)
                else:
                    part.handler(part.module, sorted(indices))
                for name in frozen:
                    part.module.get_parameter(name).requires_grad_(False)

    def _save(self, module: nn.Module) -> None:
        # Before the first change only.
        if module not in self._saved:
            state = (vars(module), module._parameters, module._buffers)
            self._saved[module] = tuple(dict(part) for part in state)

    def set_attributes(self, module: nn.Module, values: Mapping[str, int]) -> None:
        """Sets attributes of `module` until `undo`."""
        self._save(module)
        for key, value in values.items():
            setattr(module, key, value)

    def undo(self) -> None:
        """Puts everything back: the very same parameters."""
        for module, (attributes, parameters, buffers) in self._saved.items():
            vars(module).update(attributes)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        self._saved.clear()


def head_attributes(group: Group, kept: int) -> dict[str, int]:
    """The attributes of the attention of `group` with `kept` heads."""
    width = len(group.units[0])
    return {key: kept if key in HEAD_COUNTS else kept * width for key in group.updates}


@contextmanager
def unread(slices: Sequence[Slice]) -> Iterator[None]:
    """Within, the weights of layers that read the slices are zero there."""
    import torch

    saved = []
    with torch.no_grad():
        for part in slices:
            if not part.reads:
                continue
            weight = part.module.get_parameter("weight")
            saved.append((weight, weight.detach().clone()))
            _zero(part.module, weight, part.indices)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in reversed(saved):
                weight.copy_(before)


def _zero(module: nn.Module, weight: torch.Tensor, indices: Sequence[int]) -> None:
    groups = int(getattr(module, "groups", 1))
    if getattr(module, "transposed", False):
        weight[list(indices)] = 0.0
        return
    inside, outside = weight.shape[1], weight.shape[0] // groups
    for index in indices:
        group, local = divmod(index, inside)
        weight[group * outside : (group + 1) * outside, local] = 0.0


def outputs(bench: Workbench) -> dict[str, torch.Tensor]:
    """The outputs for the example, in eval mode."""
    import torch

    bench.module.eval()
    with torch.no_grad():
        return {name: tensor.clone() for name, tensor in bench.forward(bench.example).items()}


def difference(wanted: Mapping[str, torch.Tensor], got: Mapping[str, torch.Tensor]) -> float:
    """The largest difference, relative to each output's scale; infinite for other shapes."""
    worst = 0.0
    for name, tensor in wanted.items():
        other = got.get(name)
        if other is None or other.shape != tensor.shape:
            return float("inf")
        scale = max(float(tensor.double().abs().max()), 1e-12) if tensor.numel() else 1.0
        apart = float((tensor.double() - other.double()).abs().max()) if tensor.numel() else 0.0
        worst = max(worst, apart / scale if apart == apart else float("inf"))
    return worst


def failure(error: BaseException) -> str:
    """An error of the user's module in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
