"""Checkpoints: tensors from a file into a module, with every key accounted for."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError

if TYPE_CHECKING:
    import torch

_SHOWN = 5


def load_weights(
    module: torch.nn.Module, file: Path, *, key: str | None, prefix: str | None
) -> list[str]:
    """Loads the checkpoint `file` into `module`, strictly; tensors stay mapped where they can.

    `key` names the entry of the file that holds the tensors (`a.b` the entry `b` of `a`). With
    `prefix`, the tensors whose names begin with it are taken, and it is taken off. Returns notes:
    what was left out. Raises InputError that lists the keys that are missing, unexpected, or of
    another shape or kind.
    """
    tensors = _tensors(_read(file), key, file)
    own = module.state_dict(keep_vars=True)
    found, notes = _chosen(tensors, own, prefix, file)
    found = {name: t for name, t in found.items() if name in own or not _is_counter(name)}
    tied = _add_tied(found, own)
    problems = _problems(found, own)
    if problems:
        raise InputError(
            "the weights do not fit the module: " + "; ".join(problems),
            where=str(file),
            fix=_remedy(found, own, prefix),
        )
    for name, tensor in found.items():
        if tensor.dtype != own[name].dtype:
            found[name] = tensor.to(own[name].dtype)
    # Assigned tensors need no copy; parameters that are shared have to be filled in place.
    module.load_state_dict(found, strict=False, assign=not tied)
    return notes


def _read(file: Path) -> Any:
    import torch

    try:
        if file.suffix == ".safetensors" or _is_safetensors(file):
            from safetensors.torch import load_file

            return load_file(file)
        mapped = zipfile.is_zipfile(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        unsafe = "weights_only" in str(error) or "WeightsUnpickler" in str(error)
        raise InputError(
            "the file holds more than tensors, and only tensors are read"
            if unsafe
            else f"the weights cannot be read: {type(error).__name__}: {reason}",
            where=str(file),
            fix="save the state_dict alone: torch.save(module.state_dict(), FILE), or safetensors",
        ) from error


def _is_safetensors(file: Path) -> bool:
    """Whether the file begins as safetensors do, whatever its name: a length, then JSON."""
    with open(file, "rb") as opened:
        start = opened.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 8 + length <= file.stat().st_size


def _tensors(content: Any, key: str | None, file: Path) -> Mapping[str, torch.Tensor]:
    import torch

    if key is not None:
        content = _entry(content, key, file)
    if not isinstance(content, Mapping):
        raise InputError(
            f"there is a {type(content).__name__} where tensors by name should be", where=str(file)
        )
    others = [str(name) for name, item in content.items() if not isinstance(item, torch.Tensor)]
    if others or not content:
        inner = [str(n) for n, item in content.items() if isinstance(item, Mapping)]
        raise InputError(
            f"the file holds more than tensors: {_listed(others)}" if others else "it is empty",
            where=str(file),
            fix="name the entry with the tensors: "
            f"weights: {{key: {key + '.' if key else ''}{_likely(inner)}}}"
            if inner
            else "save the state_dict alone",
        )
    return content


def _entry(content: Any, key: str, file: Path) -> Any:
    """The entry of that name, else the one that its parts between dots lead to."""
    if isinstance(content, Mapping) and key in content:
        return content[key]
    for part in key.split("."):
        names = list(content) if isinstance(content, Mapping) else []
        if part not in names:
            raise InputError(
                f"the file has no entry `{key}`",
                where=str(file),
                fix=f"`{part}` is not among: {_listed(names)}" if names else "leave `key` out",
            )
        content = content[part]
    return content


def _likely(names: list[str]) -> str:
    return next((name for name in names if "state_dict" in name or "model" in name), names[0])


def _chosen(
    tensors: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    prefix: str | None,
    file: Path,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors by the names of the module, and what is to be said of the others.

    Never a mixture of those with the prefix and those without: a checkpoint may hold both, such as
    weights and their moving average.
    """
    if prefix is None:
        return dict(tensors), []
    found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    others = [name for name in tensors if not name.startswith(prefix)]
    if not found:
        raise InputError(
            f"no name in the file begins with `{prefix}`: {_listed(others)}",
            where=str(file),
            fix="leave `prefix` out" if set(others) & set(own) else _remedy(tensors, own, None),
        )
    if not others:
        return found, []
    what = f"{len(others)} tensors without the prefix `{prefix}` were left out: {_listed(others)}"
    return found, [f"of {file.name}, {what}"]


def _is_counter(name: str) -> bool:
    """BatchNorm's count of batches has no part in inference; old checkpoints have none."""
    return name.endswith("num_batches_tracked")


def _add_tied(found: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> bool:
    """Gives names that share a parameter with a loaded one its tensor; whether any share."""
    groups: dict[int, list[str]] = {}
    for name, parameter in own.items():
        groups.setdefault(id(parameter), []).append(name)
    shared = [names for names in groups.values() if len(names) > 1]
    for names in shared:
        loaded = next((found[name] for name in names if name in found), None)
        for name in names if loaded is not None else ():
            found.setdefault(name, loaded)  # type: ignore[arg-type]
    return bool(shared)


def _problems(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    missing = [name for name in own if name not in found and not _is_counter(name)]
    unexpected = [name for name in found if name not in own]
    misshapen = [
        f"{name} is {list(found[name].shape)}, the module has {list(own[name].shape)}"
        for name in own
        if name in found and found[name].shape != own[name].shape
    ]
    other = [
        f"{name} is {_short(found[name])}, the module has {_short(own[name])}"
        for name in own
        if name in found and _kind(found[name]) != _kind(own[name])
    ]
    groups = {"missing": missing, "unexpected": unexpected}
    groups |= {"of another shape": misshapen, "of another kind": other}
    return [f"{len(n)} {what} ({_listed(n)})" for what, n in groups.items() if n]


def _kind(tensor: torch.Tensor) -> str:
    """What a conversion keeps the values of: the integers of quantized weights are none as floats,
    and those of 8 bits mean nothing without their scales."""
    if tensor.is_complex():
        return "complex"
    if not tensor.is_floating_point():
        return "integer"
    return "float" if tensor.element_size() > 1 else "float of 8 bits"


def _short(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _remedy(
    found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], prefix: str | None
) -> str:
    """A prefix that would make most keys fit, else what there is to look at."""
    prefixes = Counter(
        name[: -len(tail)]
        for name in found
        if name not in own
        for tail in _tails(name)
        if tail in own
    )
    if prefixes:
        best, count = prefixes.most_common(1)[0]
        if count * 2 > len(own) or count * 2 > len(found):
            return f"write `weights: {{prefix: {(prefix or '') + best}}}`"
    return "make the module as it was when the weights were saved (`arguments`), or see `prefix`"


def _tails(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]
