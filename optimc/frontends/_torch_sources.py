"""What the PyTorch front end takes in, each as named inputs, a run by torch, and a program.

Imports torch at the top: for the worker alone.
"""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from optimc.core.errors import InputError, OptimcError
from optimc.core.user_code import is_installed
from optimc.frontends._opened_files import opened_files
from optimc.frontends._torch_archives import (
    check_archive,
    only_tensors_unpickled,
    swallowed_errors,
)
from optimc.frontends._torch_modules import flat_module, named_tensors, unique_output_names

if TYPE_CHECKING:
    import torch

Shape = Sequence[int | str]
Tensors: TypeAlias = "Mapping[str, torch.Tensor]"


@dataclass
class Described:
    """What a source says of its inputs: ``(name, dtype, shape)``, and what values they take."""

    inputs: list[tuple[str, str, list[int | str]]]
    values: dict[str, list[float]] = field(default_factory=dict)
    """By input: the least and the greatest value."""
    dims: dict[str, list[int]] = field(default_factory=dict)
    """By dim: sizes (min, typical, max) to take where nobody says others."""
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """Files that were read beside those that the source names."""
    modules: list[str] = field(default_factory=list)
    """The names of a module's parts."""


class TorchModel(ABC):
    """A model that torch can run and export."""

    described: Described

    @abstractmethod
    def run(self, feeds: Tensors) -> list[tuple[str, torch.Tensor]]:
        """The outputs with their names, which are not yet made unique."""

    @abstractmethod
    def program(self, feeds: Tensors, shapes: Mapping[str, Shape]) -> Any:
        """The `torch.export.ExportedProgram`; named dims of `shapes` are dynamic."""

    @property
    def names(self) -> list[str]:
        """The names of the inputs."""
        return [name for name, _, _ in self.described.inputs]


class ModuleModel(TorchModel):
    """A module whose inputs are described."""

    def __init__(self, module: torch.nn.Module, described: Described) -> None:
        described.modules = [name for name, _ in module.named_modules() if name]
        self.described = described
        self.module = module.eval()
        self.flat = flat_module(module, self.names).eval()

    def outputs(self, feeds: Tensors) -> dict[str, torch.Tensor]:
        """The outputs by the names that they have in ONNX; gradients flow where they are on."""
        found = named_tensors(self.flat.call([feeds[name] for name in self.names]))
        names = unique_output_names([name for name, _ in found], self.names)
        return dict(zip(names, (tensor for _, tensor in found), strict=True))

    def run(self, feeds: Tensors) -> list[tuple[str, torch.Tensor]]:
        """See `TorchModel`."""
        import torch

        with torch.no_grad():
            answer = self.flat.call([feeds[name] for name in self.names])
        found = named_tensors(answer)
        if not found:
            raise InputError(
                f"the module returns no tensor but {type(answer).__name__}",
                fix="return a tensor, or a dict, tuple or dataclass of tensors, from `forward`",
            )
        for name, tensor in found:
            _check_output(name, tensor)
        return found

    def program(self, feeds: Tensors, shapes: Mapping[str, Shape]) -> Any:
        """See `TorchModel`."""
        import torch

        dynamic = torch.export.Dim.DYNAMIC
        axes = tuple(
            {axis: dynamic for axis, dim in enumerate(shapes[name]) if isinstance(dim, str)}
            for name in self.names
        )
        arguments = tuple(feeds[name] for name in self.names)
        with torch.no_grad():
            return torch.export.export(self.flat, arguments, dynamic_shapes=(axes,), strict=False)


class ProgramModel(TorchModel):
    """A program from a `.pt2` file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._program, self._module = _loaded_program(path)
        self._inputs: tuple[Any, ...] = tuple(self._program.graph_signature.user_inputs)
        """Names of tensors, and constants that the program was exported with."""
        if not any(isinstance(name, str) for name in self._inputs):
            raise InputError("the program has no tensor as input", where=str(path))
        self.described = self._describe()

    def _describe(self) -> Described:
        import torch

        nodes = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        dims: dict[str, str] = {}
        inputs = []
        for name in self._inputs:
            if not isinstance(name, str):
                continue
            value = nodes[name].meta["val"]
            if not isinstance(value, torch.Tensor):
                raise InputError(
                    f"the input `{name}` is a {type(value).__name__}, not a tensor",
                    where=str(self._path),
                    fix="export the module with this value fixed",
                )
            shape: list[int | str] = []
            sizes: tuple[Any, ...] = tuple(value.shape)  # ints, and symbols of torch
            for axis, size in enumerate(sizes):
                default = "batch" if axis == 0 else f"{name}_dim{axis}"
                symbol = None if isinstance(size, int) else str(size)
                shape.append(int(size) if symbol is None else dims.setdefault(symbol, default))
            inputs.append((name, dtype_name(value.dtype), shape))
        return Described(inputs)

    def run(self, feeds: Tensors) -> list[tuple[str, torch.Tensor]]:
        """See `TorchModel`."""
        import torch
        from torch.utils import _pytree as pytree

        flat = [feeds[name] if isinstance(name, str) else name for name in self._inputs]
        arguments, keywords = pytree.tree_unflatten(flat, self._program.call_spec.in_spec)
        with torch.no_grad():
            found = named_tensors(self._module(*arguments, **keywords))
        nodes = self._program.graph_signature.user_outputs
        own = [name for name in nodes if isinstance(name, str)]
        if all(name.startswith("output") for name, _ in found) and len(own) == len(found):
            return [(name, tensor) for name, (_, tensor) in zip(own, found, strict=True)]
        return found

    def program(self, feeds: Tensors, shapes: Mapping[str, Shape]) -> Any:
        """See `TorchModel`."""
        return self._program


def _loaded_program(path: Path) -> tuple[Any, Any]:
    """The program in the `.pt2` file, and its module.

    Raises InputError where torch cannot read it, or would run code that is in it.
    """
    import torch

    check_archive(path)
    swallowed: list[BaseException] = []
    try:
        with only_tensors_unpickled(), swallowed_errors("torch.export", swallowed):
            program = torch.export.load(path)
        return program, program.module()
    except Exception as error:
        cause = swallowed[0] if swallowed else error
        if "weights_only" in str(cause) or "WeightsUnpickler" in str(cause):
            reason = "it holds pickled objects that are no tensors, and unpickling runs code"
        else:
            reason = _reason(cause)
        raise InputError(
            f"torch {torch.__version__} cannot read this file: {reason}",
            where=str(path),
            fix="write it with torch.export.save, by a torch that is no newer than this one",
        ) from error


class FactoryModel(ModuleModel):
    """A module that a user's function makes."""

    def __init__(
        self,
        call: str,
        folder: Path,
        arguments: Mapping[str, Any],
        weights: Mapping[str, Any] | None,
        declared: Mapping[str, Mapping[str, Any]],
        seed: int,
    ) -> None:
        before = set(sys.modules)
        with opened_files() as read:
            module = _make(call, folder, arguments, seed)
        notes: list[str] = []
        if weights is not None:
            from optimc.frontends._torch_weights import load_weights

            notes = load_weights(
                module, Path(weights["file"]), key=weights["key"], prefix=weights["prefix"]
            )
        _check_values(module, call)
        described = Described([(n, d["dtype"], d["shape"]) for n, d in declared.items()])
        described.notes = notes
        described.files = sorted(read | _user_files(before, call.partition(":")[0]))
        super().__init__(module, described)


def _make(call: str, folder: Path, arguments: Mapping[str, Any], seed: int) -> torch.nn.Module:
    # Behind what is installed, as for metrics: a user's `numpy.py` must not shadow the library.
    import torch

    sys.path.append(str(folder))
    name, _, attribute = call.partition(":")
    try:
        function = getattr(importlib.import_module(name), attribute)
    except OptimcError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot import `{call}`: {_reason(error)}",
            fix="put it beside the recipe or on PYTHONPATH, or install its package",
        ) from error
    torch.manual_seed(seed)
    try:
        made = function(**arguments)
    except Exception as error:
        raise InputError(
            f"`{call}` raised {_reason(error)}",
            fix="model.arguments holds the keyword arguments of the function",
        ) from error
    if not isinstance(made, torch.nn.Module):
        raise InputError(f"`{call}` returned {type(made).__name__}", fix="return a torch.nn.Module")
    return made


def _user_files(before: set[str], main: str) -> set[str]:
    """The source files of the modules that were imported since, those of installed ones left out.

    The module that the factory is in counts wherever it lies.
    """
    found = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name in before or file is None or not Path(file).is_file():
            continue
        path = Path(file).resolve()
        if name == main or not is_installed(path):
            found.add(str(path))
    return found


def _check_output(name: str, tensor: torch.Tensor) -> None:
    """Raises InputError for what no engine gives back."""
    import torch

    if tensor.is_complex():
        what, fix = dtype_name(tensor.dtype), "return torch.view_as_real of it from `forward`"
    elif tensor.layout != torch.strided:
        what, fix = f"a tensor of the layout {tensor.layout}", "return its `to_dense()`"
    else:
        return
    raise InputError(f"the module's output `{name}` is {what}, which engines do not have", fix=fix)


def _check_values(module: torch.nn.Module, call: str) -> None:
    """Raises InputError where weights are declared and were never filled."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise InputError(
            f"{len(empty)} tensors of the module from `{call}` have no values (device meta): "
            f"{shown}",
            fix="name the weights: model: {factory: ..., weights: {file: w.safetensors}}; or make "
            "the module on the CPU",
        )


def dtype_name(dtype: torch.dtype) -> str:
    """The numpy name of a dtype."""
    return str(dtype).removeprefix("torch.")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
