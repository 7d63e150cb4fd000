"""Modules with nested inputs and outputs as functions of named tensors. For the worker.

Names are paths: `features.mask` is the entry `mask` of the argument `features`, `pair.0` the first
of a tuple. An output that is one tensor is `output`, the members of a tuple are `output_0`, ...
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError

if TYPE_CHECKING:
    import torch

Tree = dict[str, Any]
"""Names to places in the list of tensors, or to trees."""


def flat_module(module: torch.nn.Module, names: Sequence[str]) -> Any:
    """`module` as a module with a list of tensors in and a tuple of tensors out.

    `names` are the inputs in their order; `call` gives what the module itself returns. Raises
    InputError where they do not fit the module's `forward`.
    """
    import torch

    class FlatModule(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self._tree = _tree(names)
            self._positional = _is_positional(module, self._tree)

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            """The tensors of the module's outputs, in the order of `named_tensors`."""
            return tuple(tensor for _, tensor in named_tensors(self.call(tensors)))

        def call(self, tensors: Sequence[torch.Tensor]) -> Any:
            built = {name: _build(part, tensors) for name, part in self._tree.items()}
            return self.module(*built.values()) if self._positional else self.module(**built)

    return FlatModule()


def _tree(names: Sequence[str]) -> Tree:
    tree: Tree = {}
    for index, name in enumerate(names):
        *above, leaf = name.split(".")
        below = tree
        for part in above:
            below = below.setdefault(part, {})
            if not isinstance(below, dict):
                raise InputError(f"the input `{name}` stands below `{part}`, a tensor itself")
        if isinstance(below.get(leaf), dict):
            raise InputError(f"the input `{name}` is a tensor, and others stand below it")
        below[leaf] = index
    return tree


def _build(part: Any, tensors: Sequence[torch.Tensor]) -> Any:
    if isinstance(part, int):
        return tensors[part]
    built = {name: _build(below, tensors) for name, below in part.items()}
    if list(built) == [str(number) for number in range(len(built))]:
        return tuple(built.values())
    return built


def _is_positional(module: torch.nn.Module, tree: Tree) -> bool:
    """Whether inputs go by their order: only where no name is one of `forward`'s."""
    parameters = inspect.signature(module.forward).parameters.values()
    variadic = {parameter.kind for parameter in parameters}
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in parameters if p.name in known and p.default is p.empty]
    unknown = [name for name in tree if name not in known]
    listed = ", ".join(known) or "none by name"
    if not unknown or inspect.Parameter.VAR_KEYWORD in variadic:
        missing = [name for name in needed if name not in tree]
        if not missing:
            return False
        if len(missing) < len(needed) or len(tree) != len(needed):
            raise InputError(
                f"`inputs` lacks {_quoted(missing)}, which `forward` of "
                f"{type(module).__name__} needs",
                fix=f"declare its shape and dtype; the arguments are: {listed}",
            )
        return True
    most = len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)])
    enough = len(tree) <= most or inspect.Parameter.VAR_POSITIONAL in variadic
    if len(unknown) == len(tree) and enough and len(tree) >= len(needed):
        return True
    raise InputError(
        f"`forward` of {type(module).__name__} has no argument {_quoted(unknown)}",
        fix=f"name the inputs as the arguments are: {listed}",
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def named_tensors(value: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors in a module's answer with their names; what is no tensor is left out."""
    import torch

    if isinstance(value, torch.Tensor):
        return [("output", value)]
    if isinstance(value, Sequence) and not hasattr(value, "_fields"):
        return [
            found for index, item in enumerate(value) for found in _below(item, f"output_{index}")
        ]
    return list(_below(value, ""))


def _below(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield path, value
        return
    members: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        members = value
    elif dataclasses.is_dataclass(value):
        members = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "_fields"):
        members = {name: getattr(value, name) for name in value._fields}
    elif isinstance(value, list | tuple):
        members = dict(enumerate(value))
    for name, item in members.items():
        yield from _below(item, f"{path}.{name}" if path else str(name))


def unique_output_names(names: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """The names of outputs; what is an input's name or another output's gets `_out` after it.

    The empty name, a key of a mapping as any other, becomes `output`: to ONNX it means nothing.
    """
    taken = set(inputs)
    unique: list[str] = []
    for name in names:
        name = name or "output"
        while name in taken:
            name += "_out"
        taken.add(name)
        unique.append(name)
    return unique
