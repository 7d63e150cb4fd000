"""Workbenches for tests of torch passes' functions: no worker, no recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from optimc.core.workbench import Workbench
from optimc.frontends._torch_sources import Described, ModuleModel

if TYPE_CHECKING:
    import torch


def workbench(
    make: Callable[[], torch.nn.Module], example: Mapping[str, torch.Tensor]
) -> Workbench:
    """A bench with the module that `make` gives, which is also called for the source."""
    shapes: list[tuple[str, str, list[int | str]]] = [
        (name, str(tensor.dtype).removeprefix("torch."), ["batch", *tensor.shape[1:]])
        for name, tensor in example.items()
    ]

    def opened(kind: str, options: Mapping[str, Any]) -> ModuleModel:
        return ModuleModel(make(), Described(list(shapes)))

    return Workbench(opened("", {}), example, opened)
