"""A module on the bench: what functions of torch passes get, inside of a worker.

A pass of the torch level has two sides. Its `run` is called in the compiler's process, which never
imports torch; it calls functions of its own module by `context.workshop(model).call(function)`,
and they run in the worker that holds the module, with a `Workbench` as their first argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from optimc.core.errors import CellError
from optimc.core.torch_model import MASKS, WEIGHTS, Structure, TorchStats

if TYPE_CHECKING:
    import torch

_PLAIN = (bool, int, float, str)


class OpenedModule(Protocol):
    """A module with named inputs and outputs, as the front end opens it."""

    @property
    def names(self) -> list[str]:
        """The inputs in their order."""

    @property
    def module(self) -> torch.nn.Module:
        """The module itself."""

    def outputs(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The named outputs; gradients flow where they are switched on."""


class Workbench:
    """One module, which functions may change in place.

    Results have to be the same every time: functions seed what they draw
    (`torch.manual_seed`), and iterate in the module's own order.
    """

    def __init__(
        self,
        opened: OpenedModule,
        example: Mapping[str, torch.Tensor],
        reopen: Callable[[str, Mapping[str, Any]], OpenedModule],
    ) -> None:
        """`reopen(kind, options)` opens another model; see `opened`."""
        self._opened = opened
        self._reopen = reopen
        self._pristine = _attributes(opened.module)
        self.example = dict(example)
        """Feeds of one small batch, at the dims' typical sizes (a dynamic first dim is 2)."""
        self.masks: dict[str, torch.Tensor] = {}
        """Bool tensors by the parameter's name, of its shape: where False, it is zero for good."""
        self._skipped: list[str] = []
        self._touched: set[tuple[str, str]] = set()

    @property
    def skipped(self) -> tuple[str, ...]:
        """The names of the modules that were taken out."""
        return tuple(self._skipped)

    @property
    def module(self) -> torch.nn.Module:
        """The user's module, to be changed in place."""
        return self._opened.module

    @property
    def names(self) -> list[str]:
        """The names of the inputs in their order."""
        return self._opened.names

    def forward(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The named outputs for `feeds`; gradients flow where they are switched on."""
        return self._opened.outputs(feeds)

    def opened(self, kind: str = "", options: Mapping[str, Any] | None = None) -> OpenedModule:
        """Another model: by default the source as it came in, for a teacher. In eval mode."""
        return self._reopen(kind, options or {})

    def skip(self, name: str) -> torch.nn.Module:
        """Takes the module `name` out and gives it back: what it got first, is passed on.

        Its parameters go with it; its name stays, so that those of others do.
        """
        assert name not in self._skipped, f"{name} is out already"
        taken = self.module.get_submodule(name)
        self._keep_shared_masks(name)
        replace_module(self.module, name, skipped_module(self._returns_tuple(name)))
        self._skipped.append(name)
        return taken

    def _keep_shared_masks(self, name: str) -> None:
        """Masks of what goes with the module `name` go too, but for parameters that others share:
        those masks take the name that is left."""
        named = list(self.module.named_parameters(remove_duplicate=False))
        left = {id(p): n for n, p in named if not n.startswith(f"{name}.")}
        parameters = dict(named)
        kept = {}
        for masked, mask in self.masks.items():
            other = left.get(id(parameters[masked]))
            if not masked.startswith(f"{name}."):
                kept[masked] = mask
            elif other is not None:
                kept[other] = mask
        self.masks = kept

    def put_back(self, name: str, taken: torch.nn.Module) -> None:
        """Undoes `skip`, but for the masks of what was `taken` out."""
        replace_module(self.module, name, taken)
        self._skipped.remove(name)

    def _returns_tuple(self, name: str) -> bool:
        """Whether the module gives a tuple on the example; as it is in transformers' layers."""
        import torch

        seen: list[bool] = []
        hook = self.module.get_submodule(name).register_forward_hook(
            lambda module, arguments, output: seen.append(isinstance(output, tuple))
        )
        with torch.no_grad():
            self.forward(self.example)
        hook.remove()
        return bool(seen and seen[0])

    def apply_masks(self) -> None:
        """Sets to zero what the masks say; to be called after every step of an optimizer."""
        import torch

        if not self.masks:
            return
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, mask in self.masks.items():
                parameters[name].masked_fill_(~mask, 0.0)  # also where NaN came up

    def macs(self) -> int:
        """Multiply-accumulates of the example, divided by its batch (convolutions and products)."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        training = self.module.training
        self.module.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.forward(self.example)
        self.module.train(training)
        batch = max((len(t) for t in self.example.values() if t.dim()), default=1)
        return int(counter.get_total_flops() // 2 // batch)

    def stats(self) -> TorchStats:
        """What a table shows of the module."""
        parameters = list(self.module.parameters())
        return TorchStats(
            nodes=sum(1 for m in self.module.modules() if next(m.children(), None) is None),
            bytes=sum(p.numel() * p.element_size() for p in parameters),
            parameters=sum(p.numel() for p in parameters),
            macs=self.macs(),
        )

    @contextmanager
    def restructuring(self) -> Iterator[None]:
        """For what changes sizes: plain attributes (sizes, counts of heads) that the block changes
        are a part of the structure. The module must not run inside: what it keeps for itself while
        it runs, such as how far a cache of positions reaches, is none of it."""
        before = _attributes(self.module)
        yield
        for name, now in _attributes(self.module).items():
            old = before.get(name, {})
            self._touched |= {(name, key) for key, value in now.items() if old.get(key) != value}

    def structure(self) -> Structure:
        """How the module differs from the source's, beside its tensors."""
        now = _attributes(self.module)
        changed: dict[str, dict[str, Any]] = {}
        for name, key in sorted(self._touched):
            if name in now and key in now[name]:
                value = now[name][key]
                if self._pristine.get(name, {}).get(key) != value:
                    changed.setdefault(name, {})[key] = value
        return Structure(tuple(sorted(self._skipped)), changed)

    def write_tensors(self, folder: Path) -> None:
        """Writes parameters, buffers and masks to `folder`.

        Raises CellError where a module keeps state that is no tensor.
        """
        import torch
        from safetensors.torch import save_file

        state = self.module.state_dict()
        others = [name for name, item in state.items() if not isinstance(item, torch.Tensor)]
        if others:
            raise CellError(
                f"`{others[0]}` is state that is no tensor, which cannot be kept",
                fix="take `get_extra_state` out of the module, or the passes on modules out of the"
                " variant",
            )
        # Tied parameters are kept once for each name: safetensors takes no shared memory.
        tensors = {n: t.detach().cpu().clone() for n, t in state.items()}
        save_file({n: t.contiguous() for n, t in sorted(tensors.items())}, folder / WEIGHTS)
        if self.masks:
            save_file(dict(sorted(self.masks.items())), folder / MASKS)

    def restore(self, folder: Path, structure: Structure) -> None:
        """Turns the source's module into the one that was stored in `folder`."""
        from safetensors.torch import load_file

        for name in structure.skipped:
            self.skip(name)
        for name, values in structure.attributes.items():
            module = self.module.get_submodule(name)
            for key, value in values.items():
                setattr(module, key, tuple(value) if isinstance(value, list) else value)
                self._touched.add((name, key))
        _assign(self.module, load_file(folder / WEIGHTS))
        if (folder / MASKS).exists():
            self.masks = load_file(folder / MASKS)


def _assign(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts `tensors` in the place of parameters and buffers, of whatever shape those are."""
    import torch

    made: dict[int, torch.nn.Parameter] = {}
    kept = []  # the id of an object that is gone is given to another one
    for name, tensor in tensors.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        old = getattr(owner, leaf)
        if isinstance(old, torch.nn.Parameter):
            # Parameters that are one object stay one, and so do modules under two names.
            new = made.get(id(old))
            if new is None:
                new = torch.nn.Parameter(tensor, old.requires_grad)
                made[id(old)] = made[id(new)] = new
                kept.append(old)
            setattr(owner, leaf, new)
        else:
            owner.register_buffer(leaf, tensor, persistent=True)


def _attributes(module: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """By module: its attributes that are plain numbers, strings, or tuples of these."""
    return {
        name: {
            key: value
            for key, value in vars(part).items()
            if not key.startswith("_") and key != "training" and _is_plain(value)
        }
        for name, part in module.named_modules()
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(item, _PLAIN) for item in value)
    return isinstance(value, _PLAIN)


def replace_module(module: torch.nn.Module, name: str, new: torch.nn.Module) -> None:
    """Puts `new` in the place of the submodule `name`."""
    above, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(above), leaf, new)


def skipped_module(returns_tuple: bool) -> torch.nn.Module:
    """A module that gives its first argument, alone or as the only member of a tuple."""
    import torch

    class Skipped(torch.nn.Module):
        def forward(self, *arguments: Any, **keywords: Any) -> Any:
            first = arguments[0] if arguments else next(iter(keywords.values()))
            return (first,) if returns_tuple else first

    return cast("torch.nn.Module", Skipped())
