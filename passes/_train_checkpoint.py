"""What a training run leaves behind to go on from: tensors (safetensors) and plain data (JSON).

Each checkpoint is a folder that takes its name only when it is whole; older ones go after that.
Nothing in it can run code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.files import atomic_folder

if TYPE_CHECKING:
    import torch

_TENSORS, _RECORD = "tensors.safetensors", "record.json"
_PREFIX = "epoch-"


@dataclass(frozen=True)
class Checkpoint:
    """The state after an epoch."""

    tensors: Mapping[str, torch.Tensor]
    record: Mapping[str, Any]


def write_checkpoint(
    folder: Path, key: str, epoch: int, tensors: Mapping[str, torch.Tensor], record: Any
) -> None:
    """Writes the state after `epoch` epochs of the run that `key` names; older ones are removed."""
    from safetensors.torch import save_file

    path = folder / f"{_PREFIX}{epoch:05d}"
    with atomic_folder(path) as temporary:
        plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        save_file({n: t.contiguous() for n, t in sorted(plain.items())}, temporary / _TENSORS)
        text = json.dumps({"key": key, "record": record}, sort_keys=True)
        (temporary / _RECORD).write_text(text, encoding="utf-8")
    for other in folder.glob(f"{_PREFIX}*"):
        if other != path:
            shutil.rmtree(other, ignore_errors=True)


def read_checkpoint(folder: Path, key: str) -> Checkpoint | None:
    """The newest whole checkpoint of the run that `key` names; None where there is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for path in sorted(folder.glob(f"{_PREFIX}*"), reverse=True):
        try:
            content = json.loads((path / _RECORD).read_text(encoding="utf-8"))
            if content["key"] == key:
                return Checkpoint(load_file(path / _TENSORS), content["record"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            # Cut off by a power failure, or by hand: the training starts from the one before.
            continue
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's state by ``<parameter's number>/<name>``."""
    import torch

    return {
        f"{number}/{name}": value
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Puts back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
